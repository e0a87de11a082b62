package sql_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
)

// Behind a pooler in transaction mode a client has a server connection for one
// transaction only, and many clients have the same ones in turn.

func TestThePoolerSuite(t *testing.T) {
	t.Parallel()
	direct := newBed(t)
	b := direct.pooled(t)
	t.Run("an erasure meets writes", func(t *testing.T) {
		for _, w := range writes {
			if w.table != "" {
				t.Run(w.name, func(t *testing.T) { erasureMeetsWrite(t, b, w) })
			}
		}
	})
	t.Run("a new person meets itself", func(t *testing.T) { newPersonMeetsItself(t, b) })
	t.Run("no update is lost", func(t *testing.T) { noUpdateIsLost(t, b) })

	// What a transaction of ours leaves behind would meet the next client.
	require.Zero(t, ask[int](t, b, `select count(*) from pg_catalog.pg_locks l where l.locktype = 'advisory' and l.database = (select oid from pg_catalog.pg_database where datname = pg_catalog.current_database())`))
	require.Zero(t, ask[int](t, b, `select count(*) from pg_catalog.pg_class where relpersistence = 't'`))
	direct.requireNoFindings(t)
}

// One client at a time has the same server connection as the one before it.
func TestNoContextReachesTheNextClient(t *testing.T) {
	t.Parallel()
	b := newBed(t).pooled(t)
	first, second := b.session(t, "custody_app"), b.session(t, "custody_app")
	first.run(t, tenant, `select custody.put_preferences('pat', '{"theme":"dark"}'), custody.record_consent('pat', 'mail', true, '1')`)
	const server = `select pg_catalog.pg_backend_pid()`
	const set = `select custody.set_context('acme', 'clerk', 'support', 'pat')`
	const wholeContext = `select pg_catalog.concat(custody.current_tenant(), custody.current_actor(), custody.current_actor_id(), custody.current_purpose(),
		custody.current_subject(), custody.current_subject_id(), custody.has_subject(), custody_data.is_unlocked(), pg_catalog.current_setting('custody.kek', true))`

	enter := func(s *session) {
		s.must(t, "begin")
		s.must(t, set)
		require.NoError(t, s.unlock(t.Context(), tenant))
	}

	for name, leave := range map[string]func(s *session){
		"commit":     func(s *session) { enter(s); s.must(t, "commit") },
		"rollback":   func(s *session) { enter(s); s.must(t, "rollback") },
		"autocommit": func(s *session) { s.must(t, set) },
		"an error": func(s *session) {
			enter(s)
			_, err := s.try(t.Context(), `select custody.record_audit_event('no.such.action')`)
			requireCode(t, err, "PC004")
			s.must(t, "rollback")
		},
		"one message": func(s *session) { s.must(t, set+`; select custody.has_consent('pat', 'mail')`) },
	} {
		t.Run(name, func(t *testing.T) {
			leave(first)
			pid := first.must(t, server)
			require.Equal(t, pid, second.must(t, server), "the test needs both on one connection")
			require.Equal(t, "ff", second.must(t, wholeContext))
			_, err := second.try(t.Context(), `select custody.get_preferences('pat')`)
			requireCode(t, err, "PC001")
			require.Equal(t, "0", second.must(t, `select count(*) from custody_data.user_preferences`))
			require.Equal(t, pid, second.must(t, server))
		})
	}

	t.Run("a client that goes in the middle", func(t *testing.T) {
		gone := b.session(t, "custody_app")
		enter(gone)
		pid := gone.must(t, server)
		require.NoError(t, gone.PgConn().Conn().Close())
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		for ended := false; !ended; {
			require.NoError(t, b.admin.QueryRow(ctx, `select not exists (select from pg_catalog.pg_stat_activity where pid = $1::text::int)`, pid).Scan(&ended))
		}
		require.Equal(t, "ff", second.must(t, wholeContext))
	})

	// A client that sets our settings for its session, which it must not, cannot
	// change the context of one that sets its own.
	t.Run("a client that leaves settings of its own", func(t *testing.T) {
		first.must(t, `select pg_catalog.set_config('custody.' || n, v, false) from (values ('tenant', 'other'), ('actor', 'x'),
			('actor_id', '00000000-0000-0000-0000-000000000000'), ('purpose', 'x'), ('subject', 'x'), ('subject_id', '00000000-0000-0000-0000-000000000000')) s (n, v)`)
		require.Equal(t, first.must(t, server), second.must(t, server))
		second.must(t, "begin")
		second.must(t, `select custody.set_context('acme', 'somebody new')`)
		require.Equal(t, "acme|somebody new", second.must(t, whoAmI))
		require.NoError(t, second.unlock(t.Context(), tenant))
		require.Equal(t, `{"theme": "dark"}`, second.must(t, `select custody.get_preferences('pat')`))
		second.must(t, `select custody.record_audit_event('account.login')`)
		second.must(t, "commit")
		require.Equal(t, "somebody new", ask[string](t, b, `select i.user_id from custody_data.audit_logs a join custody_data.identities i on i.identity_id = a.actor_id
			where a.action = 'account.login'`))
		first.must(t, "discard all")
	})
}

