package backup_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"pgcustody/cmd/devstack/stack"
	"pgcustody/cmd/devstack/stack/stacktest"
	"pgcustody/jobs/backup"
	"pgcustody/jobs/keys"
	"pgcustody/sql"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		if programDir != "" {
			_ = os.RemoveAll(programDir)
		}
		os.Exit(code)
	}))
}

const tenant = "acme"

// program is pgcustody itself, built once: what is tried here is what an operator types.
var program = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "pgcustody-bin-")
	if err != nil {
		return "", err
	}
	programDir = dir
	path := filepath.Join(dir, "pgcustody")
	out, err := exec.Command("go", "build", "-o", path, "pgcustody/cmd/pgcustody").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return path, nil
})

var programDir string

// bench is a database with people in it, a bucket, and keys for both.
type bench struct {
	*testing.T
	*stacktest.Database
	env      map[string]string
	provider keys.Provider
	identity string // file
	bucket   string
	tmp      string
}

func newBench(t *testing.T) *bench {
	t.Helper()
	return benchOn(t, stacktest.DB(t), stacktest.Bucket(t))
}

func benchOn(t *testing.T, d *stacktest.Database, bucket string) *bench {
	t.Helper()
	b := &bench{T: t, Database: d, env: map[string]string{}, bucket: bucket, tmp: filepath.Join(t.TempDir(), "tmp")}
	require.NoError(t, os.Mkdir(b.tmp, 0o700))
	for name, value := range d.Stack.Env() {
		b.env[name] = value
	}
	keyring := filepath.Join(t.TempDir(), "keys")
	require.NoError(t, os.Mkdir(keyring, 0o700))
	identity, err := age.GenerateX25519Identity()
	require.NoError(t, err)
	b.identity = filepath.Join(t.TempDir(), "identity")
	require.NoError(t, os.WriteFile(b.identity, []byte(identity.String()+"\n"), 0o600))
	for name, value := range map[string]string{
		"PATH": os.Getenv("PATH"), "HOME": b.tmp, "TMPDIR": b.tmp, "PGDATABASE": d.Name,
		"PGCUSTODY_STORE": "s3://" + b.bucket, "PGCUSTODY_TENANT": tenant, "PGCUSTODY_KEYS": "file:" + keyring,
		"PGCUSTODY_BACKUP_URL": d.URLs["custody_dump"], "PGCUSTODY_BACKUP_RECIPIENT": identity.Recipient().String(),
		"PGCUSTODY_BACKUP_IDENTITY": b.identity, "PGCUSTODY_ARCHIVE_RECIPIENTS": identity.Recipient().String(),
	} {
		b.env[name] = value
	}
	b.provider, err = keys.Parse(t.Context(), "file:"+keyring, false)
	require.NoError(t, err)
	b.ok("tenants", "register", tenant)
	b.ok("keys", "create")
	return b
}

