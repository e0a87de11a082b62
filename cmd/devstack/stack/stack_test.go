package stack

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("STACK_TEST_EPHEMERAL"); dir != "" {
		holdEphemeral(dir)
		return
	}
	goleak.VerifyTestMain(m)
}

// newDir is short, so that the cluster's socket finds room in it.
func newDir(t *testing.T) string {
	t.Helper()
	dir, err := TempDir()
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func startIn(t *testing.T, dir string) *Stack {
	t.Helper()
	s, err := Start(t.Context(), Options{Dir: dir, NoFsync: true, Ephemeral: true})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Destroy(context.Background())) })
	return s
}

// one is a stack for the tests that only look.
var one = sync.OnceValues(func() (*Stack, error) {
	dir, err := TempDir()
	if err != nil {
		return nil, err
	}
	return Start(context.Background(), Options{Dir: dir, NoFsync: true, Ephemeral: true})
})

func theOne(t *testing.T) *Stack {
	t.Helper()
	s, err := one()
	require.NoError(t, err)
	return s
}

func requireAnswers(t *testing.T, s *Stack) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), s.URL(MigratorLogin, Database))
	require.NoError(t, err)
	require.NoError(t, conn.Close(t.Context()))
	_, err = s.S3().HeadBucket(t.Context(), &s3.HeadBucketInput{Bucket: &s.Bucket})
	require.NoError(t, err)
}

func TestTwoStacksSideBySide(t *testing.T) {
	t.Parallel()
	a, b := startIn(t, newDir(t)), startIn(t, newDir(t))
	require.NotEqual(t, a.AccessKey, b.AccessKey)
	requireAnswers(t, a)
	requireAnswers(t, b)

	_, err := pgx.Connect(t.Context(), strings.Replace(a.URL(MigratorLogin, Database),
		fmt.Sprintf(":%d/", a.PGPort), fmt.Sprintf(":%d/", b.PGPort), 1))
	require.Error(t, err, "the settings of one must not open the other")

	require.NoError(t, a.Stop(t.Context()))
	postgres, gateway := a.Running()
	require.False(t, postgres || gateway)
	requireAnswers(t, b)

	// The other way round: what runs is found, what was stopped comes back with its data.
	again, err := Start(t.Context(), Options{Dir: b.Dir})
	require.NoError(t, err)
	require.Equal(t, b.Postgres, again.Postgres)
	require.Equal(t, b.Gateway, again.Gateway)
	back, err := Start(t.Context(), Options{Dir: a.Dir})
	require.NoError(t, err)
	require.Equal(t, a.AccessKey, back.AccessKey)
	requireAnswers(t, back)
}

func TestStartAtOnce(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	var wg sync.WaitGroup
	stacks := make([]*Stack, 4)
	for i := range stacks {
		wg.Go(func() {
			s, err := Start(t.Context(), Options{Dir: dir, NoFsync: true, Ephemeral: true})
			if err != nil {
				t.Error(err)
				return
			}
			stacks[i] = s
		})
	}
	wg.Wait()
	require.False(t, t.Failed())
	for _, s := range stacks {
		require.Equal(t, stacks[0].Postgres, s.Postgres)
		require.Equal(t, stacks[0].Gateway, s.Gateway)
	}
	require.NoError(t, stacks[0].Destroy(t.Context()))
	require.NoDirExists(t, dir)
}

func TestKilledServersComeBack(t *testing.T) {
	t.Parallel()
	s := startIn(t, newDir(t))
	conn, err := pgx.Connect(t.Context(), s.SuperURL(Database))
	require.NoError(t, err)
	_, err = conn.Exec(t.Context(), "create table kept as select 1 as n")
	require.NoError(t, err)
	require.NoError(t, conn.Close(t.Context()))

	kill := signals{kind: syscall.SIGKILL, hard: syscall.SIGKILL, patience: 10 * time.Second}
	require.NoError(t, s.Postgres.stop(t.Context(), kill))
	require.NoError(t, s.Gateway.stop(t.Context(), kill))

	back, err := Start(t.Context(), Options{Dir: s.Dir})
	require.NoError(t, err)
	require.NotEqual(t, s.Postgres.PID, back.Postgres.PID)
	requireAnswers(t, back)
	conn, err = pgx.Connect(t.Context(), back.SuperURL(Database))
	require.NoError(t, err)
	defer conn.Close(context.Background())
	var n int
	require.NoError(t, conn.QueryRow(t.Context(), "select n from kept").Scan(&n))
	require.Equal(t, 1, n)
}