// Clients of two tenants share four connections. Each must see its own rows
// only, and none outside of a context.
func TestManyClientsOfOnePooler(t *testing.T) {
	t.Parallel()
	b := newBed(t).pooled(t)
	const clients, turns = 12, 30
	sessions := b.sessions(t, "custody_app", clients)
	var mu sync.Mutex
	served := map[string]map[int]bool{} // clients by server process
	errs := make([]error, clients)
	var calls []func()
	for i, s := range sessions {
		calls = append(calls, func() {
			in, user := []string{"acme", "other"}[i%2], fmt.Sprintf("client %d", i)
			subject := []string{"", user}[i/2%2]
			for turn := range turns {
				err := func() error {
					out, err := s.try(t.Context(), whoAmI)
					if err != nil || out != "" {
						return fmt.Errorf("turn %d: context %q outside of a transaction: %w", turn, out, err)
					}
					if _, err := s.try(t.Context(), `select custody.get_preferences('x')`); codeOf(err) != "PC001" {
						return fmt.Errorf("turn %d: %w", turn, err)
					}
					if err := s.tryBegin(t.Context(), "", in, subject); err != nil {
						return err
					}
					pid, err := s.try(t.Context(), `select pg_catalog.pg_backend_pid()`)
					if err != nil {
						return err
					}
					mu.Lock()
					if served[pid] == nil {
						served[pid] = map[int]bool{}
					}
					served[pid][i] = true
					mu.Unlock()
					if _, err := s.try(t.Context(), fmt.Sprintf(`select custody.put_preferences('%s', '{"tenant":"%s","client":%d}')`, user, in, i)); err != nil {
						return err
					}
					foreign, err := s.try(t.Context(), fmt.Sprintf(`select count(*) from custody_data.user_preferences p cross join lateral custody_data.open_preferences(p) o
						where p.tenant_id <> '%[1]s' or o ->> 'tenant' <> '%[1]s' or ('%[2]s' <> '' and o ->> 'client' <> '%[3]d')`, in, subject, i))
					if err != nil || foreign != "0" {
						return fmt.Errorf("turn %d: %s foreign rows: %w", turn, foreign, err)
					}
					_, err = s.try(t.Context(), []string{"commit", "rollback"}[turn%2])
					return err
				}()
				if err != nil {
					errs[i] = err
					return
				}
			}
		})
	}
	together(calls...)
	require.NoError(t, errors.Join(errs...))
	require.LessOrEqual(t, len(served), 4)
	shared := 0
	for _, list := range served {
		shared = max(shared, len(list))
	}
	require.Greater(t, shared, 2, "the clients never shared a connection: the test shows nothing")
}