// start starts pgcustody in a process of its own.
func (b *bench) start(env map[string]string, args ...string) (cmd *exec.Cmd, out, said *bytes.Buffer) {
	b.Helper()
	path, err := program()
	require.NoError(b, err)
	cmd = exec.Command(path, args...)
	for name, value := range b.env {
		if _, other := env[name]; !other {
			cmd.Env = append(cmd.Env, name+"="+value)
		}
	}
	for name, value := range env {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	out, said = new(bytes.Buffer), new(bytes.Buffer)
	cmd.Stdout, cmd.Stderr = out, said
	// What a process that was killed had started may hold these for a while.
	cmd.WaitDelay = time.Minute
	require.NoError(b, cmd.Start())
	return cmd, out, said
}

// run runs pgcustody to its end.
func (b *bench) run(args ...string) (code int, out, said string) {
	b.Helper()
	cmd, stdout, stderr := b.start(nil, args...)
	_ = cmd.Wait()
	return cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()
}

func (b *bench) ok(args ...string) string {
	b.Helper()
	code, out, said := b.run(args...)
	require.Zero(b, code, "%s: %s%s", args, out, said)
	return out
}

// fails runs what must end with this status, and say these words in its one line.
func (b *bench) fails(code int, args []string, words ...string) {
	b.Helper()
	got, out, said := b.run(args...)
	require.Equal(b, code, got, "%s: %s%s", args, out, said)
	for _, word := range words {
		require.Contains(b, said, word, "%s", args)
	}
	require.Equal(b, 1, strings.Count(said, "pgcustody: "), said)
}

func decode[T any](t testing.TB, text string) (value T) {
	t.Helper()
	require.NoError(t, json.Unmarshal([]byte(text), &value), text)
	return value
}

// backup makes one.
func (b *bench) backup(args ...string) backup.Result {
	b.Helper()
	return decode[backup.Result](b.T, b.ok(append([]string{"backup", "--json"}, args...)...))
}

func (b *bench) list() []backup.Listed {
	b.Helper()
	return decode[[]backup.Listed](b.T, b.ok("backup", "list", "--json"))
}

func (b *bench) kek(version int) keys.Key {
	b.Helper()
	kek, err := b.provider.KEK(b.Context(), keys.Ref{Tenant: tenant, Version: version})
	require.NoError(b, err)
	return kek
}

// inContext runs work as a login, under the tenant's key where one is given.
func inContext(t testing.TB, address string, kek []byte, work func(pgx.Tx) error) error {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), address)
	if err != nil {
		return err
	}
	defer conn.Close(context.Background())
	return pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(t.Context(), "select custody.set_context($1, 'tester', 'test')", tenant); err != nil {
			return err
		}
		if kek != nil {
			var version int
			if err := tx.QueryRow(t.Context(), "select custody.unlock($1)", kek).Scan(&version); err != nil {
				return err
			}
		}
		return work(tx)
	})
}

// person is somebody with something in each table, and with a sealed value.
type person struct {
	user     string
	identity uuid.UUID
	sealed   []byte
}

func (b *bench) person(user string) (p person) {
	b.Helper()
	p.user = user
	require.NoError(b, inContext(b.T, b.URLs["custody_app"], b.kek(1).Bytes(), func(tx pgx.Tx) error {
		if _, err := tx.Exec(b.Context(), `
			select custody.put_profile($1, '{"full_name": "Planted Person"}'), custody.put_preferences($1, '{"colour": "planted-preference"}'),
			  custody.record_consent($1, 'newsletter', true, '1'), custody.save_conversation($1, 'c1', '[{"role": "user", "text": "planted-message"}]'),
			  custody.record_audit_event('account.login', 'account', $1, p_metadata => '{"method": "planted-method"}', p_subject_user_id => $1)`, user); err != nil {
			return err
		}
		if err := tx.QueryRow(b.Context(), "select identity_id from custody_data.identities where user_id = $1", user).Scan(&p.identity); err != nil {
			return err
		}
		return tx.QueryRow(b.Context(), "select custody.seal_value($1, 'notes', 'body', '1', $2)", p.identity, "secret of "+user).Scan(&p.sealed)
	}))
	return p
}

// opens tells what a sealed value of a person says in a database.
func opens(t testing.TB, address string, kek []byte, p person) (value string, err error) {
	t.Helper()
	return value, inContext(t, address, kek, func(tx pgx.Tx) error {
		return tx.QueryRow(t.Context(), "select custody.open_value($1, 'notes', 'body', '1', $2)", p.identity, p.sealed).Scan(&value)
	})
}

func state(err error) string {
	var refused *pgconn.PgError
	if errors.As(err, &refused) {
		return refused.Code
	}
	return ""
}

func ask[T any](t testing.TB, address, query string, args ...any) (value T) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), address)
	require.NoError(t, err)
	defer conn.Close(context.Background())
	require.NoError(t, conn.QueryRow(t.Context(), query, args...).Scan(&value))
	return value
}

