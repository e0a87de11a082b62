package cli

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"pgcustody/cmd/devstack/stack/stacktest"
	"pgcustody/jobs/importer"
)

// TestImportCommand goes through what an operator meets: exit codes, the one line on standard error, and reports.
func TestImportCommand(t *testing.T) {
	t.Parallel()
	d := stacktest.DB(t)
	_, err := d.Pool(t, "custody_runner").Exec(t.Context(), "select custody.register_tenant('acme', null)")
	require.NoError(t, err)
	provider, spec := stacktest.KeyProvider(t)
	d.GiveKey(t, provider, "acme")
	dir := t.TempDir()
	write := func(name string, lines ...string) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte(strings.Join(lines, "\n")), 0o600))
		return path
	}
	run := func(login string, args ...string) (code int, stdout, stderr string) {
		var out, failure bytes.Buffer
		code = Run(t.Context(), append([]string{"import", "--database-url", d.URLs[login], "--keys", spec}, args...), Streams{
			In: strings.NewReader(""), Out: &out, Err: &failure, Getenv: func(string) (string, bool) { return "", false },
		})
		return code, out.String(), failure.String()
	}

	good := `{"user_id":"u1","full_name":"Ada"}`
	profiles := write("user_profiles.jsonl", good)
	broken := write("user_profiles-2.jsonl", good, `{"user_id":"u2","full_name":7}`)
	events := write("audit_logs.jsonl", `{"log_entry_id":"875240ac-e821-4fc6-a311-8c352a1d20f5","timestamp":"2023-07-10T11:42:18Z","user_id":"u1","action":"ec2.Run","result":"success","metadata":{"source_ip":"10.0.0.1","region":"eu"}}`)
	unnamed := write("people.jsonl", good)
	rejects := filepath.Join(dir, "rejects.jsonl")

	for _, test := range []struct {
		name   string
		args   []string
		code   int
		stderr []string
	}{
		{"no tenant", []string{profiles}, ExitUsage, []string{"--tenant", "required"}},
		{"no file", []string{"--tenant", "acme"}, ExitUsage, []string{"at least 1 arg"}},
		{"bad tenant", []string{"--tenant", "nobody", profiles}, ExitRefused, []string{"unknown tenant nobody", "PC002"}},
		{"no such file", []string{"--tenant", "acme", filepath.Join(dir, "user_profiles-9.jsonl")}, ExitUsage, []string{"user_profiles-9.jsonl", "no such file"}},
		{"no such table", []string{"--tenant", "acme", "--table", "people", unnamed}, ExitUsage, []string{"--table", `"people"`, "user_profiles"}},
		{"name of no table", []string{"--tenant", "acme", unnamed}, ExitUsage, []string{"people.jsonl", "no table"}},
		{"field without a name", []string{"--tenant", "acme", "--personal", "a,,b", profiles}, ExitUsage, []string{"--personal"}},
		{"rejects there already", []string{"--tenant", "acme", "--rejects", unnamed, profiles}, ExitUsage, []string{"people.jsonl", "is there already"}},
		{"bad line", []string{"--tenant", "acme", broken}, ExitRefused, []string{"import refused (PC028)", broken + " line 2, field full_name", "is not a string", "--rejects"}},
		{"unknown action", []string{"--tenant", "acme", events}, ExitRefused, []string{"PC004", "line 1, field action", "--register-vocabulary"}},
	} {
		code, stdout, stderr := run("custody_runner", test.args...)
		require.Equal(t, test.code, code, "%s: %s", test.name, stderr)
		require.Empty(t, stdout, test.name)
		require.Equal(t, 1, strings.Count(stderr, "\n"), "%s: one line: %s", test.name, stderr)
		require.True(t, strings.HasPrefix(stderr, "pgcustody: "), stderr)
		for _, part := range test.stderr {
			require.Contains(t, stderr, part, test.name)
		}
	}
	code, _, stderr := run("custody_app", "--tenant", "acme", profiles)
	require.Equal(t, ExitPermission, code, stderr)

	code, stdout, stderr := run("custody_runner", "--tenant", "acme", "--register-vocabulary", "--personal", "source_ip", events, profiles)
	require.Equal(t, ExitOK, code, stderr)
	require.Regexp(t, `^(time=.* level=WARN .*\n)*$`, stderr)
	require.Regexp(t, `user_profiles\.jsonl\s+user_profiles\s+1\s+1\s+0\s+0\s+0\s`, stdout)
	require.Regexp(t, `audit_logs\.jsonl\s+audit_logs\s+1\s+1\s+0\s+0\s+0\s`, stdout)

	code, stdout, stderr = run("custody_runner", "--tenant", "acme", profiles)
	require.Equal(t, ExitOK, code, stderr)
	require.Contains(t, stdout, profiles+" was imported before: nothing was changed; --again imports it all the same\n")
	code, stdout, stderr = run("custody_runner", "--tenant", "acme", "--again", profiles)
	require.Equal(t, ExitOK, code, stderr)
	require.NotContains(t, stdout, "was imported before")

	code, stdout, stderr = run("custody_runner", "--tenant", "acme", "--json", "--table", "user_profiles", "--rejects", rejects, unnamed, broken)
	require.Equal(t, ExitOK, code, stderr)
	var document struct {
		Files   []importer.Report `json:"files"`
		Rejects string            `json:"rejects"`
	}
	require.NoError(t, json.Unmarshal([]byte(stdout), &document))
	require.Len(t, document.Files, 2)
	require.Equal(t, int64(1), document.Files[0].RowsUnchanged)
	require.Equal(t, int64(1), document.Files[1].RowsRejected)
	require.Equal(t, rejects, document.Rejects)
	require.FileExists(t, rejects)

	// A file that fails does not hide what went in before it.
	code, stdout, _ = run("custody_runner", "--tenant", "acme", "--json", profiles, broken)
	require.Equal(t, ExitRefused, code)
	require.NoError(t, json.Unmarshal([]byte(stdout), &document))
	require.Len(t, document.Files, 1)

	// Nothing rejected, no file.
	none := filepath.Join(dir, "none.jsonl")
	code, _, stderr = run("custody_runner", "--tenant", "acme", "--rejects", none, profiles)
	require.Equal(t, ExitOK, code, stderr)
	require.NoFileExists(t, none)
}
