package sql_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"pgcustody/cmd/devstack/stack"
	"pgcustody/cmd/devstack/stack/stacktest"
	"pgcustody/sql"
)

// newCluster is a stack of its own, whose transaction numbers begin where those
// of every new cluster do.
func newCluster(t *testing.T) *stack.Stack {
	t.Helper()
	dir, err := stack.TempDir()
	require.NoError(t, err)
	s, err := stack.Start(t.Context(), stack.Options{Dir: dir, NoFsync: true, Ephemeral: true})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Destroy(context.Background())) })
	return s
}

// migrate brings one database of a cluster to the present schema and makes the logins.
func migrate(t *testing.T, s *stack.Stack, name string) *sql.Result {
	t.Helper()
	require.NoError(t, s.OpenMigrator(t.Context()))
	result, err := sql.Up(t.Context(), sql.Config{URL: s.URL(stack.MigratorLogin, name)})
	require.NoError(t, err)
	require.NoError(t, s.PutLogins(t.Context(), name))
	require.NoError(t, s.CloseMigrator(t.Context()))
	return result
}

// bedOf is a database of a cluster for the helpers of this package.
func bedOf(t *testing.T, s *stack.Stack, name string) *bed {
	t.Helper()
	d := &stacktest.Database{Name: name, Stack: s, URLs: map[string]string{stack.Superuser: s.SuperURL(name)}}
	for login := range s.Passwords {
		if login != stack.Superuser {
			d.URLs[login] = s.URL(login, name)
		}
	}
	return &bed{d, d.Conn(t, stack.Superuser), false}
}

// pgaudit is the DBA's part, with rights that migrations have not.
func (b *bed) pgaudit(t *testing.T) {
	t.Helper()
	text, err := fs.ReadFile(sql.Files(), "pgaudit.sql")
	require.NoError(t, err)
	_, err = b.admin.Exec(t.Context(), string(text))
	require.NoError(t, err)
}

// client runs one of Postgres's own programs as the account of the tests.
func client(t *testing.T, s *stack.Stack, program string, args ...string) (string, error) {
	t.Helper()
	command := exec.CommandContext(t.Context(), filepath.Join(s.PGBin, program), args...)
	command.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C.UTF-8"}
	var out, problem bytes.Buffer
	command.Stdout, command.Stderr = &out, &problem
	if err := command.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: %w: %s", program, err, problem.String())
	}
	return out.String() + problem.String(), nil
}

// backup dumps the database by the backup's login, as a DBA would.
func (b *bed) backup(t *testing.T) (file string) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "dump")
	_, err := client(t, b.Stack, "pg_dump", "--enable-row-security", "--no-unlogged-table-data", "--format=custom", "--file="+file, "--dbname="+b.URLs["custody_dump"])
	require.NoError(t, err)
	return file
}

// schema is what pg_dump says of everything but the rows. A view's column that
// has no name of its own is given one by the first dump.
func (b *bed) schema(t *testing.T) string {
	t.Helper()
	dump := (&database{super: b.URLs[stack.Superuser], stack: b.Stack}).dump(t)
	return strings.ReplaceAll(dump, "::text AS text\n", "::text\n")
}

// burn lets the cluster's transaction counter reach a number.
func (b *bed) burn(t *testing.T, until int64) {
	t.Helper()
	_, err := b.admin.Exec(t.Context(), fmt.Sprintf(`
		do $$ begin
		  while pg_catalog.pg_current_xact_id()::text::bigint < %d loop commit; end loop;
		end $$`, until))
	require.NoError(t, err)
}

func (b *bed) xid(t *testing.T) int64 {
	t.Helper()
	return ask[int64](t, b, `select pg_catalog.pg_current_xact_id()::text::bigint`)
}

// late writes events of a day that is over, as an import does.
func (s *session) late(t *testing.T, day time.Time, n int) {
	t.Helper()
	s.run(t, tenant, lateEvents(day, n))
}

func lateEvents(day time.Time, n int) string {
	return fmt.Sprintf(`
		select custody.ensure_audit_partitions('%[1]s', '%[1]s');
		insert into custody_data.audit_logs (tenant_id, log_entry_id, occurred_at, actor_id, action, import_id)
		select 'acme', gen_random_uuid(), '%[1]s'::timestamptz + n * interval '1 second', gen_random_uuid(), 'account.login', gen_random_uuid()
		from generate_series(1, %[2]d) n`, day.Format(time.RFC3339), n)
}

