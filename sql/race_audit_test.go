package sql_test

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

// ensure makes the partitions of some months of one year.
func ensure(year, from, to int) string {
	return fmt.Sprintf(`select custody.ensure_audit_partitions('%[1]d-%02[2]d-10', '%[1]d-%02[3]d-10')`, year, from, to)
}

// requirePartitions looks at whether each month is there once and stands as its guards should.
func (b *bed) requirePartitions(t *testing.T, year, months int) {
	t.Helper()
	require.Equal(t, months, ask[int](t, b, `select count(*) from pg_catalog.pg_inherits i join pg_catalog.pg_class c on c.oid = i.inhrelid
		where i.inhparent = 'custody_data.audit_logs'::regclass and c.relname like $1`, fmt.Sprintf("audit_logs_%d_%%", year)))
	b.requireNoFindings(t)
}

// requireNoFindings reads custody_check.findings as the superuser, so nothing is hidden.
func (b *bed) requireNoFindings(t *testing.T) {
	t.Helper()
	require.Empty(t, ask[[]string](t, b, `
		select coalesce(pg_catalog.array_agg(pg_catalog.concat_ws(' ', f.id, f.object, f.detail)), '{}') from custody_check.findings f
		-- the tests' own cluster keeps the migration login open
		where f.id <> 'migrator-open'`))
}

// Serial orders: one of them makes the month, everybody finds it.
func TestPartitionMakersAtOnce(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	year := 2000
	// An event of an import may be of any month; it goes in by the worker's own right.
	event := func(month int) string {
		return fmt.Sprintf(`select custody.ensure_audit_partitions('%[1]d-%02[2]d-10', '%[1]d-%02[2]d-10');
			insert into custody_data.audit_logs (tenant_id, log_entry_id, occurred_at, actor_id, action, import_id)
			values ('acme', gen_random_uuid(), '%[1]d-%02[2]d-10', gen_random_uuid(), 'account.login', gen_random_uuid())`, year, month)
	}
	events := func() int {
		return ask[int](t, b, `select count(*) from custody_data.audit_logs where extract(year from occurred_at) = $1`, year)
	}

	for _, end := range []string{"commit", "rollback"} {
		t.Run("two makers, "+end, func(t *testing.T) {
			first, second := b.session(t, "custody_runner"), b.session(t, "custody_runner")
			year++
			first.begin(t, "")
			require.Equal(t, "2", first.must(t, ensure(year, 1, 2)))
			second.begin(t, "")
			waiting := second.send(t.Context(), ensure(year, 1, 3))
			b.requireWaiting(t, waiting, first)
			first.must(t, end)
			made, err := waiting.settle(t)
			require.NoError(t, err)
			require.Equal(t, map[string]string{"commit": "1", "rollback": "3"}[end], made)
			b.requirePartitions(t, year, 3)
		})

		t.Run("a maker and an appender, "+end, func(t *testing.T) {
			first, second := b.session(t, "custody_runner"), b.session(t, "custody_runner")
			year++
			first.begin(t, "")
			first.must(t, ensure(year, 1, 1))
			second.begin(t, "")
			waiting := second.send(t.Context(), event(1))
			b.requireWaiting(t, waiting, first)
			first.must(t, end)
			_, err := waiting.settle(t)
			require.NoError(t, err)
			b.requirePartitions(t, year, 1)
			require.Equal(t, 1, events())
		})

		// Such a session has locked the trail and the catalog already, and so takes no
		// notice of what others made since.
		t.Run("a maker and an appender in the middle of its transaction, "+end, func(t *testing.T) {
			first, second := b.session(t, "custody_runner"), b.session(t, "custody_runner")
			year++
			first.run(t, tenant, ensure(year, 1, 1))
			second.begin(t, "")
			second.must(t, event(1))
			second.must(t, `select count(*) from custody_data.audit_logs, pg_catalog.pg_class where false`)
			first.begin(t, "")
			first.must(t, ensure(year, 2, 2))
			waiting := second.send(t.Context(), event(2))
			b.requireWaiting(t, waiting, first)
			first.must(t, end)
			_, err := waiting.settle(t)
			require.NoError(t, err)
			b.requirePartitions(t, year, 2)
			require.Equal(t, 2, events())
		})

		t.Run("two appenders, "+end, func(t *testing.T) {
			first, second := b.session(t, "custody_runner"), b.session(t, "custody_runner")
			year++
			first.run(t, tenant, ensure(year, 1, 1))
			for _, s := range []*session{first, second} {
				s.begin(t, "")
				s.must(t, event(1))
			}
			first.must(t, event(2))
			waiting := second.send(t.Context(), event(2))
			b.requireWaiting(t, waiting, first)
			first.must(t, end)
			_, err := waiting.settle(t)
			require.NoError(t, err)
			b.requirePartitions(t, year, 2)
			require.Equal(t, map[string]int{"commit": 4, "rollback": 2}[end], events())
		})
	}

	t.Run("an appender of a month that is there waits for no maker", func(t *testing.T) {
		first, second := b.session(t, "custody_runner"), b.session(t, "custody_runner")
		year++
		first.begin(t, "")
		first.must(t, ensure(year, 1, 12))
		second.run(t, tenant, `select custody.record_audit_event('account.login')`)
		first.commit(t)
	})

	t.Run("many at once", func(t *testing.T) {
		year++
		sessions := b.sessions(t, "custody_runner", 6)
		made, errs := make([]string, len(sessions)), make([]error, len(sessions))
		var calls []func()
		for i, s := range sessions {
			calls = append(calls, func() {
				if i%2 == 0 {
					made[i], errs[i] = s.tryRun(t.Context(), tenant, "", ensure(year, 1+i, 12))
					return
				}
				for month := 12; month > 0; month-- { // in an order of its own
					_, err := s.tryRun(t.Context(), tenant, "", event(month))
					errs[i] = errors.Join(errs[i], err)
				}
			})
		}
		together(calls...)
		for _, err := range errs {
			require.NoError(t, err)
		}
		b.requirePartitions(t, year, 12)
		require.Equal(t, 36, events())
		t.Log(made)
	})
}

