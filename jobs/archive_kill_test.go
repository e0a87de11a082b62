package jobs

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"pgcustody/cmd/devstack/stack/stacktest"
	"pgcustody/jobs/ledger"
	"pgcustody/jobs/segment"
	"pgcustody/jobs/store"
)

// faulty is the real binary, built so that it can be told to kill itself at a step.
var faulty = sync.OnceValues(func() (string, error) {
	folder, err := os.MkdirTemp("", "pgcustody-faults-")
	if err != nil {
		return "", err
	}
	binary := filepath.Join(folder, "pgcustody")
	out, err := exec.Command("go", "build", "-tags", "faults,disable_grpc_modules", "-o", binary, "pgcustody/cmd/pgcustody").CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, out)
	}
	return binary, err
})

// killing is an archive that the real binary writes.
type killing struct {
	*archiveBench
	binary string
	env    []string
	signer *ledger.Signer
}

func newKilling(t *testing.T) *killing {
	k := &killing{archiveBench: newArchiveBench(t)}
	var err error
	k.binary, err = faulty()
	require.NoError(t, err)
	folder := filepath.Join(t.TempDir(), "signer")
	k.signer, err = ledger.InitSigner(folder, "example.com/kill", time.Now())
	require.NoError(t, err)
	t.Cleanup(k.signer.Close)
	k.deps.Signer = k.signer
	env := map[string]string{}
	maps.Copy(env, stacktest.Shared(t).Env())
	env["PGDATABASE"], env["PGCUSTODY_STORE"], env["PGCUSTODY_SIGNER"] = k.database.Name, k.deps.Store.URL(), folder
	env["PGCUSTODY_ARCHIVE_RECIPIENTS"] = opens.Recipient().String()
	env["PATH"], env["HOME"], env["AWS_MAX_ATTEMPTS"] = os.Getenv("PATH"), t.TempDir(), "2"
	for name, value := range env {
		k.env = append(k.env, name+"="+value)
	}
	return k
}

// command is a run of the archive.
func (k *killing) command(env ...string) (*exec.Cmd, *bytes.Buffer) {
	k.Helper()
	cmd := exec.CommandContext(k.Context(), k.binary, "archive", "run")
	var out bytes.Buffer
	cmd.Env, cmd.Stdout, cmd.Stderr = slices.Concat(k.env, env), &out, &out
	return cmd, &out
}

// finish runs the archive without faults, after everything that was written before.
func (k *killing) finish() {
	k.Helper()
	k.settle()
	cmd, out := k.command()
	require.NoError(k, cmd.Run(), out.String())
}

func killed(err error) bool {
	var exit *exec.ExitError
	return errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL
}

// whole holds all there is against all there should be.
func (k *killing) whole() {
	k.Helper()
	k.requireAllArchived()
	checks, err := VerifyArchive(k.Context(), k.deps, identities(), 0, func(int, int) {})
	require.NoError(k, err)
	for _, c := range checks {
		require.Empty(k, c.Finding, c.Object)
	}
	unfinished, err := k.deps.Store.Unfinished(k.Context(), segment.Prefix)
	require.NoError(k, err)
	require.Empty(k, unfinished, "an upload was not finished, nor ended")
	// The index lists every segment, once.
	listed := map[string]int{}
	last, err := newestIndex(k.Context(), k.deps.Store)
	require.NoError(k, err)
	for number := int64(1); number <= last; number++ {
		_, index, err := readIndex(k.Context(), k.deps, number)
		require.NoError(k, err)
		for _, line := range index.Lines {
			listed[strings.Fields(line)[1]+strings.Fields(line)[0]]++
		}
	}
	require.EqualValues(k, k.number(SystemTenant, "select count(*) from custody.archive_segments"), countOf(listed, "segment"))
	for name, n := range listed {
		require.Equal(k, 1, n, "%s is listed more than once", name)
	}
}

func countOf(listed map[string]int, what string) (n int) {
	for name := range listed {
		if strings.HasSuffix(name, what) {
			n++
		}
	}
	return n
}

