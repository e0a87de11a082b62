package backup_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"pgcustody/cmd/devstack/stack"
	"pgcustody/jobs/backup"
	"pgcustody/sql"
)

// file writes a file of the test's own.
func (b *bench) file(content string) string {
	b.Helper()
	path := filepath.Join(b.TempDir(), "file")
	require.NoError(b, os.WriteFile(path, []byte(content), 0o600))
	return path
}

func newIdentity(t *testing.T) *age.X25519Identity {
	t.Helper()
	identity, err := age.GenerateX25519Identity()
	require.NoError(t, err)
	return identity
}

func TestBackupRefuses(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	url, secret := b.URLs["custody_dump"], newIdentity(t).String()
	password := b.Stack.Passwords["custody_dump"]
	with := func(from, to string) []string {
		require.Contains(t, url, from)
		return []string{"backup", "--backup-url", strings.Replace(url, from, to, 1)}
	}
	for _, wrong := range []struct {
		name  string
		code  int
		args  []string
		words []string
	}{
		{"no TLS", 2, with("sslmode=verify-full", "sslmode=disable"), []string{"TLS is required"}},
		{"TLS if it pleases", 2, with("sslmode=verify-full", "sslmode=prefer"), []string{"TLS is required"}},
		{"another form of address", 2, []string{"backup", "--backup-url", "host=localhost password=" + password}, []string{"--backup-url"}},
		{"a secret in the address", 2, with("sslmode=", "sslpassword=hidden&sslmode="), []string{"sslpassword"}},
		{"a login without the right", 5, []string{"backup", "--backup-url", b.URLs["custody_app"]}, []string{"custody_backup", "custody_app"}},
		{"no such database", 6, with(b.Name, "nowhere"), []string{"nowhere"}},
		{"an identity for a recipient", 2, []string{"backup", "--recipient", secret}, []string{"secret"}},
		{"no recipient of age", 2, []string{"backup", "--recipient", "ssh-ed25519 AAAA"}, []string{"--recipient"}},
		{"an identity in the file", 2, []string{"backup", "--recipients-file", b.file("# ours\n" + secret + "\n")}, []string{"line 2"}},
		{"no file", 2, []string{"backup", "--recipients-file", "/nonexistent"}, []string{"/nonexistent"}},
		{"keys for longer than data", 2, []string{"backup", "--keep", "3d", "--keep-keys", "4d"}, []string{"--keep-keys"}},
		{"no time", 2, []string{"backup", "--keep", "soon"}, []string{"soon"}},
		{"no positive time", 2, []string{"backup", "--keep-keys", "-1h"}, []string{"--keep-keys"}},
		{"no pg_dump", 2, []string{"backup", "--pg-bin", b.tmp}, []string{"pg_dump"}},
		{"no bucket", 7, []string{"backup", "--store", "s3://no-such-bucket-here"}, nil},
		{"an argument", 2, []string{"backup", "now"}, []string{"now"}},
	} {
		code, out, said := b.run(wrong.args...)
		require.Equal(t, wrong.code, code, "%s: %s%s", wrong.name, out, said)
		for _, word := range wrong.words {
			require.Contains(t, said, word, wrong.name)
		}
		require.NotContains(t, said, secret, wrong.name)
		require.NotContains(t, said, password, wrong.name)
	}

	t.Run("no store, no recipient, no address", func(t *testing.T) {
		for _, name := range []string{"PGCUSTODY_STORE", "PGCUSTODY_BACKUP_RECIPIENT", "PGCUSTODY_BACKUP_URL"} {
			cmd, _, said := b.start(map[string]string{name: ""}, "backup")
			_ = cmd.Wait()
			require.Equal(t, 2, cmd.ProcessState.ExitCode(), "%s: %s", name, said)
			require.Contains(t, said.String(), "required")
		}
	})
	t.Run("a table that the login may not read", func(t *testing.T) {
		do(t, b.Stack.SuperURL(b.Name), "create table public.private (a int)")
		b.fails(5, []string{"backup"}, "permission denied for table private")
		do(t, b.Stack.SuperURL(b.Name), "drop table public.private")
		require.Equal(t, "backup: *exec.ExitError", ask[string](t, b.Stack.SuperURL(b.Name),
			`select error from custody_data.job_runs where job = 'backup' order by started_at desc limit 1`))
	})
	t.Run("rows that the login would not see", func(t *testing.T) {
		do(t, b.Stack.SuperURL(b.Name), "create table public.private (a int)", "insert into public.private values (1)", "grant select on public.private to custody_backup",
			"alter table public.private enable row level security")
		for _, policy := range []string{
			"create policy others on public.private for select to custody_readonly using (true)",
			"create policy a_few on public.private for select to custody_backup using (a > 1)",
			"create policy writing on public.private for insert to custody_backup with check (true)",
		} {
			do(t, b.Stack.SuperURL(b.Name), policy)
			b.fails(5, []string{"backup"}, "row-level security", "public.private", "using (true)")
		}
		do(t, b.Stack.SuperURL(b.Name), "create policy all_rows on public.private for select to custody_backup using (true)",
			"create policy never on public.private as restrictive using (a > 1)")
		b.fails(5, []string{"backup"}, "row-level security", "public.private")
		do(t, b.Stack.SuperURL(b.Name), "drop table public.private")
	})
	t.Run("while another one is at it", func(t *testing.T) {
		b.killed(1, on("PUT", "data.dump.age"), func() { b.fails(3, []string{"backup"}, "another backup") }, "backup")
	})
	for name := range b.objects() {
		require.NotContains(t, name, "backups/", "half a backup became an object")
	}
	require.Empty(t, b.list())
	require.Equal(t, "no backups\n", b.ok("backup", "list"))
}

