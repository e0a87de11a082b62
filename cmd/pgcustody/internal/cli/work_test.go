package cli

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"pgcustody/cmd/devstack/stack/stacktest"
	"pgcustody/jobs"
)

// daemon is `pgcustody work` in a process of its own.
type daemon struct {
	*testing.T
	cmd     *exec.Cmd
	env     map[string]string
	address string
	lines   chan string
	log     bytes.Buffer
	mu      sync.Mutex
}

// startWork starts the daemon and waits until it says that it works.
func startWork(t *testing.T, env map[string]string, args ...string) *daemon {
	t.Helper()
	d := &daemon{T: t, env: env, lines: make(chan string, 1000)}
	d.cmd = exec.Command("pgcustody", append([]string{"work", "--listen", "127.0.0.1:0", "--log-format", "json"}, args...)...)
	for name, value := range env {
		d.cmd.Env = append(d.cmd.Env, name+"="+value)
	}
	stderr, err := d.cmd.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, d.cmd.Start())
	go func() {
		defer close(d.lines)
		for scanner := bufio.NewScanner(stderr); scanner.Scan(); {
			d.mu.Lock()
			d.log.Write(append(scanner.Bytes(), '\n'))
			d.mu.Unlock()
			d.lines <- scanner.Text()
		}
	}()
	t.Cleanup(func() {
		if d.cmd.ProcessState == nil {
			_ = d.cmd.Process.Kill()
			_ = d.cmd.Wait()
		}
	})
	d.address = "http://" + d.await("working")["listen"].(string)
	return d
}

// await waits for a line of the log by its message.
func (d *daemon) await(message string) map[string]any {
	d.Helper()
	for {
		select {
		case line, open := <-d.lines:
			if !open {
				require.FailNow(d, "the daemon ended", "%s", d.said())
			}
			var entry map[string]any
			if json.Unmarshal([]byte(line), &entry) == nil && entry["msg"] == message {
				return entry
			}
		case <-time.After(time.Minute):
			require.FailNow(d, "the daemon did not log it", "%q in %s", message, d.said())
		}
	}
}

// ran waits for the run of a job, which may have been before the daemon said that it works.
func (d *daemon) ran(job string) (run map[string]any) {
	d.Helper()
	require.Eventually(d, func() bool {
		for line := range strings.Lines(d.said()) {
			var entry map[string]any
			if json.Unmarshal([]byte(line), &entry) == nil && entry["msg"] == "job run" && entry["job"] == job {
				run = entry
				return true
			}
		}
		return false
	}, 2*time.Minute, 20*time.Millisecond, "the daemon did not run %s", job)
	return run
}

func (d *daemon) said() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.log.String()
}

// end waits for the daemon's end and returns its exit status.
func (d *daemon) end() int {
	d.Helper()
	for range d.lines {
	}
	_ = d.cmd.Wait()
	return d.cmd.ProcessState.ExitCode()
}

func (d *daemon) get(path string) (int, string) {
	d.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Get(d.address + path)
	require.NoError(d, err)
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	require.NoError(d, err)
	return response.StatusCode, string(body)
}

// becomesReady waits until a probe has its answer within the time that it allows the
// database, which a loaded machine may miss once.
func (d *daemon) becomesReady() {
	d.Helper()
	require.EventuallyWithT(d, func(c *assert.CollectT) {
		code, body := d.get("/readyz")
		assert.Equal(c, http.StatusOK, code)
		assert.JSONEq(c, `{"status": "ready"}`, body)
	}, time.Minute, 20*time.Millisecond)
}

// asTenant runs a statement as a login in the context of tenant acme, unlocked where
// it has a key.
func asTenant(t *testing.T, env map[string]string, login, statement string, into ...any) {
	t.Helper()
	require.NoError(t, unlocked(t.Context(), func(name string) string { return env[name] }, login, func(tx pgx.Tx) error {
		if len(into) == 0 {
			_, err := tx.Exec(t.Context(), statement)
			return err
		}
		return tx.QueryRow(t.Context(), statement).Scan(into...)
	}))
}

// command runs a command in a process of its own and returns its exit code and
// output: drivers read the environment of their process.
func command(t *testing.T, env map[string]string, args ...string) (int, string, string) {
	t.Helper()
	var out, stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), "pgcustody", args...)
	for name, value := range env {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		require.ErrorAs(t, err, new(*exec.ExitError))
	}
	return cmd.ProcessState.ExitCode(), out.String(), stderr.String()
}