func do(t testing.TB, address string, statements ...string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), address)
	require.NoError(t, err)
	defer conn.Close(context.Background())
	for _, statement := range statements {
		_, err := conn.Exec(t.Context(), statement)
		require.NoError(t, err, statement)
	}
}

// cluster is another cluster, with pgcustody's roles and logins and no database of it.
func cluster(t *testing.T) *stack.Stack {
	t.Helper()
	s := bareCluster(t)
	require.NoError(t, s.CreateDatabase(t.Context(), "roles_first", ""))
	_, err := sql.Up(t.Context(), sql.Config{URL: s.URL(stack.MigratorLogin, "roles_first")})
	require.NoError(t, err)
	require.NoError(t, s.PutLogins(t.Context(), "roles_first"))
	require.NoError(t, s.DropDatabase(t.Context(), "roles_first"))
	return s
}

func bareCluster(t *testing.T) *stack.Stack {
	t.Helper()
	dir, err := stack.TempDir()
	require.NoError(t, err)
	s, err := stack.Start(t.Context(), stack.Options{Dir: dir, NoFsync: true, Ephemeral: true})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Destroy(context.Background())) })
	return s
}

// archived puts events of a day that is over into the archive.
func (b *bench) archived() {
	b.Helper()
	day := time.Now().UTC().AddDate(0, 0, -3).Format(time.RFC3339)
	// Of that day alone: a restored database archives events of today, too.
	events := func() (n int64) {
		for _, segment := range decode[[]struct {
			Day    string
			Events int64
		}](b.T, b.ok("archive", "list", "--json")) {
			if strings.HasPrefix(day, segment.Day) {
				n += segment.Events
			}
		}
		return n
	}
	before := events()
	require.NoError(b, inContext(b.T, b.URLs["custody_runner"], nil, func(tx pgx.Tx) error {
		if _, err := tx.Exec(b.Context(), "select custody.ensure_audit_partitions($1::timestamptz, $1::timestamptz)", day); err != nil {
			return err
		}
		_, err := tx.Exec(b.Context(), `
			insert into custody_data.audit_logs (tenant_id, log_entry_id, occurred_at, actor_id, action, import_id)
			select 'acme', gen_random_uuid(), $1::timestamptz, gen_random_uuid(), 'account.login', gen_random_uuid() from generate_series(1, 5)`, day)
		return err
	}))
	// A transaction of another test may be open in the cluster, and puts it off.
	require.EventuallyWithT(b, func(c *assert.CollectT) {
		b.ok("archive", "run")
		assert.Equal(c, before+5, events())
	}, 3*time.Minute, 200*time.Millisecond)
}

// objects returns what the bucket has, every version, by key and version.
func (b *bench) objects() map[string][]byte {
	b.Helper()
	client := b.Stack.S3()
	found := map[string][]byte{}
	pages := s3.NewListObjectVersionsPaginator(client, &s3.ListObjectVersionsInput{Bucket: &b.bucket})
	for pages.HasMorePages() {
		page, err := pages.NextPage(b.Context())
		require.NoError(b, err)
		for _, v := range page.Versions {
			object, err := client.GetObject(b.Context(), &s3.GetObjectInput{Bucket: &b.bucket, Key: v.Key, VersionId: v.VersionId})
			require.NoError(b, err)
			content, err := io.ReadAll(object.Body)
			require.NoError(b, err)
			object.Body.Close()
			found[*v.Key+" "+aws.ToString(v.VersionId)] = content
		}
	}
	return found
}

func (b *bench) uploads() int {
	b.Helper()
	out, err := b.Stack.S3().ListMultipartUploads(b.Context(), &s3.ListMultipartUploadsInput{Bucket: &b.bucket})
	require.NoError(b, err)
	return len(out.Uploads)
}