func TestRestoreRefuses(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.person("planted-ada")
	role := "reporting_" + strings.ToLower(rand.Text()[:8])
	do(t, b.Stack.SuperURL(b.Name), "create role "+role)
	t.Cleanup(func() {
		conn, err := pgx.Connect(context.Background(), b.Stack.SuperURL(b.Name))
		require.NoError(t, err)
		defer conn.Close(context.Background())
		_, err = conn.Exec(context.Background(), "drop owned by "+role+"; drop role "+role)
		require.NoError(t, err)
	})
	made := b.backup()
	do(t, b.Stack.SuperURL(b.Name), "create table public.report (a int)", "grant select on public.report to custody_backup, "+role)
	withRole := b.backup()

	s := bareCluster(t)
	require.NoError(t, s.CreateDatabase(t.Context(), "full", ""))
	do(t, s.SuperURL("full"), "create table public.somebodys (a int)")
	require.NoError(t, s.CreateDatabase(t.Context(), "empty", ""))
	do(t, s.SuperURL("postgres"), "create role plain login password 'plain'", "grant connect on database empty to plain")
	s.Passwords["plain"] = "plain"
	into := s.URL(stack.MigratorLogin, "empty")
	for _, wrong := range []struct {
		name  string
		code  int
		args  []string
		words []string
	}{
		{"no target", 2, nil, []string{"--into"}},
		{"no TLS", 2, []string{"--into", strings.Replace(into, "verify-full", "allow", 1)}, []string{"TLS is required"}},
		{"another identity", 3, []string{"--into", into, "--backup", made.ID, "--identity", b.file(newIdentity(t).String())}, []string{"the identity opens nothing", made.Recipients[0]}},
		{"no identity", 2, []string{"--into", into, "--identity", b.file("nothing")}, []string{"holds no identity"}},
		{"a recipient for an identity", 2, []string{"--into", into, "--identity", b.file(made.Recipients[0])}, []string{"holds no identity"}},
		{"no id", 2, []string{"--into", into, "--backup", "yesterday"}, []string{"yesterday"}},
		{"no such backup", 3, []string{"--into", into, "--backup", "20200101T000000Z-aaaaaaaa"}, []string{"no such backup"}},
		{"another manifest", 4, []string{"--into", into, "--backup", made.ID, "--manifest-sha256", withRole.ManifestSHA256}, []string{"not the one of the manifest"}},
		{"a role is missing", 3, []string{"--into", into}, []string{role, "pg_dumpall", "nothing was changed"}},
		{"not empty", 3, []string{"--into", s.URL(stack.MigratorLogin, "full"), "--backup", made.ID}, []string{"not empty", "somebodys"}},
		{"a login without the right", 5, []string{"--into", s.URL("plain", "empty"), "--backup", made.ID}, []string{"plain", "may not restore"}},
		{"no database, and no right to make one", 5, []string{"--into", s.URL(stack.MigratorLogin, "nowhere"), "--backup", made.ID}, []string{"create database"}},
	} {
		args := append([]string{"restore"}, wrong.args...)
		code, out, said := b.run(args...)
		require.Equal(t, wrong.code, code, "%s: %s%s", wrong.name, out, said)
		for _, word := range wrong.words {
			require.Contains(t, said, word, wrong.name)
		}
		require.NotContains(t, said, s.Passwords[stack.MigratorLogin], wrong.name)
	}

	t.Run("an object that was altered in the store", func(t *testing.T) {
		for _, object := range []backup.Stored{made.Data, made.Keys} {
			var path string
			require.NoError(t, filepath.WalkDir(filepath.Join(b.Stack.Dir, "s3"), func(p string, _ os.DirEntry, err error) error {
				if strings.HasSuffix(p, b.bucket+"/"+object.Key) {
					path = p
				}
				return err
			}))
			content, err := os.ReadFile(path)
			require.NoError(t, err)
			altered := bytes.Clone(content)
			altered[len(altered)/2] ^= 1
			require.NoError(t, os.WriteFile(path, altered, 0o600))
			b.fails(4, []string{"restore", "--into", into, "--backup", made.ID}, "not the one of the manifest", object.Key)
			require.NoError(t, os.WriteFile(path, content, 0o600))
		}
	})
	// Whatever was refused, the database is as it was.
	require.Equal(t, 0, ask[int](t, s.SuperURL("empty"), `select count(*) from pg_catalog.pg_namespace where nspname like 'custody%'`))
	require.Equal(t, 0, ask[int](t, s.SuperURL("empty"), `select count(*) from pg_catalog.pg_roles where rolname like 'custody\_%' and rolname not in ('custody_super', 'custody_migrator')`))
	require.True(t, ask[bool](t, s.SuperURL("empty"), `select pg_catalog.has_database_privilege('plain', 'empty', 'connect')`))

	t.Run("what others put over it does not count", func(t *testing.T) {
		client := b.Stack.S3()
		for _, key := range []string{made.Data.Key, strings.Replace(made.Data.Key, "data.dump.age", "manifest.json", 1)} {
			_, err := client.PutObject(t.Context(), &s3.PutObjectInput{Bucket: &b.bucket, Key: &key, Body: strings.NewReader("{}")})
			require.NoError(t, err)
		}
		_, err := client.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &b.bucket, Key: &made.Keys.Key})
		require.NoError(t, err)
		// The cluster has no role of pgcustody: the restore makes them.
		done := decode[backup.Restored](t, b.ok("restore", "--json", "--into", into, "--backup", made.ID))
		require.Equal(t, made.ID, done.Backup)
		require.False(t, ask[bool](t, s.SuperURL("empty"), `select pg_catalog.has_database_privilege('plain', 'empty', 'connect')`))
		require.True(t, ask[bool](t, s.SuperURL("empty"), `select pg_catalog.has_database_privilege('custody_readwrite', 'empty', 'connect')`))
	})
	t.Run("into a database that the restore makes", func(t *testing.T) {
		do(t, s.SuperURL("postgres"), "create role "+role)
		b.ok("restore", "--into", s.SuperURL("made"))
		require.Equal(t, 1, ask[int](t, s.SuperURL("made"), `select count(*) from custody_data.user_profiles`))
		require.False(t, ask[bool](t, s.SuperURL("made"), `select pg_catalog.has_database_privilege('plain', 'made', 'connect')`), "PUBLIC may connect")
	})
}