func TestWork(t *testing.T) {
	t.Parallel()
	env := environment(t)
	d := startWork(t, env, "--requests-every", "1s")

	code, body := d.get("/healthz")
	require.Equal(t, http.StatusOK, code)
	require.JSONEq(t, `{"status": "alive"}`, body)
	d.becomesReady()
	code, _ = d.get("/nonsense")
	require.Equal(t, http.StatusNotFound, code)

	// An application's request is found and carried out.
	registerTenant(t, env)
	asTenant(t, env, "custody_app", "select custody.put_profile('alice-4711', '{}')")
	asTenant(t, env, "custody_runner", "select custody.request_erasure('alice-4711', 'asked')")
	entry := d.ran("erase")
	require.Equal(t, "succeeded", entry["status"])
	require.EqualValues(t, 1, entry["erased"])
	require.NotContains(t, d.said(), "alice-4711")
	// The attempt is over a moment after its run is on record, and a scrape in between
	// sees one metric and not yet the other.
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		code, body := d.get("/metrics")
		assert.Equal(c, http.StatusOK, code)
		for _, metric := range []string{
			`pgcustody_job_attempts_total{job="erase",outcome="succeeded"} 1`,
			`pgcustody_job_duration_seconds_count{job="erase"} 1`,
			`pgcustody_job_items_total{item="erased",job="erase"} 1`,
			`pgcustody_job_last_success_timestamp_seconds{job="erase"}`,
			`pgcustody_jobs_oldest_seconds`,
			`pgcustody_database_connections{state="limit"} 12`,
			`go_goroutines`,
		} {
			assert.Contains(c, body, metric)
		}
	}, time.Minute, 5*time.Millisecond)

	require.NoError(t, d.cmd.Process.Signal(syscall.SIGTERM))
	d.await("stopping")
	require.Zero(t, d.end(), d.said())
	require.Contains(t, d.said(), `"msg":"stopped"`)
}

// registerTenant registers tenant acme and gives it a key.
func registerTenant(t *testing.T, env map[string]string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), env["URL_custody_runner"])
	require.NoError(t, err)
	defer conn.Close(context.Background())
	require.NoError(t, pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(t.Context(), "select custody.set_context('system', 'tester')"); err != nil {
			return err
		}
		_, err := tx.Exec(t.Context(), "select custody.register_tenant('acme', 'Acme')")
		return err
	}))
	ring, done, err := keyring(t.Context(), func(name string) string { return env[name] })
	require.NoError(t, err)
	defer done()
	_, err = ring.Create(t.Context(), "acme")
	require.NoError(t, err)
}

// stuck makes an erasure wait for a lock that the returned transaction holds.
func stuck(t *testing.T, env map[string]string) pgx.Tx {
	t.Helper()
	registerTenant(t, env)
	asTenant(t, env, "custody_app", "select custody.put_profile('alice', '{}')")
	asTenant(t, env, "custody_runner", "select custody.request_erasure('alice', 'asked')")
	conn, err := pgx.Connect(t.Context(), env["URL_custody_runner"])
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	tx, err := conn.Begin(t.Context())
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), "select custody.set_context('acme', 'tester')")
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), "select custody.search_residue(request_id) from custody.list_requests()") // locks the request
	require.NoError(t, err)
	return tx
}

// waiting returns once the erasure of a command waits for the lock of stuck.
func waiting(t *testing.T, env map[string]string, application string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), env["URL_custody_super"])
	require.NoError(t, err)
	defer conn.Close(context.Background())
	require.Eventually(t, func() bool {
		var n int
		err := conn.QueryRow(t.Context(), `select count(*) from pg_catalog.pg_stat_activity
			where datname = current_database() and application_name = $1 and wait_event_type = 'Lock' and query ~ 'search_residue'`, application).Scan(&n)
		return err == nil && n > 0
	}, time.Minute, 5*time.Millisecond)
}

