package sql_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
)

// contents is a digest of every row of every table, by table, read past row-level
// security. Partitions are read by their parent.
func contents(t *testing.T, conn *pgx.Conn) map[string]string {
	t.Helper()
	digests := map[string]string{}
	for name, list := range columns(t, conn) {
		digests[name] = tableDigest(t, conn, name, list)
	}
	return digests
}

// columns lists the stored columns of each table and each partition of ours.
func columns(t *testing.T, conn *pgx.Conn) map[string]string {
	t.Helper()
	rows, err := conn.Query(t.Context(), `
		select pg_catalog.format('%I.%I', n.nspname, c.relname), pg_catalog.string_agg(pg_catalog.quote_ident(a.attname), ', ' order by a.attname)
		from pg_catalog.pg_class c
		join pg_catalog.pg_namespace n on n.oid = c.relnamespace
		join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
		where n.nspname in ('custody_data', 'custody_keys', 'river') and c.relkind in ('r', 'p')
		group by 1`)
	require.NoError(t, err)
	list := map[string]string{}
	var name, columns string
	_, err = pgx.ForEachRow(rows, []any{&name, &columns}, func() error { list[name] = columns; return nil })
	require.NoError(t, err)
	require.NotEmpty(t, list)
	return list
}

func tableDigest(t *testing.T, conn *pgx.Conn, name, columns string) (digest string) {
	t.Helper()
	require.NoError(t, conn.QueryRow(t.Context(), fmt.Sprintf(`
		select count(*) || ' rows ' || coalesce(pg_catalog.md5(pg_catalog.string_agg(r::text, E'\n' order by r::text collate "C")), '')
		from (select %s from %s) r`, columns, name)).Scan(&digest), name)
	return digest
}

// fullVictim has rows in every table that an erasure touches, and a holder to be told.
func (b *bed) fullVictim(t *testing.T, app, dpo *session) victim {
	t.Helper()
	dpo.run(t, tenant, `select custody.register_holder('crm', 'https://crm.example.org/erase')`)
	v := b.newVictim(t, app, dpo)
	app.run(t, tenant, fill(`select custody.put_profile(:user, '{"full_name":"Ada Lovelace"}'), custody.put_preferences(:user, '{"theme":"dark"}'),
		custody.record_audit_event('account.login', p_subject_user_id => :user)`, v.user, ""))
	return v
}

func TestARequestIsCommittedBeforeItsErasure(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	app, dpo := b.session(t, "custody_app"), b.session(t, "custody_dpo")
	v := b.newVictim(t, app, dpo)
	before := contents(t, b.admin)
	for name, between := range map[string]string{"plainly": "", "after a savepoint": "savepoint s"} {
		t.Run(name, func(t *testing.T) {
			dpo.begin(t, "")
			dpo.must(t, between)
			v.request = dpo.must(t, fill(`select custody.request_erasure(:user)`, v.user, ""))
			if between != "" {
				dpo.must(t, "release savepoint s")
			}
			_, err := dpo.send(t.Context(), v.erase()).settle(t)
			requireCode(t, err, "PC017")
			require.Equal(t, before, contents(t, b.admin))
		})
	}
}

func TestWhatDeletesIsReadCommitted(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	app, dpo, runner := b.session(t, "custody_app"), b.session(t, "custody_dpo"), b.session(t, "custody_runner")
	v := b.fullVictim(t, app, dpo)
	hold := dpo.run(t, "other", `select custody.place_hold('{"tenant":true}', 'case', 'claim')`)
	before := contents(t, b.admin)
	for _, level := range []string{"repeatable read", "serializable"} {
		for statement, in := range map[string]string{
			v.erase(): tenant,
			`select custody.enforce_retention('conversations', 10)`:                          tenant,
			`select custody.replay_erasures('[]')`:                                           tenant,
			`select custody.open_segments()`:                                                 "system",
			`select custody.drop_archived_partitions()`:                                      "system",
			`select custody.place_hold('{"tenant":true}', 'c', 'r')`:                         tenant,
			fmt.Sprintf(`select custody.release_hold('%s', 'r')`, hold):                      "other",
			`select custody.prepare_import('conversations'), custody.import_conversations()`: tenant,
		} {
			require.NoError(t, runner.tryBegin(t.Context(), "isolation level "+level, in, ""))
			_, err := runner.send(t.Context(), statement).settle(t)
			requireCode(t, err, "PC026")
		}
	}
	require.Equal(t, before, contents(t, b.admin))
}