func TestKeysHaveAShortLifeOfTheirOwn(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ada := b.person("planted-ada")
	first := b.backup("--keep", "1h", "--keep-keys", "15s")
	// Hidden is not gone.
	_, err := b.Stack.S3().DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &b.bucket, Key: &first.Keys.Key})
	require.NoError(t, err)
	var second backup.Result
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		second = b.backup()
		assert.Equal(c, 1, second.Pruned.Keys)
	}, 3*time.Minute, time.Second)
	require.Zero(t, second.Pruned.Data)
	for name := range b.objects() {
		require.NotContains(t, name, first.Keys.Key)
	}
	listed := b.list()
	require.Equal(t, first.ID, listed[0].ID)
	require.True(t, listed[0].HasData)
	require.False(t, listed[0].HasKeys)
	require.Contains(t, b.ok("backup", "list"), "gone")

	s := cluster(t)
	require.NoError(t, s.CreateDatabase(t.Context(), "restored", ""))
	into := s.URL(stack.MigratorLogin, "restored")
	b.fails(4, []string{"restore", "--into", into, "--backup", first.ID}, "keys of backup "+first.ID+" are gone", "--without-keys")
	require.Contains(t, b.ok("restore", "--into", into, "--backup", first.ID, "--without-keys"), "No value that was sealed before can be opened")
	require.Equal(t, 1, ask[int](t, s.SuperURL("restored"), `select count(*) from custody_data.user_profiles`))
	_, err = opens(t, s.URL("custody_app", "restored"), b.kek(1).Bytes(), ada)
	require.Error(t, err)

	t.Run("and so have the data, all but the newest", func(t *testing.T) {
		b := newBench(t)
		b.backup("--keep", "15s", "--keep-keys", "15s")
		// What never became a backup.
		b.killed(1, on("PUT", "manifest.json"), nil, "backup", "--keep", "15s", "--keep-keys", "15s")
		nobodyLeft(t, b.Stack, b.Name)
		last := b.backup("--keep", "15s", "--keep-keys", "15s")
		require.EventuallyWithT(t, func(c *assert.CollectT) {
			b.ok("backup", "prune")
			left := b.list()
			if assert.Len(c, left, 1) {
				assert.True(c, left[0].HasData)
				assert.False(c, left[0].HasKeys)
			}
			for name := range b.objects() {
				assert.False(c, strings.HasPrefix(name, backup.KeysPrefix) || strings.HasPrefix(name, backup.DataPrefix) && !strings.Contains(name, last.ID), name)
			}
		}, 3*time.Minute, time.Second)
	})
}