// gate stands before the store, and stops the nth request that it is told of.
type gate struct {
	*httptest.Server
	match   func(*http.Request) bool
	left    atomic.Int32
	reached chan struct{}
}

func newGate(t *testing.T, endpoint string, nth int, match func(*http.Request) bool) *gate {
	t.Helper()
	target, err := url.Parse(endpoint)
	require.NoError(t, err)
	transport := &http.Transport{}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.Out.Host = r.In.Host // the signature is over the host that the client knows
		},
		Transport: transport,
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) {
			w.WriteHeader(http.StatusBadGateway)
		},
	}
	g := &gate{match: match, reached: make(chan struct{})}
	g.left.Store(int32(nth))
	g.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if match(r) && g.left.Add(-1) == 0 {
			_, _ = io.Copy(io.Discard, r.Body) // or the end of the client is not seen
			close(g.reached)
			<-r.Context().Done()
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(func() { g.CloseClientConnections(); g.Close(); transport.CloseIdleConnections() })
	return g
}

// killed runs pgcustody until it makes its nth request that matches, lets look be
// called then, and kills it.
func (b *bench) killed(nth int, match func(*http.Request) bool, look func(), args ...string) {
	b.Helper()
	_, out := b.stopped(os.Kill, nth, match, look, args...)
	require.Empty(b, out)
}

func (b *bench) stopped(signal os.Signal, nth int, match func(*http.Request) bool, look func(), args ...string) (code int, output string) {
	b.Helper()
	g := newGate(b.T, b.Stack.Endpoint(), nth, match)
	cmd, out, said := b.start(map[string]string{"AWS_ENDPOINT_URL_S3": g.URL}, args...)
	ended := make(chan struct{})
	go func() { defer close(ended); _ = cmd.Wait() }()
	select {
	case <-g.reached:
	case <-ended:
		require.FailNow(b, "it ended before it could be stopped", "%s%s", out, said)
	case <-time.After(5 * time.Minute):
		require.FailNow(b, "it never came that far")
	}
	if look != nil {
		look()
	}
	require.NoError(b, cmd.Process.Signal(signal))
	<-ended
	return cmd.ProcessState.ExitCode(), out.String() + said.String()
}

// nobodyLeft waits until the server knows that a process which was killed is gone, and
// with it what it had started.
func nobodyLeft(t *testing.T, s *stack.Stack, name string) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		assert.Zero(c, ask[int](t, s.SuperURL("postgres"), `select count(*) from pg_catalog.pg_stat_activity where datname = $1 and application_name like 'pgcustody%'`, name))
	}, 2*time.Minute, 50*time.Millisecond)
}

func on(method, part string) func(*http.Request) bool {
	return func(r *http.Request) bool { return r.Method == method && strings.Contains(r.URL.String(), part) }
}

func databaseOf(s *stack.Stack, name string) *stacktest.Database {
	d := &stacktest.Database{Name: name, Stack: s, URLs: map[string]string{}}
	for login := range s.Passwords {
		d.URLs[login] = s.URL(login, name)
	}
	return d
}

// in is the same store with a database of another cluster.
func (b *bench) in(t *testing.T, s *stack.Stack, name string) *bench {
	t.Helper()
	other := *b
	other.T, other.env = t, maps.Clone(b.env)
	other.Database = databaseOf(s, name)
	other.Stack = b.Stack // whose store it is
	for variable, value := range s.Env() {
		if strings.HasPrefix(variable, "PG") && !strings.HasPrefix(variable, "PGCUSTODY_") {
			other.env[variable] = value
		}
	}
	other.env["PGDATABASE"], other.env["PGCUSTODY_BACKUP_URL"] = name, other.URLs["custody_dump"]
	return &other
}

