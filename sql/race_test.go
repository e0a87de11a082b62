package sql_test

import (
	"cmp"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// What two sessions do to the same thing at once must end as if one had gone
// after the other. Each test says which orders it takes for serial and what it
// looks at.

// rounds is how often two sessions are let loose on each other without order.
const rounds = 20

// write is a way in which something new about a person gets into the database.
type write struct {
	name      string
	login     string // custody_app if empty
	statement string
	table     string // gains a row
	free      bool   // takes no lock on the person: what it writes is pseudonymous
	everybody bool   // runs in no context of one person
	stale     string // code in a snapshot older than the erasure, 40001 if empty
	refused   string // code after the person was erased; none if the person comes back
}

// anySealed is what the tables take for a sealed value, though no key opens it.
const anySealed = `('\x01'::bytea || pg_catalog.decode(pg_catalog.repeat('00', 68), 'hex'))`

var writes = []write{
	{name: "put_profile", statement: `select custody.put_profile(:user, '{"full_name":"Ada"}')`, table: "user_profiles"},
	{name: "put_preferences", statement: `select custody.put_preferences(:user, '{"theme":"dark"}')`, table: "user_preferences"},
	{name: "save_conversation", statement: `select custody.save_conversation(:user, 'c-new', '[{"role":"user","text":"hi"}]')`, table: "conversations"},
	{name: "record_consent", statement: `select custody.record_consent(:user, 'mail', true, '1')`, table: "consent_records"},
	{name: "append_message", statement: `select custody.append_message(:user, 'c-old', '{"role":"user","text":"more"}')`, refused: "PC011"},
	{name: "record_audit_event", statement: `select custody.record_audit_event('account.login', p_subject_user_id => :user)`, free: true},
	{name: "a consent by its own right", login: "custody_runner", statement: `insert into custody_data.consent_records (tenant_id, identity_id, purpose, granted, policy_version, legal_basis, occurred_at)
		values ('acme', :identity, 'post', true, '1', 'consent', now())`, table: "consent_records", refused: "PC021"},
	{name: "a profile by its own right", login: "custody_runner", statement: `insert into custody_data.user_profiles (tenant_id, identity_id) values ('acme', :identity)`,
		table: "user_profiles", refused: "PC021"},
	{name: "preferences by its own right", login: "custody_runner", statement: `insert into custody_data.user_preferences (tenant_id, identity_id, preferences) values ('acme', :identity, ` + anySealed + `)`,
		table: "user_preferences", refused: "PC021"},
	{name: "conversations by its own right", login: "custody_runner", statement: `insert into custody_data.conversations (tenant_id, identity_id, conversation_id, messages, message_count, started_at, last_message_at)
		select 'acme', :identity, 'c-new', ` + anySealed + `, 0, now(), now()`, table: "conversations", refused: "PC021"},
	{name: "import", login: "custody_runner", everybody: true, statement: `select custody.prepare_import('conversations');
		insert into pg_temp.staged_conversations
		select 1, k.identity_id, 'c-new', null, ` + anySealed + `, 1, now(), now()
		from custody.claim_data_keys(array(select i.identity_id from custody_data.claim_identities(array[:user]) i)) k;
		select custody.import_conversations()`, table: "conversations"},
}

func (w write) by() string { return cmp.Or(w.login, "custody_app") }

// victim is a person with a request to be erased.
type victim struct {
	user, identity, request string
}

// newVictim has a consent and a conversation; the other tables are empty.
func (b *bed) newVictim(t *testing.T, app, dpo *session) victim {
	t.Helper()
	v := victim{user: newUser("ada")}
	app.run(t, tenant, fill(`select custody.record_consent(:user, 'service', true, '1'),
		custody.save_conversation(:user, 'c-old', '[{"role":"user","text":"hello"}]')`, v.user, ""))
	v.identity = b.identity(t, v.user)
	v.request = dpo.run(t, tenant, fill(`select custody.request_erasure(:user, 'asked')`, v.user, ""))
	return v
}

func (v victim) erase() string { return fmt.Sprintf("select custody.erase_subject('%s')", v.request) }

type certificate struct {
	Status    string         `json:"status"`
	ErasedAt  string         `json:"erased_at"`
	RequestID string         `json:"request_id"`
	Identity  string         `json:"identity_id"`
	Deleted   map[string]int `json:"deleted"`
}

func readCertificate(t *testing.T, text string) (c certificate) {
	t.Helper()
	require.NoError(t, json.Unmarshal([]byte(text), &c), text)
	return c
}

// requireErased looks at what an erasure and one write that met it have left.
// Serial orders: write, erase: the written row is counted in the certificate and
// nobody has the user_id. Erase, write: the certificate counts what was there
// before, and the write was refused or stands alone under a new identity.
func (b *bed) requireErased(t *testing.T, v victim, w write, writeErr error, c certificate) (writeFirst bool) {
	t.Helper()
	require.Equal(t, "complete", c.Status)
	require.Equal(t, v.identity, c.Identity)
	require.True(t, ask[bool](t, b, `select user_id is null and erased_at is not null from custody_data.identities where identity_id = $1::text::uuid`, v.identity))

	before := map[string]int{"conversations": 1, "consent_records": 1}
	left := b.rows(t, v.identity)
	back := b.identity(t, v.user)
	returned := b.rows(t, back)
	require.NotEqual(t, v.identity, back)
	for _, table := range []string{"user_profiles", "user_preferences", "conversations", "consent_records"} {
		gained := 0
		if writeErr == nil && table == w.table {
			gained = 1
		}
		if table != "consent_records" {
			require.Zero(t, left[table], "%s of an erased identity", table)
			require.Equal(t, before[table]+gained, c.Deleted[table]+returned[table], "%s: each row is either deleted or the new identity's", table)
		} else {
			require.Equal(t, before[table]+gained, left[table]+returned[table], "%s: no record is lost", table)
		}
		if table != w.table {
			require.Zero(t, returned[table], "nothing but the written row comes back")
		}
	}
	if writeErr != nil {
		require.NotEmpty(t, w.refused, "the person comes back: %v", writeErr)
		requireCode(t, writeErr, w.refused)
		require.Empty(t, back)
		return false
	}
	if w.table == "" {
		return back == ""
	}
	return back == ""
}

func TestErasureMeetsAWrite(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	for _, w := range writes {
		t.Run(w.name, func(t *testing.T) {
			t.Parallel()
			b := b.again(t)
			app, runner, dpo, writer := b.session(t, "custody_app"), b.session(t, "custody_runner"), b.session(t, "custody_dpo"), b.session(t, w.by())

			t.Run("the write is first and commits", func(t *testing.T) {
				v := b.newVictim(t, app, dpo)
				writer.begin(t, "")
				writer.must(t, fill(w.statement, v.user, v.identity))
				runner.begin(t, "")
				erasure := runner.send(t.Context(), v.erase())
				if !w.free {
					b.requireWaiting(t, erasure, writer)
				}
				writer.commit(t)
				out, err := erasure.settle(t)
				require.NoError(t, err)
				require.True(t, b.requireErased(t, v, w, nil, readCertificate(t, out)))
			})

			t.Run("the write is first and rolls back", func(t *testing.T) {
				v := b.newVictim(t, app, dpo)
				writer.begin(t, "")
				writer.must(t, fill(w.statement, v.user, v.identity))
				runner.begin(t, "")
				erasure := runner.send(t.Context(), v.erase())
				if !w.free {
					b.requireWaiting(t, erasure, writer)
				}
				writer.rollback(t)
				out, err := erasure.settle(t)
				require.NoError(t, err)
				b.requireErased(t, v, write{}, nil, readCertificate(t, out))
			})

			t.Run("the erasure is first and commits", func(t *testing.T) {
				v := b.newVictim(t, app, dpo)
				// The writer's context is older than the erasure: it still names the identity.
				subject := v.user
				if w.everybody {
					subject = ""
				}
				writer.begin(t, subject)
				runner.begin(t, "")
				out := runner.must(t, v.erase())
				attempt := writer.send(t.Context(), fill(w.statement, v.user, v.identity))
				if !w.free {
					b.requireWaiting(t, attempt, runner)
				}
				if w.free {
					_, err := attempt.settle(t)
					require.NoError(t, err)
				}
				runner.commit(t)
				var err error
				if !w.free {
					_, err = attempt.settle(t)
				}
				first := b.requireErased(t, v, w, err, readCertificate(t, out))
				require.Equal(t, w.free, first)
			})

			t.Run("the erasure is first and rolls back", func(t *testing.T) {
				v := b.newVictim(t, app, dpo)
				runner.begin(t, "")
				runner.must(t, v.erase())
				writer.begin(t, "")
				attempt := writer.send(t.Context(), fill(w.statement, v.user, v.identity))
				if !w.free {
					b.requireWaiting(t, attempt, runner)
				}
				runner.rollback(t)
				_, err := attempt.settle(t)
				require.NoError(t, err)
				require.Equal(t, v.identity, b.identity(t, v.user), "nothing was erased")
				require.Positive(t, b.rows(t, v.identity)["conversations"])
			})

			t.Run("a repeatable read that began before is told to try again", func(t *testing.T) {
				v := b.newVictim(t, app, dpo)
				require.NoError(t, writer.tryBegin(t.Context(), "isolation level repeatable read", tenant, ""))
				out := runner.run(t, tenant, v.erase())
				_, err := writer.send(t.Context(), fill(w.statement, v.user, v.identity)).settle(t)
				if w.free {
					require.NoError(t, err)
				} else {
					requireCode(t, err, cmp.Or(w.stale, "40001"))
				}
				b.requireErased(t, v, write{}, nil, readCertificate(t, out))
			})

			t.Run("at once", func(t *testing.T) { erasureMeetsWrite(t, b, w) })
		})
	}
}

// erasureMeetsWrite lets them loose on each other.
func erasureMeetsWrite(t *testing.T, b *bed, w write) {
	app, runner, dpo, writer := b.session(t, "custody_app"), b.session(t, "custody_runner"), b.session(t, "custody_dpo"), b.session(t, w.by())
	order := map[bool]int{}
	for range rounds {
		v := b.newVictim(t, app, dpo)
		var out string
		var eraseErr, writeErr error
		together(
			func() { out, eraseErr = runner.tryRun(t.Context(), tenant, "", v.erase()) },
			func() { _, writeErr = writer.tryRun(t.Context(), tenant, "", fill(w.statement, v.user, v.identity)) },
		)
		require.NoError(t, eraseErr)
		order[b.requireErased(t, v, w, writeErr, readCertificate(t, out))]++
	}
	t.Logf("write first %d times, erasure first %d times", order[true], order[false])
}

func TestANewPersonMeetsItself(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	news := []write{
		{name: "put_profile", statement: `select custody.put_profile(:user, '{"full_name":"Ada"}')`},
		{name: "put_preferences", statement: `select custody.put_preferences(:user, '{"theme":"dark"}')`},
		{name: "save_conversation", statement: `select custody.save_conversation(:user, 'c', '[{"role":"user","text":"hi"}]')`},
		{name: "record_consent", statement: `select custody.record_consent(:user, 'mail', true, '1')`},
		{name: "record_audit_event", statement: `select custody.record_audit_event('account.login', p_subject_user_id => :user)`},
		{name: "actor", statement: `select custody.set_context('acme', :user), custody.record_audit_event('account.login')`},
		{name: "import", login: "custody_runner", statement: `select custody.prepare_import('user_preferences');
			insert into pg_temp.staged_user_preferences values (1, :user, '{"theme":"light"}'); select custody.import_preferences()`},
	}
	for _, w := range news {
		for _, other := range []write{news[0], w} {
			t.Run(w.name+" and "+other.name, func(t *testing.T) {
				t.Parallel()
				b := b.again(t)
				first, second := b.session(t, w.by()), b.session(t, other.by())
				for _, end := range []string{"commit", "rollback"} {
					user := newUser("bob")
					first.begin(t, "")
					first.must(t, fill(w.statement, user, ""))
					second.begin(t, "")
					waiting := second.send(t.Context(), fill(other.statement, user, ""))
					b.requireWaiting(t, waiting, first)
					first.must(t, end)
					_, err := waiting.settle(t)
					require.NoError(t, err)
					require.Equal(t, 1, ask[int](t, b, `select count(*) from custody_data.identities where user_id = $1`, user))
				}
			})
		}
	}

	t.Run("many at once", func(t *testing.T) {
		t.Parallel()
		newPersonMeetsItself(t, b.again(t))
	})
}

// newPersonMeetsItself has many sessions put the profile of somebody new.
func newPersonMeetsItself(t *testing.T, b *bed) {
	sessions := b.sessions(t, "custody_app", 6)
	for range rounds {
		user := newUser("bob")
		errs := make([]error, len(sessions))
		var calls []func()
		for i, s := range sessions {
			calls = append(calls, func() {
				_, errs[i] = s.tryRun(t.Context(), tenant, "", fill(fmt.Sprintf(`select custody.put_profile(:user, '{"full_name":"session %d"}')`, i), user, ""))
			})
		}
		together(calls...)
		for _, err := range errs {
			require.NoError(t, err)
		}
		identity := b.identity(t, user)
		require.Equal(t, map[string]int{"user_profiles": 1}, b.rows(t, identity))
		require.Equal(t, len(sessions), ask[int](t, b, `select version from custody_data.user_profiles where identity_id = $1::text::uuid`, identity),
			"each put is counted")
		require.Equal(t, 1, ask[int](t, b, `select count(*) from custody_data.identities where user_id = $1`, user))
		require.Equal(t, "1,5", ask[string](t, b, `select concat_ws(',', count(*) filter (where action = 'record.insert'), count(*) filter (where action = 'record.update'))
			from custody_data.audit_logs where subject_id = $1::text::uuid`, identity), "one of them inserted")
	}
}

func TestTwoErasuresAtOnce(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	app, dpo, other := b.session(t, "custody_app"), b.session(t, "custody_dpo"), b.session(t, "custody_runner")

	t.Run("of the same request", func(t *testing.T) {
		v := b.newVictim(t, app, dpo)
		dpo.begin(t, "")
		first := readCertificate(t, dpo.must(t, v.erase()))
		other.begin(t, "")
		second := other.send(t.Context(), v.erase())
		b.requireWaiting(t, second, dpo)
		dpo.commit(t)
		out, err := second.settle(t)
		require.NoError(t, err)
		require.Equal(t, first, readCertificate(t, out), "the same certificate")
		b.requireErased(t, v, write{}, nil, first)
		require.Equal(t, 1, ask[int](t, b, `select count(*) from custody_data.audit_logs where action = 'account.erase' and subject_id = $1::text::uuid`, v.identity))
	})

	t.Run("the first rolls back", func(t *testing.T) {
		v := b.newVictim(t, app, dpo)
		dpo.begin(t, "")
		dpo.must(t, v.erase())
		other.begin(t, "")
		second := other.send(t.Context(), v.erase())
		b.requireWaiting(t, second, dpo)
		dpo.rollback(t)
		out, err := second.settle(t)
		require.NoError(t, err)
		b.requireErased(t, v, write{}, nil, readCertificate(t, out))
	})

	t.Run("of two requests for one person", func(t *testing.T) {
		v := b.newVictim(t, app, dpo)
		v2 := v
		v2.request = dpo.run(t, tenant, fill(`select custody.request_erasure(:user)`, v.user, ""))
		dpo.begin(t, "")
		first := readCertificate(t, dpo.must(t, v.erase()))
		other.begin(t, "")
		second := other.send(t.Context(), v2.erase())
		b.requireWaiting(t, second, dpo)
		dpo.commit(t)
		out, err := second.settle(t)
		require.NoError(t, err)
		b.requireErased(t, v, write{}, nil, first)
		late := readCertificate(t, out)
		require.Equal(t, v2.request, late.RequestID)
		require.Equal(t, first.ErasedAt, late.ErasedAt, "the person was erased once")
		require.Equal(t, map[string]int{"user_profiles": 0, "user_preferences": 0, "conversations": 0}, late.Deleted)
	})

	t.Run("of two people wait for nothing", func(t *testing.T) {
		v, v2 := b.newVictim(t, app, dpo), b.newVictim(t, app, dpo)
		dpo.begin(t, "")
		dpo.must(t, v.erase())
		other.run(t, tenant, v2.erase())
		dpo.commit(t)
	})

	t.Run("many at once", func(t *testing.T) {
		sessions := b.sessions(t, "custody_runner", 4)
		for range rounds {
			v := b.newVictim(t, app, dpo)
			v2 := v
			v2.request = dpo.run(t, tenant, fill(`select custody.request_erasure(:user)`, v.user, ""))
			errs, outs := make([]error, len(sessions)), make([]string, len(sessions))
			var calls []func()
			for i, s := range sessions {
				calls = append(calls, func() { outs[i], errs[i] = s.tryRun(t.Context(), tenant, "", []victim{v, v2}[i%2].erase()) })
			}
			together(calls...)
			deleted := map[string]int{}
			for i := range sessions {
				require.NoError(t, errs[i])
				c := readCertificate(t, outs[i])
				deleted[c.RequestID] = c.Deleted["conversations"]
			}
			require.Equal(t, readCertificate(t, outs[0]), readCertificate(t, outs[2]))
			require.Equal(t, readCertificate(t, outs[1]), readCertificate(t, outs[3]))
			require.Equal(t, 1, deleted[v.request]+deleted[v2.request], "the conversation was deleted once")
			require.Equal(t, 2, ask[int](t, b, `select count(*) from custody_data.erasure_certificates where identity_id = $1::text::uuid`, v.identity))
			require.Equal(t, 2, ask[int](t, b, `select count(*) from custody_data.requests where identity_id = $1::text::uuid and status = 'done'`, v.identity))
		}
	})
}

// hold scopes, for a person with a conversation c-old.
var holds = map[string]struct {
	statement string
	erased    string // code where the person was erased before
}{
	"person": {`select custody.place_hold('{"user_id":":name"}', 'case 1', 'claim')`, "PC011"},
	"tenant": {`select custody.place_hold('{"tenant":true}', 'case 1', 'claim')`, ""},
	"row":    {`select custody.place_hold('{"table":"conversations","row":"c-old","user_id":":name"}', 'case 1', 'claim')`, "PC011"},
}

func TestAHoldMeetsAnErasure(t *testing.T) {
	t.Parallel()
	for scope, h := range holds {
		t.Run(scope, func(t *testing.T) {
			t.Parallel()
			b := newBed(t)
			app, dpo, runner := b.session(t, "custody_app"), b.session(t, "custody_dpo"), b.session(t, "custody_runner")
			place := func(v victim) string { return strings.ReplaceAll(h.statement, ":name", v.user) }
			release := func(hold string) string { return fmt.Sprintf("select custody.release_hold('%s', 'over')", hold) }
			requireHeld := func(t *testing.T, v victim, out string) {
				t.Helper()
				require.Equal(t, "held", readCertificate(t, out).Status)
				require.Equal(t, v.identity, b.identity(t, v.user))
				require.Equal(t, map[string]int{"conversations": 1, "consent_records": 1}, b.rows(t, v.identity))
			}

			t.Run("the hold is first", func(t *testing.T) {
				v := b.newVictim(t, app, dpo)
				dpo.begin(t, "")
				hold := dpo.must(t, place(v))
				runner.begin(t, "")
				erasure := runner.send(t.Context(), v.erase())
				b.requireWaiting(t, erasure, dpo)
				dpo.commit(t)
				out, err := erasure.settle(t)
				require.NoError(t, err)
				requireHeld(t, v, out)
				require.Equal(t, "held", ask[string](t, b, `select status from custody_data.requests where request_id = $1::text::uuid`, v.request))
				require.Equal(t, "1", dpo.run(t, tenant, release(hold)), "the request resumes")
				b.requireErased(t, v, write{}, nil, readCertificate(t, runner.run(t, tenant, v.erase())))
			})

			t.Run("the hold is first and rolls back", func(t *testing.T) {
				v := b.newVictim(t, app, dpo)
				dpo.begin(t, "")
				dpo.must(t, place(v))
				runner.begin(t, "")
				erasure := runner.send(t.Context(), v.erase())
				b.requireWaiting(t, erasure, dpo)
				dpo.rollback(t)
				out, err := erasure.settle(t)
				require.NoError(t, err)
				b.requireErased(t, v, write{}, nil, readCertificate(t, out))
			})

			t.Run("the erasure is first", func(t *testing.T) {
				v := b.newVictim(t, app, dpo)
				runner.begin(t, "")
				out := runner.must(t, v.erase())
				dpo.begin(t, "")
				hold := dpo.send(t.Context(), place(v))
				b.requireWaiting(t, hold, runner)
				runner.commit(t)
				placed, err := hold.settle(t)
				if h.erased == "" {
					require.NoError(t, err)
					dpo.run(t, tenant, release(placed))
				} else {
					requireCode(t, err, h.erased)
				}
				b.requireErased(t, v, write{}, nil, readCertificate(t, out))
			})

			t.Run("the erasure is first and rolls back", func(t *testing.T) {
				v := b.newVictim(t, app, dpo)
				runner.begin(t, "")
				runner.must(t, v.erase())
				dpo.begin(t, "")
				hold := dpo.send(t.Context(), place(v))
				b.requireWaiting(t, hold, runner)
				runner.rollback(t)
				placed, err := hold.settle(t)
				require.NoError(t, err)
				requireHeld(t, v, runner.run(t, tenant, v.erase()))
				dpo.run(t, tenant, release(placed))
			})

			t.Run("at once", func(t *testing.T) {
				order := map[string]int{}
				for range rounds {
					v := b.newVictim(t, app, dpo)
					var out, hold string
					var eraseErr, holdErr error
					together(
						func() { out, eraseErr = runner.tryRun(t.Context(), tenant, "", v.erase()) },
						func() { hold, holdErr = dpo.tryRun(t.Context(), tenant, "", place(v)) },
					)
					require.NoError(t, eraseErr)
					c := readCertificate(t, out)
					order[c.Status]++
					if c.Status == "held" {
						require.NoError(t, holdErr)
						requireHeld(t, v, out)
						// The other end of the hold meets the erasure too: released first, it is
						// carried out; afterwards, it waits and resumes.
						var resumed string
						together(
							func() { out, eraseErr = runner.tryRun(t.Context(), tenant, "", v.erase()) },
							func() { resumed, holdErr = dpo.tryRun(t.Context(), tenant, "", release(hold)) },
						)
						require.NoError(t, eraseErr)
						require.NoError(t, holdErr)
						require.Equal(t, "1", resumed)
						if readCertificate(t, out).Status == "held" {
							out = runner.run(t, tenant, v.erase())
						}
						b.requireErased(t, v, write{}, nil, readCertificate(t, out))
						continue
					}
					b.requireErased(t, v, write{}, nil, c)
					if h.erased == "" {
						require.NoError(t, holdErr)
						dpo.run(t, tenant, release(hold))
					} else {
						requireCode(t, holdErr, h.erased)
					}
				}
				t.Log(order)
			})

			t.Run("its release meets the erasure that it held", func(t *testing.T) {
				for _, end := range []string{"commit", "rollback"} {
					v := b.newVictim(t, app, dpo)
					hold := dpo.run(t, tenant, place(v))
					requireHeld(t, v, runner.run(t, tenant, v.erase()))
					dpo.begin(t, "")
					dpo.must(t, release(hold))
					runner.begin(t, "")
					erasure := runner.send(t.Context(), v.erase())
					b.requireWaiting(t, erasure, dpo)
					dpo.must(t, end)
					out, err := erasure.settle(t)
					require.NoError(t, err)
					if end == "rollback" {
						requireHeld(t, v, out)
						dpo.run(t, tenant, release(hold))
						out = runner.run(t, tenant, v.erase())
					}
					b.requireErased(t, v, write{}, nil, readCertificate(t, out))
				}
			})
		})
	}
}