func TestErasuresKeepTheDatabaseClosed(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ada := b.person("planted-ada")
	b.person("planted-bob")
	b.ok("hold", "place", "--user", ada.user, "--reference", "case 1", "--reason", "claim")
	var export string
	require.NoError(t, inContext(t, b.URLs["custody_dpo"], nil, func(tx pgx.Tx) error {
		return tx.QueryRow(t.Context(), "select custody.request_export($1)::text", ada.user).Scan(&export)
	}))
	b.backup()
	hold := ask[string](t, b.Stack.SuperURL(b.Name), `select hold_id::text from custody_data.legal_holds`)
	b.ok("hold", "release", hold, "--reason", "over")
	b.ok("erase", ada.user)

	// As if the erasure had been cut off before it came to the person's exports.
	document := "exports/acme/" + export + ".json"
	_, err := b.Stack.S3().PutObject(t.Context(), &s3.PutObjectInput{Bucket: &b.bucket, Key: &document, Body: strings.NewReader("{}")})
	require.NoError(t, err)

	s := cluster(t)
	require.NoError(t, s.CreateDatabase(t.Context(), "restored", ""))
	into, app := s.URL(stack.MigratorLogin, "restored"), s.URL("custody_app", "restored")
	closed := func() {
		t.Helper()
		_, err := pgx.Connect(t.Context(), app)
		require.Equal(t, "42501", state(err))
	}
	client := b.Stack.S3()
	junk := "erasure-certificates/acme/00000000-0000-4000-8000-000000000000.json"
	_, err = client.PutObject(t.Context(), &s3.PutObjectInput{Bucket: &b.bucket, Key: &junk, Body: strings.NewReader("{}")})
	require.NoError(t, err)
	b.fails(4, []string{"restore", "--into", into}, "stays closed", "not under lock", junk)
	closed()
	b.fails(4, []string{"restore", "--into", into, "--skip-certificate", junk}, "stays closed", "legal hold", "--release-holds-reason")
	closed()
	// Hidden, and something else on top: the first version is the certificate.
	var key string
	for name := range b.objects() {
		if strings.HasPrefix(name, "erasure-certificates/") && !strings.HasPrefix(name, junk) {
			key, _, _ = strings.Cut(name, " ")
		}
	}
	_, err = client.PutObject(t.Context(), &s3.PutObjectInput{Bucket: &b.bucket, Key: &key, Body: strings.NewReader("{}")})
	require.NoError(t, err)
	_, err = client.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &b.bucket, Key: &key})
	require.NoError(t, err)
	done := decode[backup.Restored](t, b.ok("restore", "--json", "--into", into, "--skip-certificate", junk, "--release-holds-reason", "the case is over"))
	require.True(t, done.Resumed)
	require.Equal(t, 1, done.Erasures.Replayed)
	require.Equal(t, 1, done.Erasures.Exports)
	for name := range b.objects() {
		require.NotContains(t, name, document)
	}
	require.Equal(t, 0, ask[int](t, s.SuperURL("restored"), `select count(*) from custody_data.user_profiles where identity_id = $1`, ada.identity))
	require.Equal(t, 0, ask[int](t, s.SuperURL("restored"), `select count(*) from pg_catalog.pg_auth_members m where m.roleid = 'custody_privacy'::regrole and m.member = 'custody_migrator'::regrole`), "a right for the restore alone")
	require.Equal(t, 1, ask[int](t, s.SuperURL("restored"), `select count(*) from custody_data.legal_holds where release_reason = 'the case is over'`))
}

