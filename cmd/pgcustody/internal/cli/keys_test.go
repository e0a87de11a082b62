package cli

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"pgcustody/jobs/keys"
	"pgcustody/jobs/keys/keystest"
)

// withKMS makes a KMS of the test's own the key provider of the commands. Each is a
// process that has got no key before.
func withKMS(t *testing.T, env map[string]string) *keystest.KMS {
	t.Helper()
	kms, settings := keystest.StartKMS(t)
	env["AWS_ENDPOINT_URL_KMS"] = settings["AWS_ENDPOINT_URL_KMS"] // the others are the stack's
	env["AWS_MAX_ATTEMPTS"] = "1"                                  // nobody sits through five
	env["PGCUSTODY_KEYS"] = "awskms:alias/test"
	return kms
}

// Commands that touch personal values fail clearly while KMS gives no key; those that
// do not go on; and no output or log has a key in it.
func TestCommandsWithoutTheirProvider(t *testing.T) {
	t.Parallel()
	env := environment(t)
	files := env["PGCUSTODY_KEYS"]
	registerTenant(t, env) // with a key in a file, for what the test itself writes
	asTenant(t, env, "custody_app", "select custody.put_profile('alice-4711', '{}'), custody.put_profile('bob-4712', '{}')")
	var waiting string
	asTenant(t, env, "custody_runner", "select custody.request_erasure('bob-4712', 'asked')::text", &waiting)
	profiles := filepath.Join(t.TempDir(), "user_profiles.jsonl")
	require.NoError(t, os.WriteFile(profiles, []byte(`{"user_id":"carol","full_name":"Carol"}`+"\n"), 0o600))

	var all strings.Builder
	run := func(env map[string]string, args ...string) (int, string) {
		code, out, stderr := command(t, env, append(args, "--log-level", "debug")...)
		all.WriteString(out + stderr)
		lines := strings.Split(strings.TrimSpace(stderr), "\n")
		return code, lines[len(lines)-1]
	}
	kms := withKMS(t, env)
	needKey := [][]string{{"erase", "alice-4711", "--dry-run"}, {"export", "alice-4711"}, {"erase", "alice-4711"}, {"run", "erase", "--request", waiting}, {"import", profiles}}

	for _, refusal := range []struct {
		fault keystest.Fault
		code  int
		said  string
	}{
		{keystest.Fault{Drop: true}, ExitKeys, "key provider cannot be reached"},
		{keystest.Fault{Pause: time.Minute}, ExitKeys, "key provider cannot be reached"},
		{keystest.Fault{Status: 400, Code: "AccessDeniedException"}, ExitPermission, "key provider refused"},
	} {
		other := map[string]string{}
		for name, value := range env {
			other[name] = value
		}
		other["PGCUSTODY_TENANT"] = "other"
		kms.Heal()
		code, line := run(other, "tenants", "register", "other")
		require.Zero(t, code, line)
		code, line = run(other, "keys", "create")
		require.Zero(t, code, line)
		kms.Always(refusal.fault)
		for _, args := range [][]string{{"erase", "nobody", "--dry-run"}, {"export", "nobody"}, {"import", profiles}} {
			code, line := run(other, args...)
			require.Equal(t, refusal.code, code, "%v: %s", args, line)
			require.Contains(t, line, refusal.said, args)
			require.Contains(t, line, "KEK 1 of tenant other by awskms:alias/test", args)
		}
		for _, args := range [][]string{{"status"}, {"requests", "list"}, {"run", "retention"}, {"run", "requests"}, {"run", "partitions"}, {"keys", "list"}} {
			code, line := run(other, args...)
			require.Zero(t, code, "%v: %s", args, line)
		}
		// No superuser has run pgaudit.sql here, and it says that.
		code, line = run(other, "check")
		require.Equal(t, ExitCheck, code, line)
		require.Contains(t, line, "pgaudit.log")
	}
	// A provider that has not got the tenant's key.
	kms.Heal()
	for _, args := range needKey {
		code, line := run(env, args...)
		require.Equal(t, ExitKeys, code, "%v: %s", args, line)
		require.Contains(t, line, "key is unknown", args)
	}

	env["PGCUSTODY_KEYS"] = files
	for _, args := range needKey {
		code, line := run(env, args...)
		require.Zero(t, code, "%v: %s", args, line)
	}
	secrets := kms.Secrets()
	require.NotEmpty(t, secrets)
	for _, secret := range append(secrets, keyInFile(t, files)) {
		keystest.RequireSilent(t, all.String(), secret)
	}
}

