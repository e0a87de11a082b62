package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"pgcustody/cmd/devstack/stack"
	"pgcustody/cmd/devstack/stack/stacktest"
	"pgcustody/jobs/segment"
	"pgcustody/jobs/store"
)

// archiveCommands runs archive's commands in this process, on a database and a
// bucket of the test's own.
type archiveCommands struct {
	*testing.T
	env   map[string]string
	today time.Time
}

func newArchiveCommands(t *testing.T) *archiveCommands {
	c := &archiveCommands{T: t, env: environment(t), today: time.Now().UTC().Truncate(24 * time.Hour)}
	for name, value := range c.env {
		if strings.HasPrefix(name, "AWS_") || strings.HasPrefix(name, "PG") {
			t.Setenv(name, value)
		}
	}
	c.runs(ExitOK, "tenants", "register", "acme")
	return c
}

// runs runs a command and returns its output; an error must be one line.
func (c *archiveCommands) runs(code int, args ...string) string {
	c.Helper()
	var out, stderr bytes.Buffer
	got := Run(c.Context(), args, Streams{
		In: strings.NewReader(""), Out: &out, Err: &stderr,
		Getenv: func(name string) (string, bool) { value, ok := c.env[name]; return value, ok },
	})
	require.Equal(c, code, got, "%v: %s", args, stderr.String())
	if code == ExitOK {
		return out.String()
	}
	lines := strings.Split(strings.TrimSpace(stderr.String()), "\n")
	last := lines[len(lines)-1]
	require.True(c, strings.HasPrefix(last, "pgcustody: "), last)
	return last
}

// events writes events of a day and waits until all transactions from before are
// over: those of other tests too would hold the archive back.
func (c *archiveCommands) events(ago, n int) time.Time {
	c.Helper()
	day := c.today.AddDate(0, 0, -ago)
	conn, err := pgx.Connect(c.Context(), c.env["URL_"+stack.Superuser])
	require.NoError(c, err)
	defer conn.Close(c.Context())
	_, err = conn.Exec(c.Context(), "select custody.ensure_audit_partitions($1, $1)", day)
	require.NoError(c, err)
	_, err = conn.Exec(c.Context(), `
		insert into custody_data.audit_logs (tenant_id, log_entry_id, occurred_at, actor_id, action, import_id)
		select 'acme', gen_random_uuid(), $1::timestamptz + i * interval '1 minute', gen_random_uuid(), 'phi.access', gen_random_uuid()
		from generate_series(1, $2) i`, day, n)
	require.NoError(c, err)
	var end string
	require.NoError(c, conn.QueryRow(c.Context(), "select pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())::text").Scan(&end))
	require.Eventually(c, func() bool {
		var over bool
		err := conn.QueryRow(c.Context(), "select pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot()) >= $1::text::xid8", end).Scan(&over)
		return err == nil && over
	}, time.Minute, 2*time.Millisecond)
	return day
}

func TestArchiveCommands(t *testing.T) {
	c := newArchiveCommands(t)
	yesterday, old := c.events(1, 10), c.events(150, 5)
	name, oldName := segment.NewName(yesterday, 1), segment.NewName(old, 1)

	plan := c.runs(ExitOK, "archive", "run", "--dry-run")
	require.Regexp(t, yesterday.Format(time.DateOnly)+` +10 `, plan)
	require.Regexp(t, old.Format("2006-01")+` +unarchived +5 `, plan)
	require.Contains(t, c.runs(ExitOK, "archive", "list"), "no segments")

	recipients := c.env["PGCUSTODY_ARCHIVE_RECIPIENTS"]
	c.env["PGCUSTODY_ARCHIVE_RECIPIENTS"] = ""
	require.Contains(t, c.runs(ExitUsage, "archive", "run"), "--archive-recipients: required")
	c.env["PGCUSTODY_ARCHIVE_RECIPIENTS"] = "AGE-SECRET-KEY-1XYZ"
	said := c.runs(ExitUsage, "archive", "run")
	require.Contains(t, said, "that is an identity, which is secret")
	require.NotContains(t, said, "1XYZ")
	c.env["PGCUSTODY_ARCHIVE_RECIPIENTS"] = recipients
	require.Regexp(t, `archive +system +succeeded .*events=15 .*segments=2`, c.runs(ExitOK, "archive", "run"))
	require.Contains(t, c.runs(ExitOK, "archive", "run", "--dry-run"), "nothing to archive")
	var list []listedSegment
	require.NoError(t, json.Unmarshal([]byte(c.runs(ExitOK, "archive", "list", "--json")), &list))
	require.Len(t, list, 2)
	require.Equal(t, []string{oldName.ObjectKey(), name.ObjectKey()}, []string{list[0].Object, list[1].Object})
	require.EqualValues(t, 5, list[0].Events)

	identity := []string{"--identity", c.env["DEVSTACK_ARCHIVE_IDENTITY"]}
	for _, with := range [][]string{nil, identity} {
		require.Contains(t, c.runs(ExitOK, append([]string{"archive", "verify"}, with...)...), "2 segments with 15 events verified, 0 findings")
	}
	require.Contains(t, c.runs(ExitUsage, "archive", "verify", "--identity", "/nonexistent"), "/nonexistent cannot be read")
	require.Contains(t, c.runs(ExitOK, "archive", "verify", "--sample", "1"), "1 segments with 10 events verified, 0 findings")
	require.Contains(t, c.runs(ExitUsage, "archive", "verify", "--sample", "-1"), `--sample="-1"`)
	require.Contains(t, c.runs(ExitOK, "store", "check"), "COMPLIANCE")

	s, err := store.OpenURL(t.Context(), c.env["PGCUSTODY_STORE"])
	require.NoError(t, err)
	_, err = s.Put(t.Context(), name.ObjectKey(), strings.NewReader("tampered"), store.PutOptions{})
	require.NoError(t, err)
	require.Contains(t, c.runs(ExitCheck, "archive", "verify"), name.ObjectKey())
	require.Contains(t, c.runs(ExitCheck, "archive", "verify", "--json", "--sample", "1"), "1 findings")

	// Something else stands where a segment's manifest should be.
	key := segment.NewName(c.events(2, 1), 1).ManifestKey()
	_, err = s.Put(t.Context(), key, strings.NewReader("foreign"), store.PutOptions{})
	require.NoError(t, err)
	for _, command := range [][]string{{"archive", "run"}, {"run", "archive"}} {
		require.Contains(t, c.runs(ExitCheck, command...), key)
	}
}

