package cli

import (
	"context"
	"encoding/json"
	"io/fs"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"pgcustody/cmd/devstack/stack"
	"pgcustody/sql"
)

// The exit status is that of the worst level, 0 of a server that is set up as it should be; findings come in one
// order and one shape. On a server of its own, since some findings are of the whole server.
func TestCheckStatus(t *testing.T) {
	t.Parallel()
	dir, err := stack.TempDir()
	require.NoError(t, err)
	s, err := stack.Start(t.Context(), stack.Options{Dir: dir, NoFsync: true, Ephemeral: true})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Destroy(context.Background())) })
	if !s.HasPgaudit() {
		t.Skip("this PostgreSQL has no pgaudit")
	}
	require.NoError(t, s.OpenMigrator(t.Context()))
	_, err = sql.Up(t.Context(), sql.Config{URL: s.URL(stack.MigratorLogin, stack.Database)})
	require.NoError(t, err)
	require.NoError(t, s.CloseMigrator(t.Context()))
	require.NoError(t, s.PutLogins(t.Context(), stack.Database))
	admin, err := pgx.Connect(t.Context(), s.SuperURL(stack.Database))
	require.NoError(t, err)
	defer admin.Close(context.Background())
	text, err := fs.ReadFile(sql.Files(), "pgaudit.sql")
	require.NoError(t, err)
	_, err = admin.Exec(t.Context(), string(text)+`; select custody.ensure_audit_partitions(now(), now() + interval '3 months')`)
	require.NoError(t, err)

	check := func(args ...string) (int, string) {
		code, out, _ := command(t, map[string]string{"PGCUSTODY_DATABASE_URL": s.URL("custody_audit", stack.Database)}, append([]string{"check"}, args...)...)
		return code, out
	}
	type row struct{ level, id, object, detail string }
	previous := []row{}
	for _, c := range []struct {
		statement string
		code      int
		levels    string
	}{
		{"", ExitOK, ""},
		{"alter role custody_app bypassrls", ExitWarning, "warning"},
		{"alter database custody set pgaudit.log_statement_once = on", ExitWarning, "warning warning"},
		{"alter role custody_app set log_min_messages = fatal", ExitCheck, "error warning warning"},
		{"alter role custody_app set debug_print_plan = on", ExitCheck, "error error warning warning"},
	} {
		_, err := admin.Exec(t.Context(), c.statement)
		require.NoError(t, err)
		code, out := check("--format", "json")
		require.Equal(t, c.code, code, out)
		again, same := check("--json")
		require.Equal(t, code, again)
		require.Equal(t, out, same, "the same twice")

		var list []map[string]string
		require.NoError(t, json.Unmarshal([]byte(out), &list), out)
		rows := []row{}
		levels := []string{}
		for _, f := range list {
			for _, name := range []string{"id", "title", "level", "control", "object", "detail", "remediation"} {
				require.NotEmpty(t, f[name], name)
			}
			require.Len(t, f, 7)
			levels = append(levels, f["level"])
			rows = append(rows, row{f["level"], f["id"], f["object"], f["detail"]})
		}
		require.Equal(t, c.levels, strings.Join(levels, " "))
		// What was there before keeps its order.
		require.Equal(t, previous, slices.DeleteFunc(slices.Clone(rows), func(r row) bool { return !slices.Contains(previous, r) }))
		previous = rows

		code, out = check()
		require.Equal(t, c.code, code)
		if len(rows) == 0 {
			require.Equal(t, "nothing found\n", out)
		} else {
			require.Equal(t, len(rows)+1, strings.Count(out, "\n"), out)
		}
	}
}