func TestServerThatWasNotNotedIsFound(t *testing.T) {
	t.Parallel()
	s := startIn(t, newDir(t))
	running := s.Postgres
	s.Postgres = process{}
	require.NoError(t, s.save())

	again, err := Start(t.Context(), Options{Dir: s.Dir})
	require.NoError(t, err)
	require.Equal(t, running, again.Postgres)

	again.Postgres = process{}
	require.NoError(t, again.save())
	require.NoError(t, again.Stop(t.Context()))
	require.False(t, running.alive())
}

// A number in the state that now belongs to somebody else is no reason to signal it.
func TestStaleStateStopsNobodyElse(t *testing.T) {
	t.Parallel()
	s := startIn(t, newDir(t))
	require.NoError(t, s.Stop(t.Context()))

	stranger := exec.Command("sleep", "600")
	require.NoError(t, stranger.Start())
	t.Cleanup(func() { _ = stranger.Process.Kill(); _ = stranger.Wait() })
	start, ok := startTime(stranger.Process.Pid)
	require.True(t, ok)
	exe, err := exec.LookPath("sleep")
	require.NoError(t, err)
	exe, err = filepath.EvalSymlinks(exe)
	require.NoError(t, err)

	pid := stranger.Process.Pid
	for name, stale := range map[string]process{
		"other program":    {PID: pid, Start: start, Exe: s.Postgres.Exe},
		"other start time": {PID: pid, Start: start - 1, Exe: exe},
		"no process":       {PID: 1 << 30, Start: start, Exe: exe},
		"init":             {PID: 1, Start: 0, Exe: exe},
		"nothing noted":    {},
	} {
		require.False(t, stale.alive(), name)
		s.Postgres, s.Gateway = stale, stale
		require.NoError(t, s.save())
		// As a server that crashed leaves it behind.
		require.NoError(t, writeServerFile(filepath.Join(s.data(), "postmaster.pid"), fmt.Appendln(nil, stale.PID), 0o600))
		require.NoError(t, s.Stop(t.Context()))
		_, ok := identify(pid, exe)
		require.True(t, ok, "%s: the stranger was stopped", name)
	}
	for _, left := range []int{0, pid, 1 << 30} {
		require.NoError(t, writeServerFile(filepath.Join(s.data(), "postmaster.pid"), fmt.Appendln(nil, left), 0o600))
		back, err := Start(t.Context(), Options{Dir: s.Dir})
		require.NoError(t, err, left)
		requireAnswers(t, back)
		require.NoError(t, back.Stop(t.Context()))
	}
}

func TestSettings(t *testing.T) {
	t.Parallel()
	s := theOne(t)
	conn, err := pgx.Connect(t.Context(), s.SuperURL(Database))
	require.NoError(t, err)
	defer conn.Close(context.Background())
	for name, want := range map[string]string{
		"data_checksums":                    "on",
		"fsync":                             "off", // asked for by this test
		"log_destination":                   "jsonlog",
		"log_parameter_max_length":          "0",
		"log_parameter_max_length_on_error": "0",
		"logging_collector":                 "on",
		"password_encryption":               "scram-sha-256",
		"pgaudit.log_parameter":             "off",
		"shared_preload_libraries":          "pgaudit, pg_stat_statements",
		"ssl_min_protocol_version":          "TLSv1.3",
		"wal_level":                         "replica",
	} {
		var got string
		require.NoError(t, conn.QueryRow(t.Context(), "select current_setting($1)", name).Scan(&got))
		require.Equal(t, want, got, name)
	}
	logs, err := filepath.Glob(filepath.Join(s.LogDir(), "*.json"))
	require.NoError(t, err)
	require.NotEmpty(t, logs)

	info, err := os.Stat(s.EnvFile())
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	out, err := exec.Command("/bin/sh", "-c", `. "$1" && printf %s "$PGCUSTODY_MIGRATE_URL"`, "sh", s.EnvFile()).Output()
	require.NoError(t, err)
	require.Equal(t, s.URL(MigratorLogin, Database), string(out))

	owner, err := os.Stat(s.data())
	require.NoError(t, err)
	require.NotZero(t, owner.Sys().(*syscall.Stat_t).Uid, "the server runs as root")
}

