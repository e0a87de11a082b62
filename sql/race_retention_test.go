package sql_test

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"pgcustody/cmd/devstack/stack"
)

const (
	oldConversation = `select custody.save_conversation(:user, 'c-old', jsonb_build_array(jsonb_build_object('role', 'user', 'text', 'hello', 'at', now() - interval '100 days')))`
	retention       = `select custody.enforce_retention('conversations', 1000)`
	conversations   = `select count(*) from custody_data.conversations c join custody_data.identities i using (tenant_id, identity_id) where i.user_id = $1`
)

// A hold and a deletion of what it would cover. Serial orders: the hold stands
// and the row is there; or the row went first, and a hold on the row was refused
// or one on the person or tenant covers nothing of it.
func TestAHoldMeetsADeletion(t *testing.T) {
	t.Parallel()
	deletions := map[string]struct{ login, statement string }{
		"retention":             {"custody_runner", retention},
		"delete_conversation":   {"custody_app", `select custody.delete_conversation(:user, 'c-old')`},
		"a delete by the owner": {stack.Superuser, `set local role custody_owner; delete from custody_data.conversations where conversation_id = 'c-old'`},
	}
	for scope, h := range holds {
		for name, d := range deletions {
			t.Run(scope+" and "+name, func(t *testing.T) {
				t.Parallel()
				b := newBed(t)
				app, dpo, deleter := b.session(t, "custody_app"), b.session(t, "custody_dpo"), b.session(t, d.login)
				place := func(user string) string { return strings.ReplaceAll(h.statement, ":name", user) }
				release := func(hold string) {
					dpo.run(t, tenant, fmt.Sprintf("select custody.release_hold('%s', 'over')", hold))
				}
				newOne := func() string {
					user := newUser("eve")
					app.run(t, tenant, fill(oldConversation, user, ""))
					return user
				}
				// remove ends the deletion's transaction; held says that a hold stands in its way.
				requireKept := func(t *testing.T, user string, err error) {
					t.Helper()
					if name == "retention" {
						require.NoError(t, err)
					} else {
						requireCode(t, err, "PC032")
					}
					require.Equal(t, 1, ask[int](t, b, conversations, user))
				}

				for _, end := range []string{"commit", "rollback"} {
					t.Run("the hold is first, "+end, func(t *testing.T) {
						user := newOne()
						dpo.begin(t, "")
						hold := dpo.must(t, place(user))
						deleter.begin(t, "")
						deletion := deleter.send(t.Context(), fill(d.statement, user, ""))
						b.requireWaiting(t, deletion, dpo)
						dpo.must(t, end)
						_, err := deletion.settle(t)
						if end == "commit" {
							requireKept(t, user, err)
							release(hold)
							deleter.run(t, tenant, fill(d.statement, user, ""))
						}
						require.Zero(t, ask[int](t, b, conversations, user))
					})

					t.Run("the deletion is first, "+end, func(t *testing.T) {
						user := newOne()
						deleter.begin(t, "")
						deleter.must(t, fill(d.statement, user, ""))
						dpo.begin(t, "")
						placing := dpo.send(t.Context(), place(user))
						b.requireWaiting(t, placing, deleter)
						deleter.must(t, end)
						hold, err := placing.settle(t)
						if end == "commit" && scope == "row" {
							requireCode(t, err, "PC023")
						} else {
							require.NoError(t, err)
							defer release(hold)
						}
						if end == "commit" {
							require.Zero(t, ask[int](t, b, conversations, user))
						} else {
							_, err := deleter.tryRun(t.Context(), tenant, "", fill(d.statement, user, ""))
							requireKept(t, user, err)
						}
					})
				}

				t.Run("at once", func(t *testing.T) {
					order := map[bool]int{}
					for range rounds {
						user := newOne()
						var hold string
						var holdErr, err error
						together(
							func() { hold, holdErr = dpo.tryRun(t.Context(), tenant, "", place(user)) },
							func() { _, err = deleter.tryRun(t.Context(), tenant, "", fill(d.statement, user, "")) },
						)
						kept := ask[int](t, b, conversations, user) == 1
						order[kept]++
						if kept {
							require.NoError(t, holdErr)
							requireKept(t, user, err)
						} else {
							require.NoError(t, err)
							if scope == "row" {
								requireCode(t, holdErr, "PC023")
							} else {
								require.NoError(t, holdErr)
							}
						}
						if holdErr == nil {
							release(hold)
						}
						deleter.run(t, tenant, fill(d.statement, user, ""))
					}
					t.Logf("hold first %d times, deletion first %d times", order[true], order[false])
				})

				// In a snapshot that is older than the other's commit, neither may go on blindly.
				if name != "retention" {
					t.Run("the deletion's snapshot is older than the hold", func(t *testing.T) {
						for _, level := range []string{"repeatable read", "serializable"} {
							user := newOne()
							require.NoError(t, deleter.tryBegin(t.Context(), "isolation level "+level, tenant, ""))
							hold := dpo.run(t, tenant, place(user))
							_, err := deleter.send(t.Context(), fill(d.statement, user, "")).settle(t)
							requireCode(t, err, "40001")
							require.Equal(t, 1, ask[int](t, b, conversations, user))
							release(hold)
							// Nobody in between: it goes on.
							require.NoError(t, deleter.tryBegin(t.Context(), "isolation level "+level, tenant, ""))
							deleter.must(t, fill(d.statement, user, ""))
							deleter.commit(t)
							require.Zero(t, ask[int](t, b, conversations, user))
						}
					})
				}
				t.Run("the hold's snapshot is older than the deletion", func(t *testing.T) {
					user := newOne()
					require.NoError(t, dpo.tryBegin(t.Context(), "isolation level repeatable read", tenant, ""))
					deleter.run(t, tenant, fill(d.statement, user, ""))
					_, err := dpo.send(t.Context(), place(user)).settle(t)
					requireCode(t, err, "PC026")
				})
			})
		}
	}
}