// The first event of a month, when the daily job has not been running: many live
// appenders find it missing at the same moment.
func TestAppendersMakeTheirMonth(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	sessions := b.sessions(t, "custody_app", 6)
	for _, s := range sessions {
		s.run(t, tenant, `select custody.record_audit_event('account.login')`) // plans made, partitions known
	}
	for range 5 {
		_, err := b.admin.Exec(t.Context(), `
			do $$ declare v_name text;
			begin
			  for v_name in select inhrelid::regclass::text from pg_catalog.pg_inherits where inhparent = 'custody_data.audit_logs'::regclass loop
			    execute 'drop table ' || v_name;
			  end loop;
			end $$`)
		require.NoError(t, err)
		errs := make([]error, len(sessions))
		var calls []func()
		for i, s := range sessions {
			calls = append(calls, func() {
				_, errs[i] = s.tryRun(t.Context(), tenant, "", `select custody.record_audit_event('account.login'), custody.put_preferences('pat', '{}')`)
			})
		}
		together(calls...)
		for _, err := range errs {
			require.NoError(t, err)
		}
		require.Equal(t, len(sessions), ask[int](t, b, `select count(*) from custody_data.audit_logs where action = 'account.login'`))
		require.Equal(t, 1, ask[int](t, b, `select count(*) from custody_data.audit_logs where action = 'partition.create'`))
	}
}