// archive takes every open segment on record, as the job does but for the store,
// and adds what each holds to the archive: segments by event.
func (b *bed) archive(t *testing.T, worker *session, archived map[string][]string) (segments int) {
	t.Helper()
	for {
		var open []struct {
			Day    string    `json:"day"`
			Part   int       `json:"part"`
			Events int       `json:"events"`
			Retain time.Time `json:"retain_until"`
		}
		require.NoError(t, json.Unmarshal([]byte(worker.run(t, "system", `select coalesce(jsonb_agg(s), '[]') from custody.open_segments() s`)), &open))
		if len(open) == 0 {
			return segments
		}
		for _, s := range open {
			var held struct {
				IDs         []*string
				First, Last string
			}
			require.NoError(t, json.Unmarshal([]byte(worker.run(t, "system", fmt.Sprintf(`
				select jsonb_build_object('ids', jsonb_agg(e.log_entry_id order by l.first_leaf + n), 'first', min(e.occurred_at), 'last', max(e.occurred_at))
				from custody.segment_leaves('%s', %d, null, 10000) l
				cross join generate_series(0, octet_length(l.xids) / 8 - 1) n
				left join custody.audit_entries e on e.log_entry_id = encode(substr(l.entry_ids, n * 16 + 1, 16), 'hex')::uuid
				  and e.xid = ('x' || encode(substr(l.xids, n * 8 + 1, 8), 'hex'))::bit(64)::bigint::text::xid8`, s.Day, s.Part))), &held))
			require.Len(t, held.IDs, s.Events, "%s.%d", s.Day, s.Part)
			require.NotContains(t, held.IDs, (*string)(nil), "%s.%d has a leaf without an event", s.Day, s.Part)
			name := fmt.Sprintf("%s.%d", s.Day, s.Part)
			worker.run(t, "system", fmt.Sprintf(`
				select custody.record_segment('%[1]s', %[2]d, '%[3]s', '%[3]s.manifest', m.manifest, sha256(convert_to(m.manifest::text, 'UTF8')), '%[6]s', m.people)
				from (
				  select decode(repeat('ff', 128), 'hex') as people, jsonb_build_object('version', 2, 'day', s.day, 'part', s.part, 'rows', s.events, 'object_key', '%[3]s',
				    'compression', 'zstd', 'encryption', 'age', 'recipients', '{age1x}'::text[],
				    'leaves', (select jsonb_agg(jsonb_build_array(lower(u), upper(u) - lower(u)) order by u) from unnest(s.leaves) u),
				    'root', encode(sha256(''), 'hex'), 'plain_bytes', 1, 'compressed_bytes', 1, 'stored_bytes', 1, 'plain_sha256', encode(sha256(''), 'hex'),
				    'compressed_sha256', encode(sha256(''), 'hex'), 'stored_sha256', encode(sha256(''), 'hex'),
				    'first_occurred_at', '%[4]s', 'last_occurred_at', '%[5]s', 'people', encode(decode(repeat('ff', 128), 'hex'), 'base64')) as manifest
				  from custody.archive_segments s where s.day = '%[1]s' and s.part = %[2]d
				) m`, s.Day, s.Part, name, held.First, held.Last, s.Retain.Format(time.RFC3339Nano)))
			for _, id := range held.IDs {
				archived[*id] = append(archived[*id], name)
			}
			segments++
		}
	}
}

// requireArchivedOnce looks at whether every event of a day that is over is in
// one segment, and none in two.
func (b *bed) requireArchivedOnce(t *testing.T, archived map[string][]string) {
	t.Helper()
	for id, segments := range archived {
		require.Len(t, segments, 1, "event %s", id)
	}
	rows, err := b.admin.Query(t.Context(), `
		select log_entry_id::text, pg_catalog.format('%s xid %s recorded %s', occurred_at::date, xid, recorded_at) from custody_data.audit_logs
		where occurred_at < pg_catalog.date_trunc('day', now() at time zone 'UTC') at time zone 'UTC'`)
	require.NoError(t, err)
	missing, n := []string{}, 0
	var id, about string
	_, err = pgx.ForEachRow(rows, []any{&id, &about}, func() error {
		n++
		if len(archived[id]) == 0 {
			missing = append(missing, about)
		}
		return nil
	})
	require.NoError(t, err)
	require.Empty(t, missing, "events of days that are over in no segment")
	require.Positive(t, n)
}