func TestAnErasureThatCannotHaveItsLocks(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	app, dpo, runner := b.session(t, "custody_app"), b.session(t, "custody_dpo"), b.session(t, "custody_runner")
	v := b.fullVictim(t, app, dpo)
	for name, blocker := range map[string]struct {
		s         *session
		statement string
	}{
		"the identity":   {app, `select custody.put_preferences(:user, '{"theme":"light"}')`},
		"the request":    {dpo, fmt.Sprintf(`select custody.extend_request('%s', 'many')`, v.request)},
		"holds":          {dpo, `select custody.place_hold('{"tenant":true}', 'case', 'claim')`},
		"a conversation": {b.session(t, "custody_runner"), `update custody_data.conversations set title = ` + anySealed + ` where identity_id = :identity`},
		"the notices":    {dpo, `select custody.register_holder('crm', null, null, true)`}, // not waited for
		"somebody else":  {app, `select custody.put_preferences('somebody', '{}')`},        // neither
	} {
		t.Run(name, func(t *testing.T) {
			before := contents(t, b.admin)
			blocker.s.begin(t, "")
			blocker.s.must(t, fill(blocker.statement, v.user, v.identity))
			runner.begin(t, "")
			runner.must(t, "set local lock_timeout = '20ms'")
			_, err := runner.try(t.Context(), v.erase())
			if name == "the notices" || name == "somebody else" {
				require.NoError(t, err)
			} else {
				requireCode(t, err, "55P03")
			}
			runner.rollback(t)
			blocker.s.rollback(t)
			require.Equal(t, before, contents(t, b.admin))
		})
	}
	b.requireErasedWhole(t, v, runner.run(t, tenant, v.erase()))
}

// requireErasedWhole looks at what the erasure of a full victim must leave.
func (b *bed) requireErasedWhole(t *testing.T, v victim, out string) {
	t.Helper()
	c := readCertificate(t, out)
	require.Equal(t, map[string]int{"user_profiles": 1, "user_preferences": 1, "conversations": 1}, c.Deleted)
	require.Equal(t, "awaiting_holders", c.Status)
	require.Equal(t, map[string]int{"consent_records": 1}, b.rows(t, v.identity))
	require.Empty(t, b.identity(t, v.user))
	require.Equal(t, "1 1 1 done", ask[string](t, b, `select concat_ws(' ',
		(select count(*) from custody_data.erasure_certificates where request_id = r.request_id),
		(select count(*) from custody_data.erasure_notices where request_id = r.request_id),
		(select count(*) from custody_data.audit_logs where action = 'account.erase' and subject_id = r.identity_id), r.status)
		from custody_data.requests r where r.request_id = $1::text::uuid`, v.request))
}

// Killed while it waits for the right to write each table in turn, the erasure
// has done what comes before and nothing of what comes after. Nothing may stay,
// and the next run must end in the same state as an undisturbed one.
func TestAnErasureThatIsKilled(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	app, dpo := b.session(t, "custody_app"), b.session(t, "custody_dpo")
	for _, point := range []string{
		"conversations", "user_preferences", "user_profiles", "erasure_notices", "audit_logs", "identities", "erasure_certificates", "requests", "at the end",
	} {
		t.Run(point, func(t *testing.T) {
			v := b.fullVictim(t, app, dpo)
			// As a client that is no longer there would leave it.
			runner := b.session(t, "custody_runner")
			before := contents(t, b.admin)

			blocker := b.session(t, "custody_super")
			blocker.must(t, "begin")
			runner.begin(t, "")
			if point == "at the end" {
				// Everything is written, nothing committed.
				runner.must(t, v.erase())
			} else {
				lock := "share" // against writers, not against FOR UPDATE
				if point == "identities" || point == "requests" {
					lock = "share row exclusive"
				}
				blocker.must(t, fmt.Sprintf("lock table only custody_data.%s in %s mode", point, lock))
				erasure := runner.send(t.Context(), v.erase())
				b.requireWaiting(t, erasure, blocker)
				b.kill(t, runner)
				_, err := erasure.result(t)
				requireCode(t, err, "57P01")
			}
			if point == "at the end" {
				b.kill(t, runner)
			}
			blocker.rollback(t)

			require.Equal(t, before, contents(t, b.admin), "all or nothing")
			require.Equal(t, v.identity, b.identity(t, v.user))
			again := b.session(t, "custody_runner")
			out := again.run(t, tenant, v.erase())
			b.requireErasedWhole(t, v, out)
			require.Equal(t, readCertificate(t, out), readCertificate(t, again.run(t, tenant, v.erase())), "and again")
			require.Contains(t, again.run(t, tenant, fmt.Sprintf(`select custody.verify_erasure('%s')`, v.request)), `"clean": true`)
		})
	}
}

// kill ends a session from outside and waits until its server process is gone.
func (b *bed) kill(t *testing.T, s *session) {
	t.Helper()
	require.True(t, ask[bool](t, b, `select pg_catalog.pg_terminate_backend($1, 60000)`, int32(s.pid)))
}

// The client's own death is no different: the server finds the connection gone.
func TestAnErasureWhoseClientGoes(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	app, dpo := b.session(t, "custody_app"), b.session(t, "custody_dpo")
	v := b.fullVictim(t, app, dpo)
	before := contents(t, b.admin)
	runner := b.session(t, "custody_runner")
	runner.begin(t, "")
	runner.must(t, v.erase())
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	require.NoError(t, runner.PgConn().Conn().Close())
	for gone := false; !gone; {
		require.NoError(t, b.admin.QueryRow(ctx, `select not exists (select from pg_catalog.pg_stat_activity where pid = $1)`, int32(runner.pid)).Scan(&gone))
	}
	require.Equal(t, before, contents(t, b.admin))
}