// Serial orders: the first event of an id stands; whoever says the same gets its
// id, whoever says something else is refused.
func TestOneLogEntryIDFromManySessions(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	// One actor, so that content is what differs.
	event := func(id uuid.UUID, count int) string {
		return fmt.Sprintf(`select custody.set_context('acme', 'clerk'), custody.record_audit_event('phi.access', p_metadata => '{"count":%d}', p_log_entry_id => '%s')`, count, id)
	}
	stored := func(id uuid.UUID) string {
		return ask[string](t, b, `select coalesce(string_agg(metadata ->> 'count', ',' order by recorded_at), '') from custody_data.audit_logs where log_entry_id = $1`, id)
	}
	consent := func(id uuid.UUID, version int) string {
		return fmt.Sprintf(`select custody.record_consent('pat', 'mail', true, '%d', p_consent_id => '%s')`, version, id)
	}
	consents := func(id uuid.UUID) string {
		return ask[string](t, b, `select coalesce(string_agg(policy_version, ','), '') from custody_data.consent_records where consent_id = $1`, id)
	}

	for name, kind := range map[string]struct {
		record func(uuid.UUID, int) string
		stored func(uuid.UUID) string
	}{"audit event": {event, stored}, "consent": {consent, consents}} {
		t.Run(name, func(t *testing.T) {
			first, second := b.session(t, "custody_app"), b.session(t, "custody_app")
			for _, c := range []struct {
				end     string
				content int
				code    string
				stored  string
			}{{"commit", 1, "", "1"}, {"commit", 2, "PC010", "1"}, {"rollback", 1, "", "1"}, {"rollback", 2, "", "2"}} {
				id := uuid.New()
				first.begin(t, "")
				first.must(t, kind.record(id, 1))
				second.begin(t, "")
				waiting := second.send(t.Context(), kind.record(id, c.content))
				b.requireWaiting(t, waiting, first)
				first.must(t, c.end)
				_, err := waiting.settle(t)
				if c.code == "" {
					require.NoError(t, err)
				} else {
					requireCode(t, err, c.code)
				}
				require.Equal(t, c.stored, kind.stored(id), "%+v", c)
			}

			sessions := b.sessions(t, "custody_app", 6)
			for round := range rounds {
				id, different := uuid.New(), round%2 == 1
				errs := make([]error, len(sessions))
				var calls []func()
				for i, s := range sessions {
					content := 1
					if different {
						content += i
					}
					calls = append(calls, func() { _, errs[i] = s.tryRun(t.Context(), tenant, "", kind.record(id, content)) })
				}
				together(calls...)
				accepted := 0
				for i, err := range errs {
					if err == nil {
						accepted++
						if different {
							require.Equal(t, fmt.Sprint(1+i), kind.stored(id))
						}
					} else {
						requireCode(t, err, "PC010")
					}
				}
				require.NotContains(t, kind.stored(id), ",", "one row")
				if different {
					require.Equal(t, 1, accepted)
				} else {
					require.Equal(t, len(sessions), accepted)
				}
			}
		})
	}

	t.Run("a snapshot from before is told to try again", func(t *testing.T) {
		id := uuid.New()
		first, second := b.session(t, "custody_app"), b.session(t, "custody_app")
		require.NoError(t, second.tryBegin(t.Context(), "isolation level repeatable read", tenant, ""))
		first.run(t, tenant, event(id, 1))
		_, err := second.send(t.Context(), event(id, 1)).settle(t)
		requireCode(t, err, "40001")
		require.Equal(t, "1", stored(id))
	})
}