func TestArchiveCommandsRefuse(t *testing.T) {
	c := newArchiveCommands(t)
	c.events(1, 1)

	bucket := fmt.Sprintf("nolock-%d", time.Now().UnixNano())
	require.NoError(t, stacktest.Shared(t).NewBucket(t.Context(), bucket, false))
	require.Contains(t, c.runs(ExitCheck, "store", "check", "--store", "s3://"+bucket), "no-lock")
	require.Contains(t, c.runs(ExitObjectStore, "archive", "run", "--store", "s3://"+bucket), "no Object Lock")
	for _, command := range [][]string{{"store", "check"}, {"archive", "run"}} {
		require.Contains(t, c.runs(ExitObjectStore, append(command, "--store", "s3://no-such-bucket")...), "no-such-bucket")
		require.Contains(t, c.runs(ExitUsage, append(command, "--store", "ftp://x")...), "ftp://x")
	}
	require.Contains(t, c.runs(ExitObjectStore, "archive", "verify", "--store", "s3://no-such-bucket"), "no-such-bucket")
	require.Contains(t, c.runs(ExitUsage, "archive"), "wants a command")
	require.Contains(t, c.runs(ExitPermission, "archive", "list", "--database-url", c.env["URL_custody_app"]), "tenant system is not for this role")
	require.Contains(t, c.runs(ExitPermission, "archive", "run", "--dry-run", "--database-url", c.env["URL_custody_app"]), "tenant system is not for this role")
}

// TestArchiveIntoADirectory: for development, where it is accepted that nothing is locked.
func TestArchiveIntoADirectory(t *testing.T) {
	c := newArchiveCommands(t)
	c.events(1, 10)
	c.env["PGCUSTODY_STORE"] = "file://" + t.TempDir()
	require.Contains(t, c.runs(ExitObjectStore, "archive", "run"), "PGCUSTODY_STORE_ACCEPT=no-lock")
	require.Contains(t, c.runs(ExitOK, "archive", "list"), "no segments")
	c.env["PGCUSTODY_STORE_ACCEPT"] = "no-lock"
	require.Regexp(t, `archive +system +succeeded .*events=10 .*segments=1`, c.runs(ExitOK, "archive", "run"))
	require.Contains(t, c.runs(ExitOK, "archive", "verify"), "1 segments with 10 events verified, 0 findings")
}

// The disk of the directory is full: the error says so, nothing is on record that is not
// there, and the next run goes on once there is room.
func TestArchiveIntoAFullDirectory(t *testing.T) {
	if os.Getenv("CLI_TEST_MOUNTS") == "" {
		// In a mount namespace of its own, which needs no root where users may have one.
		test := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestArchiveIntoAFullDirectory$", "-test.v")
		test.Env = append(os.Environ(), "CLI_TEST_MOUNTS=1")
		test.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
		if os.Getuid() != 0 {
			test.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
			test.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
			test.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
		}
		out, err := test.CombinedOutput()
		if errors.Is(err, syscall.EPERM) {
			t.Skip("this machine lets nobody mount a small disk")
		}
		require.NoError(t, err, string(out))
		require.Contains(t, string(out), "--- PASS: TestArchiveIntoAFullDirectory")
		return
	}
	c := newArchiveCommands(t)
	c.events(4, 5)
	big := segment.NewName(c.events(3, 1400), 1)
	c.events(2, 10)
	dir := t.TempDir()
	require.NoError(t, syscall.Mount("none", dir, "tmpfs", 0, "size=96k"))
	defer func() { require.NoError(t, syscall.Unmount(dir, 0)) }()
	c.env["PGCUSTODY_STORE"], c.env["PGCUSTODY_STORE_ACCEPT"] = "file://"+dir, "no-lock"

	for range 2 {
		require.Contains(t, c.runs(ExitObjectStore, "archive", "run"), "store is full")
		_, err := os.Stat(filepath.Join(dir, big.ObjectKey()+"@1"))
		require.ErrorIs(t, err, os.ErrNotExist)
		require.NotContains(t, c.runs(ExitOK, "archive", "list"), big.ObjectKey())
		require.Contains(t, c.runs(ExitOK, "archive", "verify"), " 0 findings")
	}
	require.NoError(t, syscall.Mount("none", dir, "tmpfs", syscall.MS_REMOUNT, "size=16m"))
	c.runs(ExitOK, "archive", "run")
	require.FileExists(t, filepath.Join(dir, big.ObjectKey()+"@1"))
	require.Contains(t, c.runs(ExitOK, "archive", "verify", "--identity", c.env["DEVSTACK_ARCHIVE_IDENTITY"]), "3 segments with 1415 events verified, 0 findings")
}