// On SIGTERM a running job may end; one that does not is interrupted and stays to
// be worked, without an attempt lost.
func TestWorkStopsGracefullyThenHard(t *testing.T) {
	t.Parallel()
	env := environment(t)
	blocker := stuck(t, env)
	d := startWork(t, env, "--stop-after", "1s")
	waiting(t, env, "pgcustody work/work")
	d.becomesReady()
	require.NoError(t, d.cmd.Process.Signal(syscall.SIGTERM))
	d.await("stopping")
	require.Zero(t, d.end(), d.said())
	require.NoError(t, blocker.Rollback(t.Context()))

	var state, run string
	var attempt int
	asTenant(t, env, "custody_runner", "select state::text, attempt from river.river_job where kind = 'erase'", &state, &attempt)
	require.Equal(t, "available", state)
	require.Zero(t, attempt)
	asTenant(t, env, "custody_runner", "select error from custody_data.job_runs where job = 'erase'", &run)
	require.Equal(t, "search residue: interrupted", run)

	// The next daemon goes on with it.
	next := startWork(t, env)
	next.ran("erase")
	var left int
	asTenant(t, env, "custody_runner", "select count(*) from custody_data.user_profiles", &left)
	require.Zero(t, left)
}

func TestWorkLetsARunningJobEnd(t *testing.T) {
	t.Parallel()
	env := environment(t)
	blocker := stuck(t, env)
	d := startWork(t, env)
	waiting(t, env, "pgcustody work/work")
	require.NoError(t, d.cmd.Process.Signal(syscall.SIGTERM))
	d.await("stopping")
	require.NoError(t, blocker.Rollback(t.Context()))
	require.Equal(t, "succeeded", d.ran("erase")["status"])
	require.Zero(t, d.end(), d.said())
}

// A daemon that is killed leaves the job running: nobody else takes it, and its
// request and its data are as they were.
func TestWorkKilled(t *testing.T) {
	t.Parallel()
	env := environment(t)
	blocker := stuck(t, env)
	d := startWork(t, env)
	waiting(t, env, "pgcustody work/work")
	require.NoError(t, d.cmd.Process.Kill())
	d.end()
	require.NoError(t, blocker.Rollback(t.Context()))
	var profiles, running int
	asTenant(t, env, "custody_runner", "select (select count(*) from custody_data.user_profiles), (select count(*) from custody_data.job_runs where status = 'running')", &profiles, &running)
	require.Equal(t, []int{1, 1}, []int{profiles, running})

	// A command does not wait until the dead one's time is over.
	code, out, stderr := command(t, env, "erase", "alice")
	require.Zero(t, code, stderr)
	require.Contains(t, out, ": done")
}

func TestWorkFailsToStart(t *testing.T) {
	t.Parallel()
	env := environment(t)
	env["PGDATABASE"] = env["EMPTY_DATABASE"]
	code, _, stderr := command(t, env, "work", "--listen", "127.0.0.1:0")
	require.Equal(t, ExitDatabase, code)
	require.Contains(t, stderr, "pgcustody: database not migrated")
}

// The runner works through PgBouncer in transaction mode.
func TestBehindAPooler(t *testing.T) {
	t.Parallel()
	env := environment(t)
	database := stacktest.DB(t)
	env["PGCUSTODY_DATABASE_URL"] = stacktest.PgBouncer(t, database)["custody_runner"]
	env["PGCUSTODY_POOLER"] = "transaction"
	env["PGCUSTODY_SIGNER"], env["PGCUSTODY_ORIGIN"] = filepath.Join(t.TempDir(), "signer"), "example.com/custody"
	env["URL_custody_runner"], env["URL_custody_app"] = database.URLs["custody_runner"], database.URLs["custody_app"]
	for _, args := range [][]string{{"tenants", "register", "acme"}, {"keys", "create"}, {"run", "partitions"}, {"run", "retention"}, {"signer", "init"}, {"anchor"}, {"status"}} {
		code, _, stderr := command(t, env, args...)
		require.Zero(t, code, "%v: %s", args, stderr)
	}
	asTenant(t, env, "custody_app", "select custody.put_profile('alice', '{}')")
	code, _, stderr := command(t, env, "erase", "alice")
	require.Zero(t, code, stderr)

	d := startWork(t, env, "--requests-every", "1s")
	asTenant(t, env, "custody_app", "select custody.put_profile('bob', '{}')")
	asTenant(t, env, "custody_runner", "select custody.request_erasure('bob', 'asked')")
	d.ran("erase")
	require.NoError(t, d.cmd.Process.Signal(syscall.SIGTERM))
	require.Zero(t, d.end(), d.said())
}