// dialTLS asks the server for TLS as libpq does and reports the handshake's end.
func dialTLS(t *testing.T, s *Stack, config *tls.Config) (uint16, error) {
	t.Helper()
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", s.PGPort))
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, conn.SetDeadline(time.Now().Add(10*time.Second)))
	const sslRequest = 80877103
	_, err = conn.Write(binary.BigEndian.AppendUint32([]byte{0, 0, 0, 8}, sslRequest))
	require.NoError(t, err)
	answer := make([]byte, 1)
	_, err = io.ReadFull(conn, answer)
	require.NoError(t, err)
	require.Equal(t, "S", string(answer))
	client := tls.Client(conn, config)
	err = client.Handshake()
	return client.ConnectionState().Version, err
}

func TestOnlyTLS13(t *testing.T) {
	t.Parallel()
	s := theOne(t)
	roots := x509.NewCertPool()
	ca, err := os.ReadFile(s.RootCert())
	require.NoError(t, err)
	require.True(t, roots.AppendCertsFromPEM(ca))

	version, err := dialTLS(t, s, &tls.Config{RootCAs: roots, ServerName: "localhost"})
	require.NoError(t, err)
	require.EqualValues(t, tls.VersionTLS13, version)
	_, err = dialTLS(t, s, &tls.Config{RootCAs: roots, ServerName: "127.0.0.1"})
	require.NoError(t, err)
	_, err = dialTLS(t, s, &tls.Config{RootCAs: roots, ServerName: "localhost", MaxVersion: tls.VersionTLS12})
	require.ErrorContains(t, err, "protocol version")
	_, err = dialTLS(t, s, &tls.Config{ServerName: "localhost"})
	require.Error(t, err, "nobody else vouches for the server")

	plain := strings.Replace(s.URL(Superuser, Database), "verify-full", "disable", 1)
	_, err = pgx.Connect(t.Context(), plain)
	requireCode(t, err, "28000") // invalid_authorization_specification
}

func TestLogins(t *testing.T) {
	t.Parallel()
	s := theOne(t)
	for _, url := range []string{s.SuperURL(Database), s.URL(Superuser, Database)} {
		conn, err := pgx.Connect(t.Context(), url)
		require.NoError(t, err)
		var super bool
		require.NoError(t, conn.QueryRow(t.Context(), "select usesuper from pg_user where usename = session_user").Scan(&super))
		require.True(t, super)
		require.NoError(t, conn.Close(t.Context()))
	}
	conn, err := pgx.Connect(t.Context(), s.URL(MigratorLogin, Database))
	require.NoError(t, err)
	var super, createRole, owner bool
	require.NoError(t, conn.QueryRow(t.Context(), `
		select r.rolsuper, r.rolcreaterole, d.datdba = r.oid
		from pg_roles r, pg_database d where r.rolname = session_user and d.datname = current_database()`).Scan(&super, &createRole, &owner))
	require.False(t, super)
	require.True(t, createRole)
	require.True(t, owner)
	require.NoError(t, conn.Close(t.Context()))

	socket := strings.Replace(s.SuperURL(Database), Superuser, MigratorLogin, 1)
	_, err = pgx.Connect(t.Context(), socket)
	requireCode(t, err, "28000")
	wrong := strings.Replace(s.SuperURL(Database), s.Passwords[Superuser], "wrong", 1)
	_, err = pgx.Connect(t.Context(), wrong)
	requireCode(t, err, "28P01") // invalid_password
}