// Serial orders: the message is there and the conversation stays, because it is
// no longer old; or the conversation went, and the message found none.
func TestRetentionMeetsANewMessage(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	app, runner := b.session(t, "custody_app"), b.session(t, "custody_runner")
	const message = `select custody.append_message(:user, 'c-old', '{"role":"user","text":"still here"}')`
	const messages = `select coalesce(max(c.message_count), 0) from custody_data.conversations c join custody_data.identities i using (tenant_id, identity_id) where i.user_id = $1`
	newOne := func() string {
		user := newUser("eve")
		app.run(t, tenant, fill(oldConversation, user, ""))
		return user
	}

	t.Run("the message is first", func(t *testing.T) {
		for _, end := range []string{"commit", "rollback"} {
			user := newOne()
			app.begin(t, "")
			app.must(t, fill(message, user, ""))
			require.Equal(t, "0", runner.run(t, tenant, retention), "what is being written to is passed over, nobody waits")
			app.must(t, end)
			if end == "commit" {
				require.Equal(t, "0", runner.run(t, tenant, retention))
				require.Equal(t, 2, ask[int](t, b, messages, user))
			} else {
				require.Equal(t, "1", runner.run(t, tenant, retention))
				require.Zero(t, ask[int](t, b, messages, user))
			}
		}
	})

	t.Run("retention is first", func(t *testing.T) {
		for _, end := range []string{"commit", "rollback"} {
			user := newOne()
			runner.begin(t, "")
			require.Equal(t, "1", runner.must(t, retention))
			app.begin(t, "")
			appending := app.send(t.Context(), fill(message, user, ""))
			b.requireWaiting(t, appending, runner)
			runner.must(t, end)
			_, err := appending.settle(t)
			if end == "commit" {
				requireCode(t, err, "PC027")
				require.Zero(t, ask[int](t, b, messages, user))
			} else {
				require.NoError(t, err)
				require.Equal(t, 2, ask[int](t, b, messages, user))
			}
		}
	})

	t.Run("retention is first, a whole conversation comes", func(t *testing.T) {
		user := newOne()
		runner.begin(t, "")
		require.Equal(t, "1", runner.must(t, retention))
		app.begin(t, "")
		saving := app.send(t.Context(), fill(`select custody.save_conversation(:user, 'c-old', '[{"role":"user","text":"anew"}]')`, user, ""))
		b.requireWaiting(t, saving, runner)
		runner.commit(t)
		_, err := saving.settle(t)
		require.NoError(t, err)
		require.Equal(t, "1 1", ask[string](t, b, `select concat_ws(' ', c.version, c.message_count) from custody_data.conversations c
			join custody_data.identities i using (tenant_id, identity_id) where i.user_id = $1`, user))
	})

	t.Run("at once", func(t *testing.T) {
		order := map[bool]int{}
		for range rounds {
			user := newOne()
			var gone string
			var err, appendErr error
			together(
				func() { gone, err = runner.tryRun(t.Context(), tenant, "", retention) },
				func() { _, appendErr = app.tryRun(t.Context(), tenant, "", fill(message, user, "")) },
			)
			require.NoError(t, err)
			if appendErr == nil {
				require.Equal(t, 2, ask[int](t, b, messages, user), "an accepted message is there")
				require.Equal(t, "0", gone)
			} else {
				requireCode(t, appendErr, "PC027")
				require.Zero(t, ask[int](t, b, messages, user))
				require.Equal(t, "1", gone)
			}
			order[appendErr == nil]++
		}
		t.Logf("message first %d times, retention first %d times", order[true], order[false])
	})
}