func TestRestoreWithPgaudit(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	text, err := fs.ReadFile(sql.Files(), "pgaudit.sql")
	require.NoError(t, err)
	do(t, b.Stack.SuperURL(b.Name), "set search_path = public", string(text))
	b.backup()

	s := cluster(t)
	require.NoError(t, s.CreateDatabase(t.Context(), "restored", ""))
	b.fails(3, []string{"restore", "--into", s.URL(stack.MigratorLogin, "restored")}, "custody_pgaudit", "nothing was changed")
	do(t, s.SuperURL("postgres"), "create role custody_pgaudit nologin")
	b.fails(3, []string{"restore", "--into", s.URL(stack.MigratorLogin, "restored")}, "pgaudit", "superuser", "nothing was changed")
	b.ok("restore", "--into", s.SuperURL("restored"))
	require.Equal(t, "custody_pgaudit", ask[string](t, s.SuperURL("restored"), `select current_setting('pgaudit.role')`), "its settings are a database's, and no part of a dump")
}

// A hold on everything is no matter of one person's erasure: it is released where it stands.
func TestHoldOnTheTenantKeepsTheDatabaseClosed(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ada := b.person("planted-ada")
	b.ok("hold", "place", "--all", "--reference", "case 1", "--reason", "claim")
	b.backup()
	hold := ask[string](t, b.Stack.SuperURL(b.Name), `select hold_id::text from custody_data.legal_holds`)
	b.ok("hold", "release", hold, "--reason", "over")
	b.ok("erase", ada.user)

	s := cluster(t)
	require.NoError(t, s.CreateDatabase(t.Context(), "restored", ""))
	restore := []string{"restore", "--into", s.URL(stack.MigratorLogin, "restored"), "--release-holds-reason", "over"}
	b.fails(4, restore, "stays closed", "hold on the whole tenant", "custody.release_hold")
	do(t, s.SuperURL("restored"), "begin", "set local role custody_privacy", "select custody.set_context('acme', 'officer')",
		"select custody.release_hold('"+hold+"', 'over')", "commit")
	b.ok(restore...)
	require.Equal(t, 0, ask[int](t, s.SuperURL("restored"), `select count(*) from custody_data.user_profiles`))
}

// A database whose restore was not ended, and that somebody opened by hand, is somebody's.
func TestRestoreLeavesAloneWhatWasOpenedByHand(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.person("planted-ada")
	b.backup()
	s := cluster(t)
	require.NoError(t, s.CreateDatabase(t.Context(), "restored", ""))
	into := s.URL(stack.MigratorLogin, "restored")
	b.killed(3, on("GET", "data.dump.age"), nil, "restore", "--into", into)
	nobodyLeft(t, s, "restored")
	do(t, s.SuperURL("restored"), "grant connect on database restored to custody_readwrite")
	b.fails(3, []string{"restore", "--into", into}, "opened by hand", "nothing was changed")
	require.Equal(t, 1, ask[int](t, s.SuperURL("restored"), `select count(*) from custody_data.user_profiles`))
	do(t, s.SuperURL("restored"), "revoke connect on database restored from custody_readwrite")
	b.ok("restore", "--into", into)
}