// big writes events of 8 KiB that do not compress, so that their object has several
// parts.
func (k *killing) big(day time.Time, n int) {
	k.Helper()
	k.partition(day)
	_, err := k.super.Exec(k.Context(), `
insert into custody_data.audit_logs (tenant_id, log_entry_id, occurred_at, recorded_at, actor_id, action, metadata, personal, import_id)
select $1, gen_random_uuid(), $2::timestamptz + random() * interval '86399 s', $2::timestamptz + interval '86399 s', gen_random_uuid(), 'phi.access', '{}',
  '\x0100000001'::bytea || (select string_agg(sha512((random()::text || i || j)::bytea), ''::bytea) from generate_series(1, 128) j), gen_random_uuid()
from generate_series(1, $3) i`, tenant, day, n)
	require.NoError(k, err)
}

// points of a run in which there is something of everything to do.
func (k *killing) points(env ...string) []string {
	k.Helper()
	trace := filepath.Join(k.TempDir(), "trace")
	k.settle()
	cmd, out := k.command(append(env, "PGCUSTODY_FAULT_TRACE="+trace)...)
	require.NoError(k, cmd.Run(), out.String())
	text, err := os.ReadFile(trace)
	require.NoError(k, err)
	var points []string
	for _, point := range strings.Split(strings.TrimSpace(string(text)), "\n") {
		if !slices.Contains(points, point) {
			points = append(points, point)
		}
	}
	return points
}

// inShares does a test's work on points in a few shares that run beside one another: each
// makes a bench of its own, which is what makes it parallel.
func inShares[T any](t *testing.T, points []T, work func(t *testing.T, points []T)) {
	const shares = 3
	name := 'a'
	for share := range slices.Chunk(points, (len(points)+shares-1)/shares) {
		t.Run(string(name), func(t *testing.T) {
			work(t, share)
		})
		name++
	}
}

// TestArchiveKilledAtEachPoint kills the real binary before and after every step.
func TestArchiveKilledAtEachPoint(t *testing.T) {
	begin := func(t *testing.T) (*killing, func()) {
		k := newKilling(t)
		held := false
		something := func() {
			k.events(tenant, k.day(1), 3)
			k.events(tenant, k.day(2), 2)
			// Each time the hold is another, so that all segments change.
			if held = !held; held {
				k.asRunner(`select custody.place_hold('{"tenant": true}', 'case', 'test')`)
			} else {
				k.asRunner("select custody.release_hold(hold_id, 'over') from custody.holds where active")
			}
		}
		something()
		k.finish()
		return k, something
	}
	k, something := begin(t)
	something()
	points := k.points()
	for _, step := range archiveSteps {
		require.Contains(t, points, step)
	}
	for _, step := range []string{"before upload", "sent", "before put index", "after put index", "before set hold", "after set hold", "before record hold", "after record hold", "before drop", "after drop"} {
		require.Contains(t, points, step)
	}
	var superseded atomic.Int64
	t.Run("points", func(t *testing.T) {
		inShares(t, points, func(t *testing.T, points []string) {
			k, something := begin(t)
			for i, point := range points {
				if strings.Contains(point, "hold") {
					k.finish() // or the hold that comes would undo the one before
				}
				something()
				k.settle()
				cmd, out := k.command("PGCUSTODY_FAULT=" + point)
				require.True(t, killed(cmd.Run()), "%s: %s", point, out.String())
				if i%4 == 3 || i == len(points)-1 {
					k.finish()
					require.Zero(t, k.number(SystemTenant, "select count(*) from custody.archive_segments where recorded_at is null"), point)
					require.Zero(t, k.number(SystemTenant, "select count(*) from custody.held_segments()"), point)
				}
			}
			k.whole()
			superseded.Add(int64(k.superseded()))
		})
	})
	require.NotZero(t, superseded.Load(), "none was killed between an object and its manifest")
}