// settle waits until no transaction of before is running in the cluster.
func (b *bed) settle(t *testing.T) {
	t.Helper()
	now := b.xid(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for settled := false; !settled; {
		require.NoError(t, b.admin.QueryRow(ctx, `select pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot())::text::bigint > $1`, now).Scan(&settled))
	}
}

// original is a database with something in every table that a restore can lose.
type original struct {
	*bed
	app, dpo, runner *session
	days             []time.Time // that are over, with events
	archived         map[string][]string
	standing, gone   victim // erased before and after the dump
	asked            victim // with a request whose residue was searched for before the dump
	event            string // records an event with an id of the client's
	certificates     string
	digests          map[string]string
	dump             string
}

func newOriginal(t *testing.T, s *stack.Stack) *original {
	t.Helper()
	require.True(t, migrate(t, s, stack.Database).Changed())
	o := &original{bed: bedOf(t, s, stack.Database), archived: map[string][]string{}}
	o.pgaudit(t)

	o.app, o.dpo, o.runner = o.session(t, app), o.session(t, dpo), o.session(t, runner)
	o.runner.run(t, "system", `select custody.register_tenant('acme', 'Acme'), custody.register_tenant('other', 'Other'),
		custody.ensure_audit_partitions(now(), now() + interval '3 months')`)
	o.registerKeys(t)
	for _, in := range []string{"acme", "other"} {
		o.app.run(t, in, `select custody.put_profile('pat', '{"full_name":"Pat Doe","attributes":{"a":[1,"ü",null]}}'), custody.put_preferences('pat', '{}'),
			custody.record_consent('pat', 'mail', true, '1', p_evidence => '{"ip":"::1"}'), custody.save_conversation('pat', 'c', '[{"role":"user","text":"hi\n\\N"}]'),
			custody.register_action('thing.do', '{n}', 'Something'), custody.record_audit_event('thing.do', p_metadata => '{"n":1}', p_personal => '{"ip":"::1"}')`)
		o.dpo.run(t, in, `select custody.set_retention_policy('conversations', '1 year', 'contract'), custody.place_hold('{"user_id":"pat"}', 'case', 'claim'),
			custody.register_holder('crm'), custody.request_export('pat')`)
		o.runner.run(t, in, `select custody.finish_run(custody.start_run('retention'), 'failed', '{"rows":1}', 7, 'XX000'),
			custody.prepare_import('user_preferences'); insert into pg_temp.staged_user_preferences values (1, 'imported', '{}');
			select custody.import_preferences(), custody.finish_import(gen_random_uuid(), 'user_preferences', sha256('x'), 1, 1, 0, 0)`)
	}
	o.event = fmt.Sprintf(`select custody.record_audit_event('thing.do', p_metadata => '{"n":2}', p_log_entry_id => '%s')`, uuid.New())
	o.app.run(t, tenant, o.event)
	_, err := o.admin.Exec(t.Context(), `insert into river.river_job (kind, max_attempts, args) values ('archive', 1, '{}')`)
	require.NoError(t, err)
	o.standing, o.gone, o.asked = o.fullVictim(t, o.app, o.dpo), o.fullVictim(t, o.app, o.dpo), o.fullVictim(t, o.app, o.dpo)
	o.dpo.run(t, tenant, `select custody.remember_erased(true)`)
	o.runner.run(t, tenant, o.standing.erase())
	o.runner.run(t, tenant, fmt.Sprintf(`select custody.mark_certificate_stored('%s', 'erasure-certificates/standing')`, o.standing.request))
	// Held when the dump is taken, no longer when the person is erased.
	hold := o.dpo.run(t, tenant, fmt.Sprintf(`select custody.place_hold('{"user_id":"%s"}', 'case 2', 'claim')`, o.gone.user))

	// Archived; opened and not archived; neither. All by transactions whose numbers
	// the next cluster has still to come by, the first apart.
	today := time.Now().UTC().Truncate(24 * time.Hour)
	for _, ago := range []int{40, 3, 2, 1} {
		o.days = append(o.days, today.AddDate(0, 0, -ago).Add(12*time.Hour))
	}
	write := func() {
		// A window reaches from a day's first transaction to its last: a wide one.
		for range 2 {
			for _, day := range o.days {
				o.runner.late(t, day, 3)
			}
			o.burn(t, o.xid(t)+400)
		}
		o.settle(t)
	}
	long := today.AddDate(0, 0, -200)
	o.runner.run(t, "system", fmt.Sprintf(`select custody.ensure_audit_partitions('%[1]s', '%[1]s')`, long.Format(time.RFC3339)))
	_, err = o.admin.Exec(t.Context(), `
		insert into custody_data.audit_logs (tenant_id, log_entry_id, occurred_at, recorded_at, actor_id, action, import_id)
		select 'acme', gen_random_uuid(), $1, $1, gen_random_uuid(), 'account.login', gen_random_uuid() from generate_series(1, 3)`, long)
	require.NoError(t, err)
	write()
	o.archive(t, o.runner, o.archived)
	require.Empty(t, o.runner.run(t, "system", `select sum(rows_dropped) from custody.drop_archived_partitions(100)`), "for a week its month stays")
	o.edit(t, `update custody_data.archive_segments set recorded_at = recorded_at - interval '8 days'`)
	require.Equal(t, "3", o.runner.run(t, "system", `select sum(rows_dropped) from custody.drop_archived_partitions(100)`))
	o.burn(t, 5500)
	write()
	o.archive(t, o.runner, o.archived)
	o.burn(t, 6500)
	write()
	require.NotEmpty(t, o.runner.run(t, "system", `select count(*) from custody.open_segments()`))
	o.burn(t, 7500)
	write()
	o.app.run(t, tenant, `select custody.record_audit_event('thing.do')`)
	require.Equal(t, "[]", o.runner.run(t, tenant, fmt.Sprintf(`select custody.search_residue('%s')`, o.asked.request)))

	// A copy of an event out of the archive.
	// The server's log.
	o.runner.run(t, "system", `select custody_data.ensure_access_partitions(now(), now())`)
	_, err = o.admin.Exec(t.Context(), `
		insert into custody_data.access_events (tenant_id, recorded_at, batch, line, occurred_at, kind, session_id) values ('acme', now(), 1, 1, now(), 'logon', 'x.y');
		insert into custody_data.log_sources (source, format, file_name, file_offset, file_head, file_tail, state) values ('server', 'jsonlog', 'x.json', 1, sha256(''), sha256(''), '\x00');
		insert into custody_data.log_batches (number, source, file_name, file_from, file_to, object_key, manifest_key, sha256, compressed_sha256, manifest_sha256, previous_sha256,
		  lines, bytes, stored_bytes, recorded_at, expires_at) values (1, 'server', 'x.json', 0, 1, 'x', 'y', sha256(''), sha256(''), sha256(''), sha256(''), 1, 1, 1, now(), now());
		insert into custody_data.actor_settings values ('acme', gen_random_uuid(), 'UTC', '08:00', '16:00', '{1}');
		insert into custody_data.access_baselines values ('acme', 'login x', 'custody_data.user_profiles', '2020-01-01', 1, 1);
		insert into custody_data.canaries (tenant_id, identity_id, planted_by) values ('acme', gen_random_uuid(), gen_random_uuid());
		insert into custody_data.alerts (tenant_id, rule, severity, object_key, first_at, last_at, recorded_to, events, detail) values ('acme', 'canary', 'high', 'x', now(), now(), now(), 1, '{}');
		insert into custody_data.detection_heads default values;
		insert into custody_data.detection_networks (role_name, networks) values ('x', '{192.0.2.0/24}');
		insert into custody_data.log_findings (source, kind) values ('server', 'gap');
		insert into custody_data.log_sinks (sink) values ('siem');
		insert into custody_data.log_spool (number, compressed) values (1, '\x00')`)
	require.NoError(t, err)

	restore := o.runner.run(t, "system", `select custody.begin_restore(now() - interval '1 year', now(), p_reason => 'an enquiry')`)
	require.Equal(t, "1", o.runner.run(t, "system", fmt.Sprintf(`
		select custody.add_restored_events('%s', s.object_key, array[l.first_leaf], array[e.entry])
		from (select s.* from custody.archive_segments s where s.recorded_at is not null order by s.day desc limit 1) s
		cross join lateral custody.segment_leaves(s.day, s.part, 0, 1) l
		join custody.audit_entries e on e.log_entry_id = encode(substr(l.entry_ids, 1, 16), 'hex')::uuid`, restore)))

	o.anchor(t, o.runner, 1)

	o.asAdmin(t, `select custody.require_tokens('custody_reports')`)

	o.digests = contents(t, o.admin)
	for name, digest := range o.digests {
		if strings.HasPrefix(name, "custody_data.") && !strings.HasPrefix(name, "custody_data.audit_logs_") && !strings.HasPrefix(name, "custody_data.access_events_") {
			require.False(t, strings.HasPrefix(digest, "0 rows"), "the test has nothing in %s", name)
		}
	}
	o.dump = o.backup(t)

	// What the dump knows nothing of: somebody erased, somebody new and erased.
	o.dpo.run(t, tenant, fmt.Sprintf(`select custody.release_hold('%s', 'over')`, hold))
	fresh := o.fullVictim(t, o.app, o.dpo)
	o.certificates = fmt.Sprintf("[%s, %s, %s]",
		o.runner.run(t, tenant, fmt.Sprintf(`select custody.get_certificate('%s')`, o.standing.request)),
		o.runner.run(t, tenant, o.gone.erase()), o.runner.run(t, tenant, fresh.erase()))
	return o
}

// restoreAs brings a dump back under a new name as a login.
func (o *original) restoreAs(t *testing.T, s *stack.Stack, name, login string) *bed {
	t.Helper()
	require.NoError(t, s.CreateDatabase(t.Context(), name, ""))
	require.NoError(t, s.OpenMigrator(t.Context()))
	url := s.URL(login, name)
	if login == stack.Superuser {
		url = s.SuperURL(name)
	}
	out, err := client(t, s, "pg_restore", "--exit-on-error", "--dbname="+url, o.dump)
	require.NoError(t, err)
	require.Empty(t, out)
	result := migrate(t, s, name)
	require.False(t, result.Changed(), "%+v", result.Steps)
	b := bedOf(t, s, name)
	b.keyed = true // their keys have come with the dump
	return b
}

func TestDumpAndRestore(t *testing.T) {
	t.Parallel()
	source, target := newCluster(t), newCluster(t)
	o := newOriginal(t, source)

	t.Run("who may dump", func(t *testing.T) {
		_, err := client(t, source, "pg_dump", "--no-unlogged-table-data", "--dbname="+o.URLs[dump])
		require.ErrorContains(t, err, "row-level security", "without the flag it says so")
		_, err = client(t, source, "pg_dump", "--enable-row-security", "--dbname="+o.URLs[dump])
		require.ErrorContains(t, err, "permission denied for sequence session_secret_1", "and what is nobody's to read")
		for _, login := range []string{app, reports, runner, dpo, audit} {
			_, err := client(t, source, "pg_dump", "--enable-row-security", "--no-unlogged-table-data", "--dbname="+o.URLs[login])
			require.ErrorContains(t, err, "permission denied", login)
		}
	})

	// Roles belong to the cluster: the migration of any database makes them.
	require.NoError(t, target.CreateDatabase(t.Context(), "roles_first", ""))
	migrate(t, target, "roles_first")
	roles := bedOf(t, target, "roles_first")
	roles.pgaudit(t)
	require.NoError(t, target.DropDatabase(t.Context(), "roles_first"))

	for _, login := range []string{stack.Superuser, stack.MigratorLogin} {
		t.Run("as "+login, func(t *testing.T) {
			var asked victim
			if login == stack.MigratorLogin {
				// Only a superuser brings pgaudit back; the rest it can.
				_, err := o.admin.Exec(t.Context(), "drop extension pgaudit")
				require.NoError(t, err)
				asked = o.fullVictim(t, o.app, o.dpo)
				o.burn(t, 14000)
				require.Equal(t, "[]", o.runner.run(t, tenant, fmt.Sprintf(`select custody.search_residue('%s')`, asked.request)))
				o.digests = contents(t, o.admin)
				o.dump = o.backup(t)
			}
			b := o.restoreAs(t, target, "restored_as_"+login, login)
			restored := contents(t, b.admin)
			restored["custody_keys.context_keys"] = o.digests["custody_keys.context_keys"] // not in dumps
			require.Equal(t, o.digests, restored, "table by table, partition by partition")
			require.Equal(t,
				ask[string](t, o.bed, `select string_agg(concat_ws(' ', schemaname, sequencename, last_value), ', ' order by schemaname, sequencename) from pg_catalog.pg_sequences`),
				ask[string](t, b, `select string_agg(concat_ws(' ', schemaname, sequencename, last_value), ', ' order by schemaname, sequencename) from pg_catalog.pg_sequences`))
			require.Empty(t, ask[[]string](t, b, `select coalesce(array_agg(concat_ws(' ', id, object, detail)), '{}') from custody_check.findings`))
			requireSameDump(t, o.schema(t), b.schema(t))
			if login == stack.Superuser {
				o.goOn(t, b)
				return
			}
			// Numbers that were searched in the other cluster, used again and passed in
			// this one before anything has told the database where it is.
			worker := b.session(t, runner)
			require.Less(t, b.xid(t), int64(14000))
			b.session(t, app).run(t, tenant, fill(`select custody.record_audit_event('account.login', p_metadata => jsonb_build_object('source', :user::text))`, asked.user, ""))
			b.burn(t, 15000)
			worker.refused(t, "PC019", tenant, asked.erase())

			// And back into the first cluster, which is further than what it gets.
			o.burn(t, 18000)
			o.dump = b.backup(t)
			back := o.restoreAs(t, source, "back", stack.Superuser)
			worker, archived := back.session(t, runner), maps.Clone(o.archived)
			for range 2 {
				for _, day := range o.days {
					worker.late(t, day, 2)
				}
				back.settle(t)
				require.Positive(t, back.archive(t, worker, archived))
				back.requireArchivedOnce(t, archived)
			}
			require.Zero(t, back.archive(t, worker, archived))
		})
	}
}

// goOn works with what was restored, in the order in which an operator would.
func (o *original) goOn(t *testing.T, b *bed) {
	restored := b.xid(t)
	require.Less(t, restored, int64(5000), "the test needs a cluster whose transactions are behind the dump's")
	worker, app, dpo := b.session(t, runner), b.session(t, app), b.session(t, dpo)

	t.Run("erasures since the dump are repeated before anybody reads", func(t *testing.T) {
		require.Equal(t, o.gone.identity, b.identity(t, o.gone.user), "the dump brought the person back")
		replay := fmt.Sprintf(`select custody.replay_erasures(convert_from('\x%x', 'UTF8')::jsonb)`, o.certificates)
		// The hold of before is back too. It was released since, and has to be here.
		require.JSONEq(t, fmt.Sprintf(`{"replayed":0,"standing":1,"unknown":1,"held":["%s"]}`, o.gone.request), worker.run(t, tenant, replay))
		dpo.run(t, tenant, fmt.Sprintf(`select custody.release_hold(hold_id, 'over') from custody.holds where active and identity_id = '%s'`, o.gone.identity))
		require.JSONEq(t, `{"replayed":1,"standing":1,"unknown":1,"held":[]}`, worker.run(t, tenant, replay))
		require.Empty(t, b.identity(t, o.gone.user))
		require.Equal(t, map[string]int{"consent_records": 1}, b.rows(t, o.gone.identity))
		require.Contains(t, worker.run(t, tenant, fmt.Sprintf(`select custody.verify_erasure('%s')`, o.gone.request)), `"clean": true`)
		for _, read := range []string{"get_profile", "get_preferences"} {
			require.Empty(t, app.run(t, tenant, fill(fmt.Sprintf(`select custody.%s(:user)`, read), o.gone.user, "")))
		}
		c := readCertificate(t, worker.run(t, tenant, fmt.Sprintf(`select custody.get_certificate('%s')`, o.gone.request)))
		require.Equal(t, o.gone.identity, c.Identity)
		require.Equal(t, "awaiting_holders", c.Status, "who was told since the dump is not known here")
		require.JSONEq(t, `{"replayed":0,"standing":2,"unknown":1,"held":[]}`, worker.run(t, tenant, replay), "again")
		require.Equal(t, o.gone.request, dpo.run(t, tenant, fill(fmt.Sprintf(`select custody.request_erasure(:user, 'asked', '%s')`, o.gone.request), o.gone.user, "")))
	})

	t.Run("what came since the search for residue is found", func(t *testing.T) {
		app.run(t, tenant, fill(`select custody.record_audit_event('account.login', p_metadata => jsonb_build_object('source', :user::text))`, o.asked.user, ""))
		worker.refused(t, "PC019", tenant, o.asked.erase())
	})

	t.Run("records and retries", func(t *testing.T) {
		for _, in := range []string{"acme", "other"} {
			require.Contains(t, app.run(t, in, `select custody.get_profile('pat')`), `Pat Doe`)
			require.Equal(t, "2", app.run(t, in, `select custody.put_preferences('pat', '{"a":1}')`))
			require.Equal(t, "0", worker.run(t, in, `select custody.enforce_retention('conversations', 100)`))
		}
		before := ask[int](t, b, `select count(*) from custody_data.audit_logs`)
		app.run(t, tenant, strings.Replace(o.event, "select ", "select custody.set_context('acme', 'custody_app'), ", 1))
		require.Equal(t, before, ask[int](t, b, `select count(*) from custody_data.audit_logs`), "the event of before the dump")
	})

	t.Run("every event is archived once", func(t *testing.T) {
		archived := maps.Clone(o.archived)
		write := func() {
			for _, day := range o.days {
				worker.late(t, day, 2)
			}
		}
		// Before the archive has seen the new cluster; one of them commits after it has.
		write()
		slow := b.session(t, runner)
		slow.begin(t, "")
		slow.must(t, lateEvents(o.days[0], 2))
		due := worker.run(t, "system", `select sum(rows) from custody.archive_due()`)
		before := len(archived)
		require.Positive(t, b.archive(t, worker, archived))
		require.Equal(t, due, fmt.Sprint(len(archived)-before), "the dry run says what is done")
		slow.commit(t)
		write()
		b.settle(t)
		b.archive(t, worker, archived)
		b.requireArchivedOnce(t, archived)

		// Through the numbers of the dump's segments, day by day the same.
		for _, until := range []int64{5500, 6500, 7500, 8500} {
			for from := b.xid(t); from < until; from = b.xid(t) {
				write()
				b.burn(t, min(from+100, until))
			}
			b.settle(t)
			b.archive(t, worker, archived)
			b.requireArchivedOnce(t, archived)
		}
		require.Zero(t, b.archive(t, worker, archived))

		// Days later today is over too, and months later the trail may go, but for what is held.
		b.later(t, 200)
		b.archive(t, worker, archived)
		b.requireArchivedOnce(t, archived)
		b.edit(t, `update custody_data.archive_segments set recorded_at = recorded_at - interval '8 days'`)
		const months = `select string_agg(distinct concat_ws(' ', state, detail), ',') from custody.audit_months() where range_to < now() - interval '91 days'`
		require.Contains(t, worker.run(t, "system", months), "in no segment", "until a checkpoint covers them their leaves may be cut off")
		b.anchor(t, worker, 2)
		require.Contains(t, worker.run(t, "system", months), "under legal hold")
		for _, in := range []string{"acme", "other"} {
			worker.run(t, in, `select custody.release_hold(hold_id, 'over') from custody.holds where active`)
		}
		require.Equal(t, "due", worker.run(t, "system", months))
		rows := ask[int](t, b, `select count(*) from custody_data.audit_logs where occurred_at < now() - interval '150 days'`)
		dropped := worker.run(t, "system", `select sum(rows_dropped) from custody.drop_archived_partitions(100)`)
		require.Equal(t, fmt.Sprint(rows), dropped, "nothing that the archive does not hold keeps a month")
		b.archive(t, worker, archived)
		for id, segments := range archived {
			require.Len(t, segments, 1, id)
		}
	})
	t.Run("the commands", func(t *testing.T) { b.commands(t) })
	b.requireNoFindings(t)
}

// commands has the program itself import, archive into the cluster's own store,
// and erase.
func (b *bed) commands(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "pgcustody")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", binary, "pgcustody/cmd/pgcustody")
	out, err := build.CombinedOutput()
	require.NoError(t, err, string(out))
	env := b.Stack.Env()
	env["PGDATABASE"], env["PGCUSTODY_TENANT"] = b.Name, tenant
	delete(env, "PGCUSTODY_KEYS") // the stack's provider has not the key of the test
	pgcustody := func(args ...string) {
		t.Helper()
		command := exec.CommandContext(t.Context(), binary, args...)
		for name, value := range env {
			command.Env = append(command.Env, name+"="+value)
		}
		out, err := command.CombinedOutput()
		require.NoError(t, err, "%s: %s", args, out)
	}

	events := filepath.Join(t.TempDir(), "audit_logs.jsonl")
	var lines strings.Builder
	user, id := newUser("late"), uuid.New()
	day := time.Now().UTC().AddDate(0, 0, -2)
	fmt.Fprintf(&lines, `{"log_entry_id":%q,"timestamp":%q,"user_id":%q,"action":"account.login","result":"success","metadata":{}}`+"\n", id, day.Format(time.RFC3339), user)
	require.NoError(t, os.WriteFile(events, []byte(lines.String()), 0o600))
	pgcustody("import", "--table", "audit_logs", events)
	pgcustody("import", "--table", "audit_logs", events)
	require.Equal(t, 1, ask[int](t, b, `select count(*) from custody_data.audit_logs where log_entry_id = $1`, id), "imported once")
	b.settle(t)
	pgcustody("archive", "run")
	require.Equal(t, 0, ask[int](t, b, `select count(*) from custody_data.archive_segments where recorded_at is null`))
	require.True(t, ask[bool](t, b, `select exists (select from custody_data.archive_segments s
		where s.day = $1::date and s.recorded_at > now() - interval '5 minutes' and s.object_key like 'audit-archives/%')`, day))
	b.session(t, dpo).run(t, tenant, `select custody.register_holder('crm', null, null, true)`) // nobody answers there
	pgcustody("erase", user)
	require.Empty(t, b.identity(t, user))
	pgcustody("status")
}