// TestBaseBackup: a physical backup cannot leave keys out. What is in an old one is
// wrapped by a key that is destroyed, and the key of today opens nothing there.
func TestBaseBackup(t *testing.T) {
	t.Parallel()
	// A cluster of its own: the shared one has the databases of all other tests.
	s := bareCluster(t)
	_, err := sql.Up(t.Context(), sql.Config{URL: s.URL(stack.MigratorLogin, stack.Database)})
	require.NoError(t, err)
	require.NoError(t, s.PutLogins(t.Context(), stack.Database))
	b := benchOn(t, databaseOf(s, stack.Database), s.Bucket)
	ada, bob := b.person("planted-ada"), b.person("planted-bob")

	dir := physicalCopy(t, b.Stack)
	b.ok("erase", ada.user)
	b.ok("keys", "rotate")
	current := b.kek(2)
	value, err := opens(t, b.URLs["custody_app"], current.Bytes(), bob)
	require.NoError(t, err)
	require.Equal(t, "secret of planted-bob", value)
	old := bytes.Clone(b.kek(1).Bytes())
	b.ok("keys", "destroy", "1")
	_, err = b.provider.KEK(t.Context(), keysRef(1))
	require.Error(t, err, "the old key is gone")

	super := startCopy(t, b.Stack, dir, b.Name)
	require.Equal(t, 1, ask[int](t, super, `select count(*) from custody_keys.wrapped_keys where identity_id = $1`, ada.identity), "the old copy has the person's data key")
	require.Equal(t, 1, ask[int](t, super, `select count(*) from custody_data.identities where user_id = $1`, ada.user))
	for _, p := range []person{ada, bob} {
		_, err = opens(t, super, current.Bytes(), p)
		require.Equal(t, "PC034", state(err), "the key of today is not known there: %v", err)
	}
	wrapped := ask[[]byte](t, super, `select wrapped from custody_keys.wrapped_keys where identity_id = $1`, ada.identity)
	require.Error(t, unwrap(current.Bytes(), ada, wrapped))
	require.NoError(t, unwrap(old, ada, wrapped), "it was the destroyed key that it needs")
	clear(old)
}

// physicalCopy is pg_basebackup of a cluster, as the server's account.
func physicalCopy(t *testing.T, s *stack.Stack) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "pgcustody-base-")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	asServer(t, dir)
	cmd := serverCommand(t, s, "pg_basebackup", "--pgdata="+filepath.Join(dir, "data"), "--checkpoint=fast", "--wal-method=stream", "--no-sync", "--dbname="+replicationURL(s))
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	return dir
}

// startCopy starts it as a cluster of its own, and returns the address of a database.
func startCopy(t *testing.T, s *stack.Stack, dir, name string) string {
	t.Helper()
	data := filepath.Join(dir, "data")
	require.NoError(t, os.WriteFile(filepath.Join(data, "devstack.conf"), []byte("listen_addresses = ''\nunix_socket_directories = '"+dir+"'\nport = 5432\nfsync = off\nmax_connections = 300\nmax_prepared_transactions = 64\nmax_locks_per_transaction = 256\nlog_parameter_max_length = 0\nshared_preload_libraries = 'pgaudit, pg_stat_statements'\n"), 0o644))
	start := serverCommand(t, s, "pg_ctl", "start", "--wait", "--timeout=120", "--pgdata="+data, "--log="+filepath.Join(dir, "log"))
	out, err := start.CombinedOutput()
	log, _ := os.ReadFile(filepath.Join(dir, "log"))
	require.NoError(t, err, "%s%s", out, log)
	t.Cleanup(func() {
		stop := serverCommand(t, s, "pg_ctl", "stop", "--mode=immediate", "--pgdata="+data)
		out, err := stop.CombinedOutput()
		require.NoError(t, err, string(out))
	})
	return strings.Replace(strings.Replace(s.SuperURL(name), "host="+escape(s.PGHome), "host="+escape(dir), 1), "port="+itoa(s.PGPort), "port=5432", 1)
}

func serverCommand(t *testing.T, s *stack.Stack, name string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(filepath.Join(s.PGBin, name), args...)
	cmd.Dir, cmd.Env = "/", []string{"PATH=/usr/bin:/bin", "LC_ALL=C.UTF-8", "PGPASSWORD=" + s.Passwords[stack.Superuser]}
	cmd.SysProcAttr = serverAttributes(t)
	return cmd
}