func TestBackupEraseRestoreLook(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ada, bob := b.person("planted-ada"), b.person("planted-bob")
	b.archived()
	made := b.backup()
	require.Equal(t, []backup.TenantKEKs{{Tenant: tenant, Valid: []int{1}}}, made.KEKs)
	require.Contains(t, made.Roles, "custody_owner")
	require.True(t, made.Data.LockedUntil.After(time.Now().AddDate(0, 0, 89)))
	require.True(t, made.Keys.LockedUntil.Before(time.Now().AddDate(0, 0, 8)))
	listed := b.list()
	require.Len(t, listed, 1)
	require.True(t, listed[0].HasData && listed[0].HasKeys)

	t.Run("nothing in plaintext", func(t *testing.T) {
		found := 0
		for name, content := range b.objects() {
			if !strings.Contains(name, "backups/") {
				continue
			}
			found++
			for _, planted := range []string{"Planted Person", "planted-", "PGDMP", "COPY ", "secret of"} {
				require.NotContains(t, string(content), planted, name)
			}
		}
		require.Equal(t, 3, found)
		left, err := os.ReadDir(b.tmp)
		require.NoError(t, err)
		require.Empty(t, left, "a program wrote to the disk")
	})
	t.Run("it is on record", func(t *testing.T) {
		require.Equal(t, "backup succeeded", ask[string](t, b.Stack.SuperURL(b.Name),
			`select job || ' ' || status from custody_data.job_runs where tenant_id = 'system' and job = 'backup' and bytes > 0`))
	})

	// What the backup knows nothing of.
	b.archived()
	b.ok("erase", ada.user)
	fresh := b.person("cyd")
	b.ok("erase", fresh.user)
	_, err := opens(t, b.URLs["custody_app"], b.kek(1).Bytes(), ada)
	require.Error(t, err)
	b.ok("keys", "rotate")

	s := cluster(t)
	require.NoError(t, s.CreateDatabase(t.Context(), "restored", ""))
	into := s.URL(stack.MigratorLogin, "restored")
	app := s.URL("custody_app", "restored")
	done := decode[backup.Restored](t, b.ok("restore", "--json", "--into", into, "--manifest-sha256", made.ManifestSHA256))
	require.Equal(t, made.ID, done.Backup)
	require.Equal(t, backup.Replayed{Certificates: 2, Replayed: 1, Unknown: 1}, done.Erasures)
	require.EqualValues(t, 5, done.Archive.Events)
	require.Equal(t, 2, done.Archive.Newer, "a segment and its manifest")
	for _, finding := range done.Findings {
		// The login is open for the restore, and nothing made months ahead here.
		require.Regexp(t, "^(migrator-open|partition-ahead) ", finding)
	}
	require.NotEqual(t, uuid.Nil, done.Incarnation)

	t.Run("the person is gone", func(t *testing.T) {
		admin := s.SuperURL("restored")
		require.Equal(t, 0, ask[int](t, admin, `select count(*) from custody_keys.wrapped_keys where identity_id = $1`, ada.identity))
		require.Equal(t, 1, ask[int](t, admin, `select count(*) from custody_keys.data_keys where identity_id = $1 and destroyed_at is not null`, ada.identity))
		require.Equal(t, 0, ask[int](t, admin, `select count(*) from custody_data.identities where user_id = $1`, ada.user))
		for _, table := range []string{"user_profiles", "user_preferences", "conversations"} {
			require.Equal(t, 0, ask[int](t, admin, `select count(*) from custody_data.`+table+` where identity_id = $1`, ada.identity), table)
			require.Equal(t, 1, ask[int](t, admin, `select count(*) from custody_data.`+table+` where identity_id = $1`, bob.identity), table)
		}
		_, err := opens(t, app, b.kek(1).Bytes(), ada)
		require.Error(t, err)
	})
	t.Run("the others are there", func(t *testing.T) {
		value, err := opens(t, app, b.kek(1).Bytes(), bob)
		require.NoError(t, err)
		require.Equal(t, "secret of planted-bob", value)
	})
	t.Run("under the key of the time of the backup, until it is rotated", func(t *testing.T) {
		_, err := opens(t, app, b.kek(2).Bytes(), bob)
		require.Equal(t, "PC034", state(err))
		b.in(t, s, "restored").ok("keys", "rotate")
		value, err := opens(t, app, b.kek(2).Bytes(), bob)
		require.NoError(t, err)
		require.Equal(t, "secret of planted-bob", value)
	})
	t.Run("the proofs hold, and the jobs go on", func(t *testing.T) {
		r := b.in(t, s, "restored")
		require.Contains(t, r.ok("archive", "verify"), "1 segments with 5 events verified, 0 findings")
		r.archived()
		require.Contains(t, r.ok("archive", "verify"), " 0 findings")
		require.Equal(t, "restore succeeded", ask[string](t, s.SuperURL("restored"), `select job || ' ' || status from custody_data.job_runs where job = 'restore'`))
		r.ok("erase", bob.user)
		again := r.backup()
		require.NotEqual(t, made.SystemIdentifier, again.SystemIdentifier)
	})
	t.Run("not twice into the same", func(t *testing.T) {
		b.fails(3, []string{"restore", "--into", into}, "is not empty", "nothing was changed")
	})
}