// anchor records a checkpoint of the whole ledger.
func (b *bed) anchor(t *testing.T, worker *session, number int) {
	t.Helper()
	worker.run(t, "system", fmt.Sprintf(`select custody.seal_audit_log(1000000);
		select custody.record_checkpoint(%d, (custody.ledger_head() ->> 'tree_size')::bigint, custody.ledger_root((custody.ledger_head() ->> 'tree_size')::bigint), 'note', 'key', null, now())`, number))
}

// edit changes what no guard lets change.
func (b *bed) edit(t *testing.T, statements string) {
	t.Helper()
	_, err := b.admin.Exec(t.Context(), fmt.Sprintf(`
		do $$
		declare
		  v_table text;
		  v_trigger record;
		begin
		  for v_table in select t.tgrelid::regclass::text from pg_catalog.pg_trigger t where t.tgrelid::regclass::text like 'custody\_data.%%' group by 1 loop
		    execute 'alter table ' || v_table || ' disable trigger all';
		  end loop;
		  %s;
		  for v_trigger in select t.tgname, t.tgrelid::regclass as name from pg_catalog.pg_trigger t
		    where t.tgrelid::regclass::text like 'custody\_data.%%' and not t.tgisinternal and t.tgparentid = 0 loop
		    execute pg_catalog.format('alter table %%s enable always trigger %%I', v_trigger.name, v_trigger.tgname);
		  end loop;
		end $$`, statements))
	require.NoError(t, err)
}