// Serial orders: the request is there once, and a retry gets it whenever it comes,
// before, during or after the erasure.
func TestARequestRetried(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	app, dpo, runner := b.session(t, "custody_app"), b.session(t, "custody_dpo"), b.session(t, "custody_runner")
	again := func(v victim) string {
		return fill(fmt.Sprintf(`select custody.request_erasure(:user, 'asked', '%s')`, v.request), v.user, "")
	}

	t.Run("many at once", func(t *testing.T) {
		sessions := b.sessions(t, "custody_app", 6)
		for round := range rounds {
			kind := []string{"request_erasure", "request_export"}[round%2]
			user, id := newUser("sam"), uuid.New()
			app.run(t, tenant, fill(`select custody.put_preferences(:user, '{}')`, user, ""))
			outs, errs := make([]string, len(sessions)), make([]error, len(sessions))
			var calls []func()
			for i, s := range sessions {
				calls = append(calls, func() {
					outs[i], errs[i] = s.tryRun(t.Context(), tenant, user, fill(fmt.Sprintf(`select custody.%s(:user, 'asked', '%s')`, kind, id), user, ""))
				})
			}
			together(calls...)
			for i := range sessions {
				require.NoError(t, errs[i])
				require.Equal(t, id.String(), outs[i])
			}
			require.Equal(t, 1, ask[int](t, b, `select count(*) from custody_data.requests where request_id = $1`, id))
			require.Equal(t, 1, ask[int](t, b, `select count(*) from custody_data.audit_logs where action = 'request.receive' and resource_id = $1`, id.String()))
		}
	})

	t.Run("with the id of another's request", func(t *testing.T) {
		v, other := b.newVictim(t, app, dpo), b.newVictim(t, app, dpo)
		other.request = v.request
		dpo.refused(t, "PC010", tenant, again(other))
	})

	for _, end := range []string{"commit", "rollback"} {
		t.Run("while the erasure runs, "+end, func(t *testing.T) {
			v := b.newVictim(t, app, dpo)
			runner.begin(t, "")
			runner.must(t, v.erase())
			app.begin(t, v.user)
			retry := app.send(t.Context(), again(v))
			b.requireWaiting(t, retry, runner)
			runner.must(t, end)
			out, err := retry.settle(t)
			require.NoError(t, err)
			require.Equal(t, v.request, out)
		})
	}

	t.Run("at once with the erasure", func(t *testing.T) {
		for range rounds {
			v := b.newVictim(t, app, dpo)
			var out, id string
			var eraseErr, err error
			together(
				func() { out, eraseErr = runner.tryRun(t.Context(), tenant, "", v.erase()) },
				func() { id, err = app.tryRun(t.Context(), tenant, v.user, again(v)) },
			)
			require.NoError(t, eraseErr)
			require.NoError(t, err)
			require.Equal(t, v.request, id)
			b.requireErased(t, v, write{}, nil, readCertificate(t, out))
		}
	})

	// Serial orders: cancelled and nobody erased, or erased and the cancellation refused.
	t.Run("its cancellation meets the erasure", func(t *testing.T) {
		order := map[string]int{}
		for range rounds {
			v := b.newVictim(t, app, dpo)
			var out string
			var eraseErr, err error
			together(
				func() { out, eraseErr = runner.tryRun(t.Context(), tenant, "", v.erase()) },
				func() {
					_, err = app.tryRun(t.Context(), tenant, v.user, fmt.Sprintf(`select custody.cancel_request('%s')`, v.request))
				},
			)
			status := ask[string](t, b, `select status from custody_data.requests where request_id = $1::text::uuid`, v.request)
			order[status]++
			if status == "cancelled" {
				require.NoError(t, err)
				requireCode(t, eraseErr, "PC018")
				require.Equal(t, v.identity, b.identity(t, v.user))
			} else {
				require.NoError(t, eraseErr)
				require.Contains(t, []string{"PC016", "PC018"}, codeOf(err), "%v", err)
				b.requireErased(t, v, write{}, nil, readCertificate(t, out))
			}
		}
		t.Log(order)
	})

	// Serial orders: the second request is there, and its erasure finds the person
	// gone; or the person was erased before it, and is unknown.
	t.Run("another request meets the erasure", func(t *testing.T) {
		for _, end := range []string{"commit", "rollback"} {
			v := b.newVictim(t, app, dpo)
			v2 := v
			runner.begin(t, "")
			runner.must(t, v.erase())
			app.begin(t, v.user)
			asking := app.send(t.Context(), fill(`select custody.request_erasure(:user)`, v.user, ""))
			b.requireWaiting(t, asking, runner)
			runner.must(t, end)
			var err error
			v2.request, err = asking.settle(t)
			if end == "commit" {
				requireCode(t, err, "PC011")
			} else {
				require.NoError(t, err)
				b.requireErased(t, v2, write{}, nil, readCertificate(t, runner.run(t, tenant, v2.erase())))
			}
		}
	})
}

// No update is lost: what was accepted is there, and the version counts it.
func TestNoUpdateIsLost(t *testing.T) {
	t.Parallel()
	noUpdateIsLost(t, newBed(t))
}