// kills is how many times the binary is killed at random: PGCUSTODY_KILLS for more, as make long does.
func kills(t *testing.T) int {
	t.Helper()
	text := os.Getenv("PGCUSTODY_KILLS")
	if text == "" {
		return 8
	}
	n, err := strconv.Atoi(text)
	require.NoError(t, err)
	return n
}

// superseded counts the versions that killed attempts left, and manifests list.
func (k *killing) superseded() (n int) {
	k.Helper()
	for object, err := range k.deps.Store.List(k.Context(), segment.Prefix) {
		require.NoError(k, err)
		if name, err := segment.ParseKey(object.Key); err == nil && object.Key == name.ManifestKey() {
			n += len(k.manifest(name).SupersededVersions)
		}
	}
	return n
}

// TestArchiveKilledAtAnyTime kills one or two binaries at random times, and now and
// then the database's sessions, and lets the next run finish.
func TestArchiveKilledAtAnyTime(t *testing.T) {
	k := newKilling(t)
	k.big(k.day(3), 100)
	began := time.Now()
	k.finish()
	long := time.Since(began)
	seed := uint64(time.Now().UnixNano()) //nolint:gosec // any
	t.Logf("seed %d, a run takes %s", seed, long)
	random := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // a test
	died, points, rounds := 0, 0, 0
	for n := 0; died < kills(t); n++ {
		// What was found so far is worth more than a test that was cut off.
		if deadline, ok := t.Deadline(); ok && time.Until(deadline) < 3*time.Minute {
			t.Logf("time is up after %d rounds", rounds)
			break
		}
		rounds++
		k.events(tenant, k.day(1+random.IntN(4)), 1+random.IntN(40))
		if n%4 == 0 {
			k.big(k.day(1+random.IntN(4)), 1200) // 10 MB
		}
		k.settle()
		var workers []*exec.Cmd
		for range 1 + random.IntN(2) {
			cmd, _ := k.command()
			if random.IntN(2) == 0 {
				// Most of a run's time is not spent where it matters.
				cmd.Env = append(cmd.Env, fmt.Sprintf("PGCUSTODY_FAULT=#%d", 1+random.IntN(40)))
				points++
			}
			require.NoError(t, cmd.Start())
			workers = append(workers, cmd)
		}
		time.Sleep(time.Duration(random.Int64N(int64(2 * long))))
		if random.IntN(5) == 0 {
			_, err := k.super.Exec(t.Context(), "select pg_catalog.pg_terminate_backend(a.pid) from pg_catalog.pg_stat_activity a where a.datname = current_database() and a.usename = 'custody_runner' and a.application_name like '%archive%'")
			require.NoError(t, err)
		}
		_ = workers[0].Process.Kill()
		for _, cmd := range workers {
			if killed(cmd.Wait()) {
				died++
			}
		}
		if n%5 == 4 {
			k.finish()
			require.Zero(t, k.number(SystemTenant, "select count(*) from custody.archive_segments where recorded_at is null"))
		}
		if n%100 == 99 {
			k.finish()
			k.whole()
			t.Logf("whole after %d rounds, in which %d died", rounds, died)
		}
	}
	k.finish()
	k.whole()
	t.Logf("%d died in %d rounds, %d were told where; %d versions are superseded", died, rounds, points, k.superseded())
	require.NotZero(t, died)
}

// expiring is an archive in a directory, whose segments are made old.
type expiring struct {
	*killing
	folder string
	names  []segment.Name
}

func newExpiring(t *testing.T) *expiring {
	k := &expiring{killing: newKilling(t), folder: t.TempDir()}
	var err error
	k.deps.Store, err = store.Open(t.Context(), "file://"+k.folder, store.Options{})
	require.NoError(t, err)
	k.env = append(k.env, "PGCUSTODY_STORE="+k.deps.Store.URL(), "PGCUSTODY_STORE_ACCEPT="+store.NoLock)
	k.asSuper("alter table custody_data.archive_segments disable trigger all")
	return k
}