func TestBackupKilledAnywhere(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.person("planted-ada")
	// More than a part, and nothing that could be made smaller.
	do(t, b.Stack.SuperURL(b.Name),
		`create table public.bulk as select pg_catalog.string_agg(pg_catalog.sha256(n::text::bytea), '')::bytea as body from pg_catalog.generate_series(1, 600000) n`,
		`grant select on public.bulk to custody_backup`)
	b.backup()
	complete := 1
	for _, at := range []struct {
		name    string
		match   func(*http.Request) bool
		nth     int
		another bool // it is a backup already
	}{
		{"the first part of the data", on("PUT", "data.dump.age?"), 1, false},
		{"the second part", on("PUT", "partNumber=2"), 1, false},
		{"the end of the upload", on("POST", "data.dump.age?uploadId"), 1, false},
		{"the keys", on("PUT", "keys.dump.age"), 1, false},
		{"reading back", on("GET", "data.dump.age"), 1, false},
		{"the longer lock", on("PUT", "keys.dump.age?retention"), 1, false},
		{"the manifest", on("PUT", "manifest.json"), 1, false},
		{"reading the manifest back", on("GET", "manifest.json"), 1, true},
	} {
		b.killed(at.nth, at.match, nil, "backup")
		nobodyLeft(t, b.Stack, b.Name)
		if at.name == "the second part" {
			require.Equal(t, 1, b.uploads())
		}
		if at.another {
			complete++
		}
		require.Len(t, b.list(), complete, at.name)
		for name, content := range b.objects() {
			if strings.HasPrefix(name, backup.DataPrefix) || strings.HasPrefix(name, backup.KeysPrefix) {
				require.NotContains(t, string(content), "planted-", "%s: %s", at.name, name)
				require.NotContains(t, string(content), "PGDMP", "%s: %s", at.name, name)
			}
		}
	}
	left, err := os.ReadDir(b.tmp)
	require.NoError(t, err)
	require.Empty(t, left)
	for _, entry := range b.list() {
		require.True(t, entry.HasData && entry.HasKeys, entry.ID)
	}

	b.backup()

	t.Run("an interrupt is no kill", func(t *testing.T) {
		code, said := b.stopped(os.Interrupt, 1, on("PUT", "partNumber=2"), nil, "backup")
		require.Equal(t, 1, code, said)
		require.Contains(t, said, "interrupted")
		nobodyLeft(t, b.Stack, b.Name)
		require.Equal(t, "failed backup: interrupted", ask[string](t, b.Stack.SuperURL(b.Name),
			`select status || ' ' || error from custody_data.job_runs where job = 'backup' order by started_at desc limit 1`))
	})
	require.Len(t, b.list(), complete+1)
	require.Zero(t, b.uploads(), "unfinished uploads are gone")
	require.Equal(t, 0, ask[int](t, b.Stack.SuperURL(b.Name), `select count(*) from custody_data.job_runs where job = 'backup' and status = 'running'`))
	require.Equal(t, 8, ask[int](t, b.Stack.SuperURL(b.Name), `select count(*) from custody_data.job_runs where job = 'backup' and error = 'the process died'`))
}