func noUpdateIsLost(t *testing.T, b *bed) {
	const clients, changes, patience = 6, 8, 1000
	const preferencesVersion = `select p.version from custody_data.user_preferences p join custody_data.identities i using (tenant_id, identity_id) where i.user_id = 'pat'`
	sessions := b.sessions(t, "custody_app", clients)
	app := sessions[0]
	// Each client makes its changes, reading again whenever its version is stale.
	run := func(t *testing.T, read, change func(s *session, n int) string) (stale int) {
		t.Helper()
		errs, tries := make([]error, clients), make([]int, clients)
		var calls []func()
		for i, s := range sessions {
			calls = append(calls, func() {
				for n := 0; n < changes && errs[i] == nil; {
					version := ""
					if read != nil {
						if version, errs[i] = s.tryRun(t.Context(), tenant, "", read(s, n)); errs[i] != nil {
							return
						}
					}
					tries[i]++
					out, err := s.tryRun(t.Context(), tenant, "", strings.ReplaceAll(change(s, i*changes+n), ":version", version))
					before, _ := strconv.Atoi(version)
					after, _ := strconv.Atoi(out)
					switch {
					case err == nil && before > 0 && after > 0 && after != before+1:
						errs[i] = fmt.Errorf("version %d was changed, %d was read", after-1, before)
					case err == nil:
						n++
					case codeOf(err) != "PC014" || read == nil || tries[i] > patience:
						errs[i] = err
					}
				}
			})
		}
		together(calls...)
		for i, err := range errs {
			require.NoError(t, err)
			stale += tries[i] - changes
		}
		return stale
	}
	const all = clients * changes

	for name, c := range map[string]struct{ put, read, change, keys, version string }{
		"patch_profile": {
			`select custody.put_profile('pat', '{"attributes":{}}')`,
			`select custody.get_profile('pat') ->> 'version'`,
			`select custody.patch_profile('pat', '{"attributes":{"k%d":1}}'%s)`,
			`select count(*) from jsonb_object_keys(custody.get_profile('pat') -> 'attributes')`,
			`select custody.get_profile('pat') ->> 'version'`,
		},
		"patch_preferences": {
			`select custody.put_preferences('pat', '{}')`,
			preferencesVersion,
			`select custody.patch_preferences('pat', '{"k%d":1}'%s)`,
			`select count(*) from jsonb_object_keys(custody.get_preferences('pat'))`,
			preferencesVersion,
		},
		"append_message": {
			`select custody.save_conversation('pat', 'c', '[{"role":"user","text":"k"}]')`,
			`select custody.get_conversation('pat', 'c') ->> 'version'`,
			`select custody.append_message('pat', 'c', '{"role":"user","text":"k%d"}'%s)`,
			`select count(distinct m ->> 'text') - 1 from jsonb_array_elements(custody.get_conversation('pat', 'c') -> 'messages') m`,
			`select custody.get_conversation('pat', 'c') ->> 'version'`,
		},
	} {
		for _, versioned := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, p_if_version %v", name, versioned), func(t *testing.T) {
				app.run(t, tenant, c.put)
				app.run(t, tenant, `select custody.delete_profile('pat'), custody.delete_preferences('pat'), custody.delete_conversation('pat', 'c')`)
				app.run(t, tenant, c.put)
				var read func(*session, int) string
				argument := ""
				if versioned {
					read, argument = func(*session, int) string { return c.read }, ", p_if_version => :version"
				}
				stale := run(t, read, func(_ *session, n int) string { return fmt.Sprintf(c.change, n, argument) })
				require.Equal(t, fmt.Sprint(all), app.run(t, tenant, c.keys), "each accepted change is there")
				require.Equal(t, fmt.Sprint(all+1), app.run(t, tenant, c.version))
				if versioned {
					require.Positive(t, stale, "nobody ever met anybody: the test shows nothing")
				}
			})
		}
	}

	// A whole conversation or title is replaced, so without p_if_version the last
	// one stays; with it nobody overwrites what they have not read.
	t.Run("a counter in a conversation, p_if_version", func(t *testing.T) {
		app.run(t, tenant, `select custody.save_conversation('pat', 'n', '[{"role":"user","text":"x"}]', '0')`)
		for _, change := range []string{
			`select custody.save_conversation('pat', 'n', '[{"role":"user","text":"x"}]', :title, :v)`,
			`select custody.update_conversation('pat', 'n', :title, :v)`,
		} {
			before := app.run(t, tenant, `select custody.get_conversation('pat', 'n') ->> 'title'`)
			run(t, func(*session, int) string {
				return `select concat_ws(', ', c ->> 'version', c ->> 'title') from custody.get_conversation('pat', 'n') c`
			}, func(*session, int) string {
				return strings.NewReplacer(":title", "(split_part(':version', ', ', 2)::int + 1)::text", ":v)", "split_part(':version', ', ', 1)::int)").Replace(change)
			})
			after := app.run(t, tenant, `select custody.get_conversation('pat', 'n') ->> 'title'`)
			require.Equal(t, fmt.Sprint(all), app.run(t, tenant, fmt.Sprintf(`select %s - %s`, after, before)))
		}
	})

	t.Run("put_profile", func(t *testing.T) {
		app.run(t, tenant, `select custody.delete_profile('pat')`)
		run(t, nil, func(s *session, n int) string {
			return fmt.Sprintf(`select custody.put_profile('pat', '{"full_name":"name %[1]d","city":"city %[1]d"}')`, n)
		})
		require.Equal(t, fmt.Sprint(all), app.run(t, tenant, `select custody.get_profile('pat') ->> 'version'`), "the version counts each put")
		require.Equal(t, "t", app.run(t, tenant, `select substr(p ->> 'full_name', 6) = substr(p ->> 'city', 6) from custody.get_profile('pat') p`), "one put, not a mixture")
		require.Equal(t, all, ask[int](t, b, `
			with events as (
			  select a.action, a.occurred_at from custody_data.audit_logs a join custody_data.identities i on i.identity_id = a.subject_id
			  where i.user_id = 'pat' and a.resource_type = 'user_profiles'
			)
			select count(*) from events where action not in ('record.delete', 'record.read') and occurred_at > (select max(occurred_at) from events where action = 'record.delete')`))
	})
}