// old archives a day of a month of its own, of which Postgres has nothing any more and
// whose lock and policy have ended.
func (k *expiring) old() {
	k.Helper()
	name := segment.NewName(k.day(8*366+31*len(k.names)), 1)
	k.names = append(k.names, name)
	k.events(tenant, name.Day, 3)
	k.finish()
	k.asSuper("update custody_data.archive_segments set recorded_at = now() - interval '7 years', opened_at = now() - interval '8 years' where expired_at is null")
	k.finish()
	require.Zero(k, k.number(SystemTenant, "select count(*) from custody_data.audit_logs where occurred_at < now() - interval '7 years'"), "the month stayed")
	k.asSuper("update custody_data.archive_segments set retain_until = now() - interval '1 day' where expired_at is null")
	k.unlock(k.folder)
}

// listed says how often the index says of each segment that it expired.
func (k *expiring) listed() map[string]int {
	k.Helper()
	listed := map[string]int{}
	last, err := newestIndex(k.Context(), k.deps.Store)
	require.NoError(k, err)
	for number := int64(1); number <= last; number++ {
		_, index, err := readIndex(k.Context(), k.deps, number)
		require.NoError(k, err)
		for _, line := range index.Lines {
			if fields := strings.Fields(line); fields[0] == "expired" {
				listed[fields[1]]++
			}
		}
	}
	return listed
}

// TestExpiryKilledAtEachPoint kills the real binary before and after every step by
// which a segment's life ends.
func TestExpiryKilledAtEachPoint(t *testing.T) {
	k := newExpiring(t)
	k.old()
	trace := filepath.Join(t.TempDir(), "trace")
	cmd, out := k.command("PGCUSTODY_FAULT_TRACE=" + trace)
	require.NoError(t, cmd.Run(), out.String())
	text, err := os.ReadFile(trace)
	require.NoError(t, err)
	var points []string // with which time it is
	times := map[string]int{}
	for _, point := range strings.Split(strings.TrimSpace(string(text)), "\n") {
		times[point]++
		points = append(points, fmt.Sprintf("%s#%d", point, times[point]))
	}
	for _, step := range []string{"before expire", "after expire", "before put index", "after put index", "before delete object", "after delete object", "before record gone", "after record gone"} {
		require.NotZero(t, times[step], step)
	}
	require.Equal(t, map[string]int{k.names[0].ManifestKey(): 1}, k.listed())
	inShares(t, points, func(t *testing.T, points []string) {
		k := newExpiring(t)
		for _, point := range points {
			k.old()
			cmd, out := k.command("PGCUSTODY_FAULT=" + point)
			require.True(t, killed(cmd.Run()), "%s: %s", point, out.String())
			k.finish()
			name := k.names[len(k.names)-1]
			require.EqualValues(t, len(k.names), k.number(SystemTenant, "select count(*) from custody.archive_segments where objects_deleted_at is not null"), point)
			require.EqualValues(t, len(k.names), k.number(SystemTenant, "select count(*) from custody_data.audit_logs where action = 'archive.expire'"), "%s: its end is one event", point)
			for _, key := range []string{name.ObjectKey(), name.ManifestKey()} {
				versions, err := versionsOf(t.Context(), k.deps.Store, key)
				require.NoError(t, err)
				require.Empty(t, versions, point)
			}
		}
		listed := k.listed()
		for _, name := range k.names {
			require.Equal(t, 1, listed[name.ManifestKey()], "%s in the index", name)
		}
	})
}

// unlock lets the locks of a directory's segments end.
func (k *killing) unlock(folder string) {
	k.Helper()
	require.NoError(k, filepath.WalkDir(filepath.Join(folder, "audit-archives"), func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".meta") || isIndex(strings.TrimPrefix(path, folder+"/")) {
			return err
		}
		text, err := os.ReadFile(path)
		require.NoError(k, err)
		var meta map[string]any
		require.NoError(k, json.Unmarshal(text, &meta))
		delete(meta, "retain_until")
		text, err = json.Marshal(meta)
		require.NoError(k, err)
		return os.WriteFile(path, text, 0o600)
	}))
}
