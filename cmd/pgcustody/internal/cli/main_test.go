package cli

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"pgcustody/cmd/devstack/stack"
	"pgcustody/cmd/devstack/stack/stacktest"
	"pgcustody/jobs"
	"pgcustody/jobs/keys"
	"pgcustody/sql"
)

func TestMain(m *testing.M) {
	testscript.Main(leakChecked{m}, map[string]func(){
		"pgcustody": func() { os.Exit(Main(os.Args[1:], Standard())) },
	})
}

// leakChecked fails tests that leave goroutines behind.
type leakChecked struct{ *testing.M }

func (m leakChecked) Run() int {
	code := m.M.Run()
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// environment is the private stack's settings for a database and a bucket of the
// test's own.
func environment(t *testing.T) map[string]string {
	t.Helper()
	d := stacktest.DB(t)
	env := map[string]string{}
	for name, value := range d.Stack.Env() {
		env[name] = value
	}
	env["PGDATABASE"] = d.Name
	env["PGCUSTODY_STORE"] = "s3://" + stacktest.Bucket(t)
	env["PGCUSTODY_TENANT"] = "acme"
	_, env["PGCUSTODY_KEYS"] = stacktest.KeyProvider(t)
	for login, address := range d.URLs {
		env["URL_"+login] = address
	}
	// The runner may connect to the empty database, and finds nothing there.
	empty := stacktest.EmptyDB(t)
	_, err := empty.Conn(t, stack.Superuser).Exec(t.Context(), "grant connect on database "+empty.Name+" to custody_runner")
	require.NoError(t, err)
	env["EMPTY_DATABASE"] = empty.Name
	return env
}

// TestScript runs the commands as an operator types them: in processes of their
// own, on a database and a bucket of each script's own.
func TestScript(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/script/*.txtar")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			t.Parallel()
			env := environment(t)
			testscript.Run(t, testscript.Params{
				Files: []string{file},
				Setup: func(e *testscript.Env) error {
					for name, value := range env {
						e.Setenv(name, value)
					}
					return nil
				},
				Cmds: map[string]func(*testscript.TestScript, bool, []string){"sql": runSQL, "exits": wantExit, "sealed": waitSealed, "vkey": readKey, "run": runFile, "jwt": mintToken, "token": beginToken},
				Condition: func(name string) (bool, error) {
					if name != "pgaudit" {
						return false, fmt.Errorf("unknown condition %s", name)
					}
					return stacktest.Shared(t).HasPgaudit(), nil
				},
			})
		})
	}
}

// unlocked runs work as a login in the context of tenant acme, with its key where it
// has one that PGCUSTODY_KEYS gives.
func unlocked(ctx context.Context, getenv func(string) string, login string, work func(pgx.Tx) error) error {
	conn, err := pgx.Connect(ctx, getenv("URL_"+login))
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	ring, done, err := keyring(ctx, getenv)
	if err != nil {
		return err
	}
	defer done()
	unlock := &jobs.Unlocker{Ring: ring}
	return unlock.InContext(ctx, conn, jobs.Scope{Tenant: "acme", Actor: "tester", Purpose: "test"}, work)
}

// keyring has the keys of PGCUSTODY_KEYS.
func keyring(ctx context.Context, getenv func(string) string) (ring jobs.Keyring, done func(), err error) {
	provider, err := keys.Parse(ctx, getenv("PGCUSTODY_KEYS"), false)
	if err != nil {
		return ring, nil, err
	}
	runner, err := pgx.Connect(ctx, getenv("URL_custody_runner"))
	if err != nil {
		return ring, nil, err
	}
	return jobs.Keyring{Pool: runner, Provider: provider, Actor: "tester"}, func() { _ = runner.Close(context.WithoutCancel(ctx)) }, nil
}

// runSQL is `sql LOGIN NAME STATEMENT`: runs a statement as a login in the context
// of tenant acme, unlocked where it has a key, and puts its first value into the variable NAME, or, with the
// name -, nowhere.
func runSQL(ts *testscript.TestScript, negated bool, args []string) {
	if negated || len(args) != 3 {
		ts.Fatalf("usage: sql LOGIN NAME STATEMENT")
	}
	login, name, statement := args[0], args[1], args[2]
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var value any
	ts.Check(unlocked(ctx, ts.Getenv, login, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, statement)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			values, err := rows.Values()
			if err != nil {
				return err
			}
			if value == nil && len(values) > 0 {
				value = values[0]
			}
		}
		return rows.Err()
	}))
	if id, ok := value.([16]byte); ok {
		value = fmt.Sprintf("%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:])
	}
	if name != "-" {
		ts.Setenv(name, fmt.Sprint(value))
	}
}

// waitSealed is `sealed`: seals until every event of the script's database has its leaf,
// though transactions of other tests hold sealing back.
func waitSealed(ts *testscript.TestScript, negated bool, args []string) {
	if negated || len(args) != 0 {
		ts.Fatalf("usage: sealed")
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	pool, err := pgxpool.New(ctx, ts.Getenv("URL_custody_runner"))
	ts.Check(err)
	defer pool.Close()
	deps := jobs.Deps{Pool: pool, Actor: "tester", Log: slog.New(slog.DiscardHandler)}
	for {
		_, err := jobs.Seal(ctx, deps)
		ts.Check(err)
		var unsealed int64
		ts.Check(jobs.InContext(ctx, pool, jobs.Scope{Tenant: jobs.SystemTenant, Actor: "tester", Purpose: "test"}, func(tx pgx.Tx) error {
			return tx.QueryRow(ctx, "select s.unsealed_events from custody.sealing_status() s").Scan(&unsealed)
		}))
		if unsealed == 0 {
			return
		}
		select {
		case <-ctx.Done():
			ts.Fatalf("%d events are not sealed: %v", unsealed, ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// runFile is `run FILE`: a DBA runs one of sql/'s own files as a superuser.
func runFile(ts *testscript.TestScript, negated bool, args []string) {
	if negated || len(args) != 1 {
		ts.Fatalf("usage: run FILE")
	}
	text, err := fs.ReadFile(sql.Files(), args[0])
	ts.Check(err)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, ts.Getenv("URL_"+stack.Superuser))
	ts.Check(err)
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, "set search_path = public;"+string(text))
	ts.Check(err)
}

// mintToken is `jwt NAME KID FILE TENANT`: puts a token, under the key in a file, into the variable
// NAME, in the way that sql/README.md tells backend engineers.
func mintToken(ts *testscript.TestScript, negated bool, args []string) {
	if negated || len(args) != 4 {
		ts.Fatalf("usage: jwt NAME KID FILE TENANT")
	}
	key, err := hex.DecodeString(strings.TrimSpace(ts.ReadFile(args[2])))
	ts.Check(err)
	part := base64.RawURLEncoding.EncodeToString
	signed := part(fmt.Appendf(nil, `{"alg":"HS256","kid":%q}`, args[1])) + "." +
		part(fmt.Appendf(nil, `{"tenant":%q,"sub":"clerk","purpose":"support","exp":%d}`, args[3], time.Now().Add(time.Minute).Unix()))
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(signed))
	ts.Setenv(args[0], signed+"."+part(mac.Sum(nil)))
}

// beginToken is `token TOKEN`: begins a context by it as the application, which chooses none by itself.
func beginToken(ts *testscript.TestScript, negated bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: token TOKEN")
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, ts.Getenv("URL_custody_app"))
	ts.Check(err)
	defer conn.Close(ctx)
	var pg *pgconn.PgError
	if _, err = conn.Exec(ctx, "select custody.set_context('acme', 'clerk')"); !errors.As(err, &pg) || pg.Code != "PC061" {
		ts.Fatalf("the application chose its context: %v", err)
	}
	_, err = conn.Exec(ctx, "select custody.begin_context($1)", args[0])
	switch {
	case !negated:
		ts.Check(err)
	case !errors.As(err, &pg) || pg.Code != "PC060":
		ts.Fatalf("the token was not refused: %v", err)
	}
}

// readKey is `vkey NAME FILE`: puts the first line of a signer's verifier keys into the
// variable NAME.
func readKey(ts *testscript.TestScript, negated bool, args []string) {
	if negated || len(args) != 2 {
		ts.Fatalf("usage: vkey NAME FILE")
	}
	line, _, _ := strings.Cut(ts.ReadFile(args[1]), "\n")
	ts.Setenv(args[0], line)
}

// wantExit is `exits CODE PROGRAM ARGS…`: the program must end with that code, with
// one line on standard error that begins with its name, or none where it succeeds.
func wantExit(ts *testscript.TestScript, negated bool, args []string) {
	if negated || len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM [ARGS…]")
	}
	err := ts.Exec(args[1], args[2:]...)
	got := 0
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		got = exit.ExitCode()
	case err != nil:
		ts.Fatalf("%v", err)
	}
	said := ts.ReadFile("stderr")
	if fmt.Sprint(got) != args[0] {
		ts.Fatalf("exit status %d, not %s: %s", got, args[0], said)
	}
	lines := 0
	for line := range strings.Lines(said) {
		if strings.HasPrefix(line, "pgcustody: ") {
			lines++
		} else if !strings.HasPrefix(line, "time=") {
			ts.Fatalf("standard error has a line that is neither a log's nor the error's: %s", line)
		}
	}
	if want := min(got, 1); lines != want {
		ts.Fatalf("%d error lines, not %d: %s", lines, want, said)
	}
}
