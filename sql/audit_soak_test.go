package sql_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"pgcustody/cmd/devstack/stack"
	"pgcustody/cmd/devstack/stack/stacktest"
	"pgcustody/jobs"
	"pgcustody/jobs/agekeys"
	"pgcustody/jobs/serverlog"
	"pgcustody/jobs/store"
)

// Behind a pooler in transaction mode many clients have few sessions of the server in turn. Each line
// of pgaudit's on a personal table still has its context: the line of our own in the same session and
// transaction, which says who it was. Half of them come by a token, half by set_context; the log is held
// against what they did, and shipped, and then every access event says the same.
func TestEveryAuditedReadHasItsContext(t *testing.T) {
	t.Parallel()
	a := newAudited(t)
	a.run(t, `select custody.register_tenant('acme', 'Acme'), custody.register_tenant('other', 'Other')`)
	b := bedOf(t, a.Stack, stack.Database)
	m := b.inTokenMode(t)
	first := b.session(t, app) // makes the key with which sessions sign that begin READ ONLY
	require.NoError(t, first.beginToken(t.Context(), m.token(t, nil)))
	first.rollback(t)
	// What comes before is another's.
	since := len(a.records(t))
	logins := []string{app, reports}
	urls := stacktest.PgBouncer(t, &stacktest.Database{Name: stack.Database, Stack: a.Stack, URLs: map[string]string{app: a.URL(app, stack.Database), reports: a.URL(reports, stack.Database)}})
	configs := map[string]*pgx.ConnConfig{}
	for login, url := range urls {
		config, err := pgx.ParseConfig(url)
		require.NoError(t, err)
		config.DefaultQueryExecMode = pgx.QueryExecModeExec
		configs[login] = config
	}

	const clients, turns, reads = 64, 12, 6 // of a COPY pgaudit has two lines
	errs := make([]error, clients)
	var calls []func()
	for i := range clients {
		calls = append(calls, func() {
			errs[i] = func() error {
				tenant, actor, login := []string{"acme", "other"}[i/2%2], fmt.Sprintf("client %d", i), logins[i%2]
				conn, err := pgx.ConnectConfig(t.Context(), configs[login])
				if err != nil {
					return err
				}
				defer conn.Close(t.Context())
				for turn := range turns {
					tx, err := conn.BeginTx(t.Context(), pgx.TxOptions{AccessMode: []pgx.TxAccessMode{pgx.ReadWrite, pgx.ReadOnly}[turn/3%2]})
					if err != nil {
						return err
					}
					enter := fmt.Sprintf("select custody.set_context('%s', '%s', 'turn %d')", tenant, actor, turn)
					if login == app {
						enter = fmt.Sprintf("select custody.begin_context('%s')", m.token(t, map[string]any{"tenant": tenant, "sub": actor, "purpose": fmt.Sprint("turn ", turn)}))
					}
					for _, statement := range []string{
						enter,
						"select user_id from custody_data.identities",
						"savepoint s",
						"select p.email from custody_data.user_profiles p",
						"rollback to s",
						"do $$ begin perform user_id from custody_data.identities; end $$",
						"declare c no scroll cursor for select p.full_name from custody_data.user_profiles p",
						"fetch all from c",
					} {
						if _, err := tx.Exec(t.Context(), statement); err != nil {
							return fmt.Errorf("turn %d: %s: %w", turn, statement, err)
						}
					}
					if _, err := conn.PgConn().CopyTo(t.Context(), io.Discard, "copy custody_data.conversations to stdout"); err != nil {
						return err
					}
					switch turn % 3 {
					case 0:
						err = tx.Commit(t.Context())
					case 1:
						err = tx.Rollback(t.Context())
					default:
						if _, failed := tx.Exec(t.Context(), "select 1 / 0"); failed == nil {
							return errors.New("divided by zero")
						}
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
			case !slices.Contains(logins, string(r.User)):
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
		require.Contains(t, logins, c.Login)
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

	bucket, err := store.OpenURL(t.Context(), "file://"+t.TempDir())
	require.NoError(t, err)
	identity, err := age.GenerateX25519Identity()
	require.NoError(t, err)
	ship := jobs.Deps{Pool: (&stacktest.Database{Name: stack.Database, Stack: a.Stack, URLs: b.URLs}).Pool(t, runner), Store: bucket, Actor: "runner", Log: slog.New(slog.DiscardHandler),
		Recipients: agekeys.Recipients{Keys: []age.Recipient{identity.Recipient()}, Text: []string{identity.Recipient().String()}},
		Config:     jobs.Config{Ship: jobs.ShipConfig{Source: a.LogDir(), Accept: []string{store.NoLock}}}}
	require.NoError(t, jobs.ShipLogs(t.Context(), ship, func(string, int64) {}))
	rows, err := a.admin.Query(t.Context(), `select concat_ws(' ', e.tenant_id, coalesce(e.actor_id::text, e.actor_pseudonym)) as actor, count(*) as lines, count(distinct e.purpose) as purposes
		from custody_data.access_events e where e.kind = 'statement' and e.object_name like 'custody_data.%' and e.login = any ($1) group by 1`, logins)
	require.NoError(t, err)
	type events struct {
		Actor           string
		Lines, Purposes int
	}
	shipped, err := pgx.CollectRows(rows, pgx.RowToStructByName[events])
	require.NoError(t, err)
	require.Len(t, shipped, clients)
	for _, e := range shipped {
		require.Contains(t, who, e.Actor)
		require.Equal(t, events{e.Actor, turns * reads, turns}, e)
	}
	t.Logf("%d of %d lines of pgaudit on personal tables carry an actor, of %d contexts", len(audited), clients*turns*reads, len(contexts))
}