func TestRestoreKilledAnywhere(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ada, bob := b.person("planted-ada"), b.person("planted-bob")
	b.archived()
	b.backup()
	b.ok("erase", ada.user)

	s := cluster(t)
	require.NoError(t, s.CreateDatabase(t.Context(), "restored", ""))
	into, app := s.URL(stack.MigratorLogin, "restored"), s.URL("custody_app", "restored")
	closed := func() {
		t.Helper()
		for _, login := range []string{"custody_app", "custody_runner", "custody_reports", "custody_dpo", "custody_audit", "custody_dump"} {
			_, err := pgx.Connect(t.Context(), s.URL(login, "restored"))
			require.Equal(t, "42501", state(err), "%s: %v", login, err)
		}
	}
	var loaded bool
	for _, at := range []struct {
		name   string
		match  func(*http.Request) bool
		nth    int
		loaded bool
	}{
		{"while it only looks", on("GET", "keys.dump.age"), 1, false},
		{"the data", on("GET", "data.dump.age"), 2, false},
		{"the keys", on("GET", "keys.dump.age"), 2, false},
		{"guards and policies", on("GET", "data.dump.age"), 3, false},
		{"the first erasure", on("GET", "erasure-certificates/acme/"), 1, true},
		{"the archive", on("GET", "audit-archives/2"), 1, true},
	} {
		b.killed(at.nth, at.match, closed, "restore", "--into", into)
		closed()
		nobodyLeft(t, s, "restored")
		loaded = at.loaded
	}
	require.True(t, loaded)
	done := decode[backup.Restored](t, b.ok("restore", "--json", "--into", into))
	require.True(t, done.Resumed)
	require.Equal(t, 1, done.Erasures.Certificates)
	require.Equal(t, 1, done.Erasures.Standing+done.Erasures.Replayed)
	value, err := opens(t, app, b.kek(1).Bytes(), bob)
	require.NoError(t, err)
	require.Equal(t, "secret of planted-bob", value)
	_, err = opens(t, app, b.kek(1).Bytes(), ada)
	require.Error(t, err)
	require.Equal(t, 0, ask[int](t, s.SuperURL("restored"), `select count(*) from custody_keys.wrapped_keys where identity_id = $1`, ada.identity))
}

// Where somebody restores beside the original, both archive, and neither takes the other's names.
func TestRestoreIntoTheSameCluster(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.person("planted-ada")
	b.archived()
	b.backup()
	name := b.Name[:min(len(b.Name), 50)] + "_restored"
	t.Cleanup(func() { require.NoError(t, b.Stack.DropDatabase(context.Background(), name)) })
	done := decode[backup.Restored](t, b.ok("restore", "--json", "--into", b.Stack.SuperURL(name)))
	r := b.in(t, b.Stack, name)
	require.Equal(t, 2, ask[int](t, b.Stack.SuperURL(name), `select count(*) from custody_data.incarnations`))
	b.archived()
	r.archived()
	require.Contains(t, r.ok("archive", "verify"), " 0 findings")
	keys := ask[string](t, b.Stack.SuperURL(name), `select string_agg(object_key, ' ' order by recorded_at) from custody_data.archive_segments`)
	require.Contains(t, keys, "-"+done.Incarnation.String()[:8]+".jsonl.zst")
	// The original sees what it did not write.
	b.fails(4, []string{"archive", "verify"}, "is on no record")
}