func TestMigratorDoor(t *testing.T) {
	t.Parallel()
	s := startIn(t, newDir(t))
	inside, err := pgx.Connect(t.Context(), s.URL(MigratorLogin, Database))
	require.NoError(t, err)
	defer inside.Close(context.Background())

	require.NoError(t, s.CloseMigrator(t.Context()))
	_, err = inside.Exec(t.Context(), "select 1")
	requireCode(t, err, "57P01") // admin_shutdown
	_, err = pgx.Connect(t.Context(), s.URL(MigratorLogin, Database))
	requireCode(t, err, "28000")
	require.NoError(t, s.OpenMigrator(t.Context()))
	requireAnswers(t, s)

	// Before the first migration there are no groups to be a member of.
	require.ErrorContains(t, s.PutLogins(t.Context(), Database), "migrate first")
	conn, err := pgx.Connect(t.Context(), s.SuperURL("postgres"))
	require.NoError(t, err)
	defer conn.Close(context.Background())
	for _, l := range Logins {
		for _, group := range l.Groups {
			_, err := conn.Exec(t.Context(), "do $$ begin create role "+group+"; exception when duplicate_object then null; end $$")
			require.NoError(t, err)
		}
	}
	for range 2 {
		require.NoError(t, s.PutLogins(t.Context(), Database))
	}
	for _, l := range Logins {
		conn, err := pgx.Connect(t.Context(), s.URL(l.Name, Database))
		require.NoError(t, err)
		for _, group := range l.Groups {
			_, err := conn.Exec(t.Context(), "set role "+group)
			require.NoError(t, err)
		}
		require.NoError(t, conn.Close(t.Context()))
	}
}

func TestCopyOfADatabase(t *testing.T) {
	t.Parallel()
	s := theOne(t)
	require.NoError(t, s.CreateDatabase(t.Context(), "from_this", ""))
	require.NoError(t, s.asSuperuser(t.Context(), "postgres",
		"create role visitor login password 'visitor'",
		"grant connect, temporary on database from_this to visitor",
		"alter database from_this set search_path = ''",
		"alter role visitor in database from_this set search_path = 'a b', pg_catalog"))
	require.NoError(t, s.CreateDatabase(t.Context(), "to that", "from_this"))

	conn, err := pgx.Connect(t.Context(), s.SuperURL("to that"))
	require.NoError(t, err)
	defer conn.Close(context.Background())
	var path string
	var same bool
	require.NoError(t, conn.QueryRow(t.Context(), "select current_setting('search_path')").Scan(&path))
	require.Equal(t, `""`, path)
	require.NoError(t, conn.QueryRow(t.Context(), `
		select a.datacl::text = b.datacl::text from pg_database a, pg_database b
		where a.datname = 'from_this' and b.datname = 'to that'`).Scan(&same))
	require.True(t, same)

	visitor, err := pgx.Connect(t.Context(), strings.NewReplacer(MigratorLogin, "visitor", s.Passwords[MigratorLogin], "visitor").
		Replace(s.URL(MigratorLogin, "to that")))
	require.NoError(t, err)
	defer visitor.Close(context.Background())
	require.NoError(t, visitor.QueryRow(t.Context(), "select current_setting('search_path')").Scan(&path))
	require.Equal(t, `"a b", pg_catalog`, path)
}

func TestObjectLock(t *testing.T) {
	t.Parallel()
	s := theOne(t)
	client := s.S3()
	put, err := client.PutObject(t.Context(), &s3.PutObjectInput{
		Bucket: &s.Bucket, Key: aws.String("locked"), Body: strings.NewReader("evidence"),
		ChecksumAlgorithm:         types.ChecksumAlgorithmSha256,
		ObjectLockMode:            types.ObjectLockModeCompliance,
		ObjectLockRetainUntilDate: aws.Time(time.Now().Add(time.Hour)),
	})
	require.NoError(t, err)
	require.NotEmpty(t, aws.ToString(put.VersionId))

	_, err = s.S3Root().DeleteObject(t.Context(), &s3.DeleteObjectInput{
		Bucket: &s.Bucket, Key: aws.String("locked"), VersionId: put.VersionId, BypassGovernanceRetention: aws.Bool(true),
	})
	var refused smithy.APIError
	require.ErrorAs(t, err, &refused)
	require.Equal(t, "AccessDenied", refused.ErrorCode())

	require.NoError(t, s.NewBucket(t.Context(), "unlocked", false))
	require.NoError(t, s.NewBucket(t.Context(), "unlocked", false), "twice is once")
	_, err = client.PutObject(t.Context(), &s3.PutObjectInput{
		Bucket: aws.String("unlocked"), Key: aws.String("locked"), Body: strings.NewReader("evidence"),
		ChecksumAlgorithm:         types.ChecksumAlgorithmSha256,
		ObjectLockMode:            types.ObjectLockModeCompliance,
		ObjectLockRetainUntilDate: aws.Time(time.Now().Add(time.Hour)),
	})
	require.Error(t, err, "a bucket without Object Lock must not take a lock")
}