// keyInFile is tenant acme's first key with a file provider.
func keyInFile(t *testing.T, spec string) []byte {
	t.Helper()
	provider, err := keys.Parse(t.Context(), spec, false)
	require.NoError(t, err)
	key, err := provider.KEK(t.Context(), keys.Ref{Tenant: "acme", Version: 1})
	require.NoError(t, err)
	return key.Bytes()
}

// What is locked says how it is unlocked, with the exit status of key providers.
func TestLocked(t *testing.T) {
	refusal := fmt.Errorf("export subject: %w", &pgconn.PgError{Code: "PC033", Message: "locked"})
	app := &App{Config: Config{Tenant: "acme"}}
	code, line := explain(app.explainLocked(refusal))
	require.Equal(t, ExitKeys, code)
	require.Equal(t, "locked: personal values are sealed, and this needs the tenant's key (PC033): tenant acme: "+
		"name the key provider with --keys or PGCUSTODY_KEYS; a tenant that has no key yet gets one by pgcustody keys create --tenant acme", line)
	c, err := resolved(t, nil, "--keys", "env:", "--tenant", "acme")
	require.NoError(t, err)
	code, line = explain((&App{Config: *c}).explainLocked(refusal))
	require.Equal(t, ExitKeys, code)
	require.Contains(t, line, "it has no key yet: pgcustody keys create --tenant acme makes it")
}

// /readyz says while the provider does not give a key, and asks it not for each probe.
func TestReadyNamesTheKeyProvider(t *testing.T) {
	t.Parallel()
	env := environment(t)
	kms := withKMS(t, env)
	code, _, stderr := command(t, env, "tenants", "register", "acme")
	require.Zero(t, code, stderr)
	code, _, stderr = command(t, env, "keys", "create")
	require.Zero(t, code, stderr)
	becomes := func(d *daemon, wantCode int, want string) {
		t.Helper()
		require.EventuallyWithT(t, func(c *assert.CollectT) {
			code, body := d.get("/readyz")
			assert.Equal(c, wantCode, code)
			assert.JSONEq(c, want, body)
		}, time.Minute, 20*time.Millisecond)
	}

	kms.Always(keystest.Fault{Status: 400, Code: "AccessDeniedException"})
	d := startWork(t, env, "--log-level", "debug")
	becomes(d, http.StatusServiceUnavailable, `{"status": "key provider awskms:alias/test: key provider refused"}`)
	code, _ = d.get("/healthz")
	require.Equal(t, http.StatusOK, code)
	kms.Always(keystest.Fault{Drop: true})
	becomes(d, http.StatusServiceUnavailable, `{"status": "key provider awskms:alias/test: key provider cannot be reached"}`)
	kms.Heal()
	becomes(d, http.StatusOK, `{"status": "ready"}`)
	d.await("key provider gives keys again")
	asked := kms.Count("Decrypt")
	for range 50 {
		d.becomesReady()
	}
	require.Equal(t, asked, kms.Count("Decrypt"), "what KMS gave is kept")
	require.NoError(t, d.cmd.Process.Signal(syscall.SIGTERM))
	require.Zero(t, d.end(), d.said())
	keystest.RequireSilent(t, d.said(), kms.Secrets()[0])
	require.NotContains(t, d.said(), "said by the fake", "nor what KMS said")
}

// A file that goes while the daemon works, and comes back.
func TestReadyWatchesTheKeyProvider(t *testing.T) {
	t.Parallel()
	env := environment(t)
	registerTenant(t, env)
	file := filepath.Join(strings.TrimPrefix(env["PGCUSTODY_KEYS"], "file:"), "acme.1.key")
	d := startWork(t, env)
	d.becomesReady()
	require.NoError(t, os.Rename(file, file+".away"))
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		code, body := d.get("/readyz")
		assert.Equal(c, http.StatusServiceUnavailable, code)
		var said map[string]string
		assert.NoError(c, json.Unmarshal([]byte(body), &said))
		assert.Equal(c, "key provider "+env["PGCUSTODY_KEYS"]+": key is unknown", said["status"])
	}, time.Minute, 20*time.Millisecond)
	require.NoError(t, os.Rename(file+".away", file))
	d.becomesReady()
	require.NoError(t, d.cmd.Process.Signal(syscall.SIGTERM))
	require.Zero(t, d.end(), d.said())
}
