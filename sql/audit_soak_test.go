package sql_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"pgcustody/cmd/devstack/stack"
	"pgcustody/cmd/devstack/stack/stacktest"
	"pgcustody/jobs/serverlog"
)

// Behind a pooler in transaction mode many clients have few sessions of the server in turn. Each line
// of pgaudit's on a personal table still has its context: the line of our own in the same session and
// transaction, which says who it was.
func TestEveryAuditedReadHasItsContext(t *testing.T) {
	t.Parallel()
	a := newAudited(t)
	a.run(t, `select custody.register_tenant('acme', 'Acme'), custody.register_tenant('other', 'Other')`)
	// What comes before is another's.
	since := len(a.records(t))
	urls := stacktest.PgBouncer(t, &stacktest.Database{Name: stack.Database, Stack: a.Stack, URLs: map[string]string{app: a.URL(app, stack.Database)}})
	config, err := pgx.ParseConfig(urls[app])
	require.NoError(t, err)
	config.DefaultQueryExecMode = pgx.QueryExecModeExec

	const clients, turns, reads = 64, 6, 3
	errs := make([]error, clients)
	var calls []func()
	for i := range clients {
		calls = append(calls, func() {
			errs[i] = func() error {
				conn, err := pgx.ConnectConfig(t.Context(), config)
				if err != nil {
					return err
				}
				defer conn.Close(t.Context())
				for turn := range turns {
					tx, err := conn.Begin(t.Context())
					if err != nil {
						return err
					}
					for _, statement := range []string{
						fmt.Sprintf("select custody.set_context('%s', 'client %d', 'turn %d')", []string{"acme", "other"}[i%2], i, turn),
						"select user_id from custody_data.identities",
						"savepoint s",
						"select p.email from custody_data.user_profiles p",
						"rollback to s",
						"do $$ begin perform user_id from custody_data.identities; end $$",
					} {
						if _, err := tx.Exec(t.Context(), statement); err != nil {
							return fmt.Errorf("turn %d: %s: %w", turn, statement, err)
						}
					}
					if turn%2 == 0 {
						err = tx.Commit(t.Context())
					} else {
						err = tx.Rollback(t.Context())
					}
					if err != nil {
						return err
					}
				}
				return nil
			}()
		})
	}
	together(calls...)
	require.NoError(t, errors.Join(errs...))

	type transaction struct{ session, vxid string }
	type context struct{ What, Tenant, Actor, Purpose, Login string }
	var contexts map[transaction]context
	var audited []transaction
	var messages, sessions []string
	read := func() {
		contexts, audited, messages, sessions = map[transaction]context{}, nil, nil, nil
		for _, r := range a.records(t)[since:] {
			at := transaction{string(r.SessionID), string(r.VXID)}
			var audit serverlog.Audit
			switch {
			case string(r.User) != app:
			case audit.Read(r) == serverlog.Genuine:
				if audit.Object && strings.HasPrefix(string(audit.Name), "custody_data.") {
					audited = append(audited, at)
				}
			case bytes.HasPrefix(r.Message, []byte("PGCUSTODY ")):
				var c context
				_, text, _ := strings.Cut(strings.TrimPrefix(string(r.Message), "PGCUSTODY "), " ")
				require.NoError(t, json.Unmarshal([]byte(text), &c))
				if c.What == "context" {
					_, twice := contexts[at]
					require.False(t, twice, "two contexts in one transaction")
					contexts[at] = c
				}
				messages, sessions = append(messages, string(r.Message)), append(sessions, string(r.SessionID))
			}
		}
	}
	require.Eventually(t, func() bool { read(); return len(audited) >= clients*turns*reads }, 5*time.Minute, 100*time.Millisecond,
		"reads of personal tables are missing in the log")
	require.Equal(t, clients*turns*reads, len(audited))
	require.Equal(t, clients*turns, len(contexts), "contexts")
	who := map[string]int{}
	for _, at := range audited {
		c, joined := contexts[at]
		require.True(t, joined, "a read in session %s, transaction %s, has no context", at.session, at.vxid)
		require.Equal(t, app, c.Login)
		require.NotEmpty(t, c.Actor)
		who[c.Tenant+" "+c.Actor]++
	}
	require.Equal(t, clients, len(who), "actors")
	for actor, n := range who {
		require.Equal(t, turns*reads, n, actor)
	}

	var ours bool
	require.NoError(t, a.admin.QueryRow(t.Context(), `select true = all (custody_data.lines_are_ours($1, $2))`, messages, sessions).Scan(&ours))
	require.True(t, ours)
}