// The API with bound parameters, as an application calls it through a pool of
// its own, in each way that needs no statement prepared by name. JSON goes as
// text: where the types of parameters are not asked for, pgx does not know better.
func TestTheAPIThroughThePooler(t *testing.T) {
	t.Parallel()
	b := newBed(t).pooled(t)
	for _, mode := range []string{"exec", "cache_describe", "describe_exec", "simple_protocol"} {
		t.Run(mode, func(t *testing.T) {
			connect := func(login string) *pgxpool.Pool {
				u, err := url.Parse(b.URLs[login])
				require.NoError(t, err)
				q := u.Query()
				q.Set("default_query_exec_mode", mode)
				q.Set("pool_max_conns", "8")
				u.RawQuery = q.Encode()
				pool, err := pgxpool.New(t.Context(), u.String())
				require.NoError(t, err)
				t.Cleanup(pool.Close)
				return pool
			}
			app, officer, worker := connect("custody_app"), connect("custody_dpo"), connect("custody_runner")
			call := func(pool *pgxpool.Pool, query string, args ...any) (out *string, err error) {
				err = pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
					if _, err := tx.Exec(t.Context(), `select custody.set_context($1, $2, $3)`, tenant, "clerk", "test"); err != nil {
						return err
					}
					// The key is bound whatever the mode: written into the statement it would be refused.
					key := []any{tenantKey(tenant)}
					if mode == "simple_protocol" {
						key = []any{pgx.QueryExecModeExec, tenantKey(tenant)}
					}
					if _, err := tx.Exec(t.Context(), `select custody.unlock($1)`, key...); err != nil {
						return err
					}
					return tx.QueryRow(t.Context(), query, args...).Scan(&out)
				})
				return out, err
			}
			var wg sync.WaitGroup
			errs := make([]error, 8)
			for i := range errs {
				wg.Go(func() {
					user := newUser("pool")
					event, request := uuid.New(), uuid.New()
					for _, c := range []struct {
						pool  *pgxpool.Pool
						query string
						args  []any
					}{
						{app, `select custody.put_profile($1, $2)::text`, []any{user, `{"full_name": "Pat Pool"}`}},
						{app, `select custody.patch_profile($1, $2, $3)::text`, []any{user, `{"city": "Bern"}`, 1}},
						{app, `select custody.get_profile($1) ->> 'city'`, []any{user}},
						{app, `select custody.save_conversation($1, $2, $3)`, []any{user, "c", `[{"role": "user", "text": "it's \\ \"quoted\""}]`}},
						{app, `select custody.record_consent($1, $2, $3, $4, p_occurred_at => $5)::text`, []any{user, "mail", true, "1", time.Now()}},
						{app, `select custody.record_audit_event($1, p_subject_user_id => $2, p_metadata => $3, p_log_entry_id => $4)::text`,
							[]any{"account.login", user, `{"method": "password"}`, event}},
						{app, `select custody.record_audit_event($1, p_subject_user_id => $2, p_metadata => $3, p_log_entry_id => $4)::text`,
							[]any{"account.login", user, `{"method": "password"}`, event}},
						{officer, `select custody.request_erasure($1, $2, $3)::text`, []any{user, "asked", request}},
						{worker, `select custody.search_residue($1)::text`, []any{request}},
						{worker, `select custody.erase_subject($1) ->> 'status'`, []any{request}},
						{worker, `select custody.verify_erasure($1) ->> 'clean'`, []any{request}},
					} {
						if _, errs[i] = call(c.pool, c.query, c.args...); errs[i] != nil {
							errs[i] = fmt.Errorf("%s: %w", c.query, errs[i])
							return
						}
					}
					if left, err := call(app, `select custody.get_profile($1)::text`, user); err != nil || left != nil {
						errs[i] = fmt.Errorf("after the erasure the profile is %v: %w", left, err)
					}
				})
			}
			wg.Wait()
			require.NoError(t, errors.Join(errs...))
		})
	}
}

// NOTIFY goes out through the pooler when its transaction commits, and only
// then; whoever listens needs a connection of its own.
func TestNotificationsThroughThePooler(t *testing.T) {
	t.Parallel()
	direct := newBed(t)
	b := direct.pooled(t)
	listener, sender := direct.session(t, "custody_runner"), b.session(t, "custody_runner")
	listener.must(t, "listen custody_test")
	sender.must(t, "begin; notify custody_test, 'undone'; rollback")
	sender.must(t, "begin; notify custody_test, 'done'; commit")
	notification, err := listener.WaitForNotification(t.Context())
	require.NoError(t, err)
	require.Equal(t, "done", notification.Payload)
}
