package cli

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"pgcustody/cmd/devstack/stack"
	"pgcustody/cmd/devstack/stack/stacktest"
)

// migrateOn runs `pgcustody migrate …` with an environment of nothing but the
// database's addresses.
func migrateOn(t *testing.T, url string, args ...string) (code int, out, problem string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	code = Run(t.Context(), append([]string{"migrate"}, args...), Streams{
		In: strings.NewReader(""), Out: &stdout, Err: &stderr,
		Getenv: func(name string) (string, bool) {
			if name == "PGCUSTODY_MIGRATE_URL" && url != "" {
				return url, true
			}
			return "", false
		},
	})
	return code, stdout.String(), stderr.String()
}

func TestMigrate(t *testing.T) {
	t.Parallel()
	d := stacktest.EmptyDB(t)
	url := d.URLs[stack.MigratorLogin]

	code, out, _ := migrateOn(t, url, "status")
	require.Equal(t, ExitOK, code)
	require.Contains(t, out, "database is not migrated")
	require.Regexp(t, `(?m)^00001_stubs +pending$`, out)

	code, plan, _ := migrateOn(t, url, "sql")
	require.Equal(t, ExitOK, code)
	require.Contains(t, plan, "create table custody_data.audit_logs")

	code, out, problem := migrateOn(t, url, "up")
	require.Equal(t, ExitOK, code, problem)
	require.Contains(t, out, "00001_stubs: applied\n")
	require.Contains(t, out, "pgaudit: not permitted: ")
	require.Contains(t, out, "migrated from version 0 to ")

	code, out, _ = migrateOn(t, url, "up")
	require.Equal(t, ExitOK, code)
	require.Contains(t, out, "no change: version ")

	code, out, _ = migrateOn(t, url, "up", "--json", "--force")
	require.Equal(t, ExitOK, code)
	var result struct {
		From, To int64
		Changed  bool
		Steps    []struct{ Step, Outcome string }
	}
	require.NoError(t, json.Unmarshal([]byte(out), &result))
	require.True(t, result.Changed)
	require.Equal(t, result.From, result.To)
	require.Equal(t, "routines", result.Steps[0].Step)

	// What a login without the right to migrate may see.
	code, _, _ = migrateOn(t, "", "status", "--database-url", d.URLs["custody_runner"])
	require.NotEqual(t, ExitOK, code, "it may not connect yet")
	require.NoError(t, d.Stack.PutLogins(t.Context(), d.Name))
	code, out, problem = migrateOn(t, "", "status", "--database-url", d.URLs["custody_runner"])
	require.Equal(t, ExitOK, code, problem)
	require.Contains(t, out, "database is current\n")
	code, _, problem = migrateOn(t, d.URLs["custody_runner"], "up")
	require.Equal(t, ExitPermission, code, problem)
	require.Contains(t, problem, "must own the database")

	code, out, _ = migrateOn(t, url, "down", "--dry-run")
	require.Equal(t, ExitOK, code)
	require.Contains(t, out, "would roll back, with their data: ")
	code, _, problem = migrateOn(t, url, "down")
	require.Equal(t, ExitUsage, code)
	require.Contains(t, problem, "--development")
	code, out, problem = migrateOn(t, url, "down", "--development", "--to", "0")
	require.Equal(t, ExitOK, code, problem)
	require.Contains(t, out, "00001_stubs: rolled back\n")
}

func TestMigrateConfiguration(t *testing.T) {
	t.Parallel()
	code, _, problem := migrateOn(t, "", "up")
	require.Equal(t, ExitUsage, code)
	require.Contains(t, problem, "--migrate-url: required")
	code, _, problem = migrateOn(t, "postgres://user:secret@host:port/", "up")
	require.Equal(t, ExitUsage, code)
	require.Contains(t, problem, "PGCUSTODY_MIGRATE_URL")
	require.NotContains(t, problem, "secret")
	code, _, problem = migrateOn(t, "", "status", "--database-url", "postgres://user@127.0.0.1:1/custody")
	require.Equal(t, ExitDatabase, code, problem)
	require.Equal(t, 1, strings.Count(problem, "\n"), problem)

	d := stacktest.DB(t)
	pooled := stacktest.PgBouncer(t, d)
	code, _, problem = migrateOn(t, pooled[stack.MigratorLogin], "up")
	require.Equal(t, ExitUsage, code, problem)
	require.Contains(t, problem, "pooler")
}