func TestFarAwayFolder(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(newDir(t), strings.Repeat("long", 25))
	s := startIn(t, dir)
	require.False(t, strings.HasPrefix(s.PGHome, dir), "no socket has room in %s", dir)
	requireAnswers(t, s)
	require.NoError(t, s.Destroy(t.Context()))
	require.NoDirExists(t, s.PGHome)
	require.NoDirExists(t, dir)
}

// As in root's home: what root may enter, the server's account may not.
func TestFolderClosedToOthers(t *testing.T) {
	t.Parallel()
	closed := newDir(t)
	require.NoError(t, os.Chmod(closed, 0o700))
	requireAnswers(t, startIn(t, filepath.Join(closed, "stack")))
}

func TestDestroyKeepsWhatIsNotItsOwn(t *testing.T) {
	t.Parallel()
	s := startIn(t, newDir(t))
	other := filepath.Join(s.Dir, "thesis.txt")
	require.NoError(t, os.WriteFile(other, nil, 0o600))
	require.NoError(t, s.Destroy(t.Context()))
	require.FileExists(t, other)
	entries, err := os.ReadDir(s.Dir)
	require.NoError(t, err)
	require.Len(t, entries, 1)
}

func TestOpenNothing(t *testing.T) {
	t.Parallel()
	_, err := Open(newDir(t))
	require.ErrorIs(t, err, ErrNoStack)
}

func TestPooler(t *testing.T) {
	t.Parallel()
	s := theOne(t)
	require.NoError(t, s.CreateDatabase(t.Context(), "pooled", ""))
	p, err := s.StartPooler(t.Context(), "pooled")
	require.NoError(t, err)
	defer func() { require.NoError(t, p.Stop()) }()

	// Two clients share one server session: what the first one set, the second meets.
	backends := map[int]bool{}
	for range 2 {
		conn, err := pgx.Connect(t.Context(), p.URL(MigratorLogin))
		require.NoError(t, err)
		var pid int
		require.NoError(t, conn.QueryRow(t.Context(), "select pg_backend_pid() where $1 = 1", 1).Scan(&pid))
		backends[pid] = true
		require.NoError(t, conn.Close(t.Context()))
	}
	require.Len(t, backends, 1)
	_, err = pgx.Connect(t.Context(), strings.Replace(p.URL(MigratorLogin), "verify-full", "disable", 1))
	require.Error(t, err, "plain connections are refused")
}

// holdEphemeral is the other program of TestEphemeralGoesWithItsProcess.
func holdEphemeral(dir string) {
	s, err := Start(context.Background(), Options{Dir: dir, NoFsync: true, Ephemeral: true})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("started", s.PGHome)
	select {}
}

func TestEphemeralGoesWithItsProcess(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	program := exec.Command(os.Args[0])
	program.Env = append(slices.Clone(os.Environ()), "STACK_TEST_EPHEMERAL="+dir)
	out, err := program.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, program.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	require.Contains(t, line, "started")
	s, err := Open(dir)
	require.NoError(t, err)
	requireAnswers(t, s)

	require.NoError(t, program.Process.Kill()) // it has no time to clean up
	_ = program.Wait()
	require.NoError(t, retry(t.Context(), time.Minute, func() error {
		if postgres, gateway := s.Running(); postgres || gateway || exists(dir) {
			return errors.New("the stack is still there")
		}
		return nil
	}))
}

func requireCode(t *testing.T, err error, code string) {
	t.Helper()
	var pgErr *pgconn.PgError
	require.ErrorAs(t, err, &pgErr)
	require.Equal(t, code, pgErr.Code, pgErr.Message)
}