// A holder is told by the command itself, and again by `run notify` until it answers.
func TestNoticesOfACommand(t *testing.T) {
	t.Parallel()
	env := environment(t)
	var mu sync.Mutex
	status := http.StatusServiceUnavailable
	h := httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, request *http.Request) {
		body, _ := io.ReadAll(request.Body)
		key := make([]byte, 32)
		mu.Lock()
		defer mu.Unlock()
		if request.Header.Get(jobs.SignatureHeader) != jobs.Sign(key, request.Header.Get(jobs.TimestampHeader), body) {
			status = http.StatusForbidden
		}
		out.WriteHeader(status)
		_, _ = io.WriteString(out, `{"acknowledged": true}`)
	}))
	defer h.Close()
	env["PGCUSTODY_WEBHOOK_KEY"] = strings.Repeat("00", 32)
	registerTenant(t, env)
	asTenant(t, env, "custody_app", "select custody.put_profile('alice', '{}')")
	asTenant(t, env, "custody_runner", "select custody.register_holder('cache', '"+h.URL+"')")

	code, out, stderr := command(t, env, "erase", "alice")
	require.Zero(t, code, "the person is erased, the holder not told: %s", stderr)
	require.Contains(t, out, "a holder was not reached: pgcustody work sends its notice again")
	require.Contains(t, out, ": done")
	require.Contains(t, out, `"status": "awaiting_holders"`)

	mu.Lock()
	status = http.StatusOK
	mu.Unlock()
	code, out, _ = command(t, env, "run", "notify", "--dry-run")
	require.Zero(t, code)
	require.Regexp(t, `^would run notify \{"tenant":"acme","notice_id":"[0-9a-f-]+"\}\n$`, out)
	code, out, stderr = command(t, env, "run", "notify")
	require.Zero(t, code, stderr)
	require.Contains(t, out, "acknowledged=1")
	code, out, _ = command(t, env, "run", "notify", "--json")
	require.Zero(t, code)
	require.JSONEq(t, `{"runs": []}`, out)
}

// With --json every command prints one JSON document and nothing else.
func TestEveryCommandSpeaksJSON(t *testing.T) {
	t.Parallel()
	env := environment(t)
	registerTenant(t, env)
	asTenant(t, env, "custody_app", "select custody.put_profile('alice', '{}')")
	for _, args := range []string{
		"tenants register acme", "tenants list", "status", "requests list", "hold list", "retention due", "retention run --dry-run", "retention run",
		"run partitions", "run requests", "run retention --dry-run", "run archive", "archive list", "erase alice --dry-run", "export alice", "erase alice",
	} {
		code, out, stderr := command(t, env, append(strings.Fields(args), "--json")...)
		require.Zero(t, code, "%s: %s", args, stderr)
		decoder := json.NewDecoder(strings.NewReader(out))
		var document any
		require.NoError(t, decoder.Decode(&document), "%s: %s", args, out)
		require.ErrorIs(t, decoder.Decode(&document), io.EOF, "%s prints more than one document", args)
	}
}

// An interrupt reaches the jobs of a command, and their records are closed.
func TestInterruptedCommand(t *testing.T) {
	t.Parallel()
	env := environment(t)
	blocker := stuck(t, env)
	defer func() { _ = blocker.Rollback(context.Background()) }()
	cmd := exec.Command("pgcustody", "erase", "alice")
	for name, value := range env {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	require.NoError(t, cmd.Start())
	waiting(t, env, "pgcustody erase/erase")
	require.NoError(t, cmd.Process.Signal(syscall.SIGINT))
	require.Error(t, cmd.Wait())
	require.Equal(t, ExitInternal, cmd.ProcessState.ExitCode())
	require.True(t, strings.HasSuffix("\n"+stderr.String(), "\npgcustody: interrupted: run the command again to go on\n"), stderr.String())
	var status, problem string
	asTenant(t, env, "custody_runner", "select status, error from custody_data.job_runs where job = 'erase'", &status, &problem)
	require.Equal(t, []string{"failed", "search residue: interrupted"}, []string{status, problem})
	var open int
	asTenant(t, env, "custody_runner", "select count(*) from river.river_job where kind = 'erase' and state not in ('cancelled', 'discarded', 'completed')", &open)
	require.Zero(t, open, "no job is left on a queue that nobody works")
}

func TestCoresAtWork(t *testing.T) {
	t.Parallel()
	for cores, want := range map[int]int{1: 1, 2: 1, 4: 1, 8: 2, 64: 16} {
		require.Equal(t, want, coresAtWork("", cores))
		require.Equal(t, cores, coresAtWork("3", cores), "the environment has said how many")
	}
}