// Several workers at once take each row once, and their events add up.
func TestSeveralRetentionsAtOnce(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	app := b.session(t, "custody_app")
	workers := b.sessions(t, "custody_runner", 4)
	for class, fixture := range map[string]string{
		"conversations": `select custody.save_conversation('many', 'c' || n, jsonb_build_array(jsonb_build_object('role', 'user', 'text', 'x', 'at', now() - interval '100 days')))
			from generate_series(1, 300) n`,
		"consent": `select custody.record_consent('many', 'purpose' || n, false, '1', p_occurred_at => now() - interval '8 years') from generate_series(1, 300) n`,
	} {
		app.run(t, tenant, fixture)
		deleted, errs := make([]int, len(workers)), make([]error, len(workers))
		var calls []func()
		for i, s := range workers {
			calls = append(calls, func() {
				for errs[i] == nil {
					var rows string
					if rows, errs[i] = s.tryRun(t.Context(), tenant, "", fmt.Sprintf(`select custody.enforce_retention('%s', 7)`, class)); rows == "0" {
						return
					}
					n, _ := strconv.Atoi(rows)
					deleted[i] += n
				}
			})
		}
		together(calls...)
		total := 0
		for i, err := range errs {
			require.NoError(t, err)
			total += deleted[i]
		}
		require.Equal(t, 300, total, class)
		require.Equal(t, 300, ask[int](t, b, `select sum((metadata ->> 'rows')::int) from custody_data.audit_logs where action = 'retention.run' and metadata ->> 'class' = $1`, class))
		t.Log(class, deleted)
	}
}

// However retention cuts its batches and whatever a hold keeps, a consent that
// was withdrawn is never in force again.
func TestRetentionRevivesNoConsent(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	app, dpo, runner := b.session(t, "custody_app"), b.session(t, "custody_dpo"), b.session(t, "custody_runner")
	const withdrawn = `select custody.record_consent(:user, 'mail', false, '1', p_occurred_at => now() - interval '8 years')`
	const granted = `select custody.record_consent(:user, 'mail', true, '1', p_occurred_at => now() - interval '9 years')`
	const left = `select count(*) from custody_data.consent_records c join custody_data.identities i using (tenant_id, identity_id) where i.user_id = $1`

	t.Run("recorded in the other order", func(t *testing.T) {
		user := newUser("zoe")
		app.run(t, tenant, fill(withdrawn, user, ""))
		app.run(t, tenant, fill(granted, user, ""))
		require.Equal(t, "2", runner.run(t, tenant, `select custody.enforce_retention('consent', 100)`))
	})

	t.Run("many, as they lie", func(t *testing.T) {
		const people = 2000
		app.run(t, tenant, fmt.Sprintf(`select custody.record_consent('many' || n, 'mail', false, '1', p_occurred_at => now() - interval '8 years') from generate_series(1, %d) n`, people))
		app.run(t, tenant, fmt.Sprintf(`select custody.record_consent('many' || n, 'mail', true, '1', p_occurred_at => now() - interval '9 years') from generate_series(1, %d) n`, people))
		// Read from the first page on, the withdrawals come before their grants.
		_, err := b.admin.Exec(t.Context(), "analyze custody_data.consent_records; alter role custody_runner in database "+b.Name+" set enable_nestloop = off")
		require.NoError(t, err)
		require.Equal(t, fmt.Sprint(2*people), b.session(t, "custody_runner").run(t, tenant, `select custody.enforce_retention('consent', 100000)`))
	})

	t.Run("one by one", func(t *testing.T) {
		user := newUser("zoe")
		app.run(t, tenant, fill(withdrawn, user, ""))
		app.run(t, tenant, fill(granted, user, ""))
		for n := 1; n >= 0; n-- {
			require.Equal(t, "1", runner.run(t, tenant, `select custody.enforce_retention('consent', 1)`))
			require.Equal(t, n, ask[int](t, b, left, user))
			require.Equal(t, "f", app.run(t, tenant, fill(`select custody.has_consent(:user, 'mail')`, user, "")))
		}
	})

	t.Run("under a hold on the grant", func(t *testing.T) {
		user := newUser("zoe")
		grant := app.run(t, tenant, fill(granted, user, ""))
		app.run(t, tenant, fill(withdrawn, user, ""))
		hold := dpo.run(t, tenant, fmt.Sprintf(`select custody.place_hold('{"table":"consent_records","row":"%s"}', 'case', 'claim')`, grant))
		require.Equal(t, "0", runner.run(t, tenant, `select custody.enforce_retention('consent', 100)`))
		require.Equal(t, "f", app.run(t, tenant, fill(`select custody.has_consent(:user, 'mail')`, user, "")))
		require.Equal(t, 2, ask[int](t, b, left, user))
		dpo.run(t, tenant, fmt.Sprintf(`select custody.release_hold('%s', 'over')`, hold))
		require.Equal(t, "2", runner.run(t, tenant, `select custody.enforce_retention('consent', 100)`))
	})
}