// later makes everything in the trail, the ledger's map and the archive as old as if
// days had passed. The leaves are not those of the events any more.
func (b *bed) later(t *testing.T, days int) {
	t.Helper()
	worker := b.session(t, runner)
	worker.run(t, "system", fmt.Sprintf(`select custody.ensure_audit_partitions(now() - interval '%d days', now())`, days+60))
	b.edit(t, strings.ReplaceAll(`
		update custody_data.audit_logs set occurred_at = occurred_at - interval 'AGO days', recorded_at = recorded_at - interval 'AGO days';
		update custody_data.ledger_entries e set first_occurred_at = first_occurred_at - interval 'AGO days', last_occurred_at = last_occurred_at - interval 'AGO days',
		  days = (select string_agg(date_send(date '2000-01-01' + (('x' || encode(substr(e.days, n * 4 + 1, 4), 'hex'))::bit(32)::integer - AGO)), '' order by n)
		    from generate_series(0, octet_length(e.days) / 4 - 1) n);
		update custody_data.archive_heads set days_end = days_end - AGO;
		update custody_data.archive_segments set day = day - AGO, opened_at = opened_at - interval 'AGO days', recorded_at = recorded_at - interval 'AGO days',
		  first_occurred_at = first_occurred_at - interval 'AGO days', last_occurred_at = last_occurred_at - interval 'AGO days';
		update custody_data.incarnations set opened_at = opened_at - interval 'AGO days';
		update custody_data.partition_drops set range_from = range_from - interval 'AGO days', range_to = range_to - interval 'AGO days', dropped_at = dropped_at - interval 'AGO days'`,
		"AGO", strconv.Itoa(days)))
}
