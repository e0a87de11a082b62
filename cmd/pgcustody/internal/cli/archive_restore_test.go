package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/jackc/pgx/v5"
	"github.com/parquet-go/parquet-go"
	"github.com/stretchr/testify/require"

	"pgcustody/cmd/devstack/stack"
	"pgcustody/jobs/retrieve"
	"pgcustody/jobs/segment"
	"pgcustody/jobs/store"
)

// newIdentity makes an identity of age, and has the archive encrypted to it.
func (c *archiveCommands) newIdentity() (file string) {
	c.Helper()
	identity, err := age.GenerateX25519Identity()
	require.NoError(c, err)
	c.env["PGCUSTODY_ARCHIVE_RECIPIENTS"] = identity.Recipient().String()
	file = filepath.Join(c.TempDir(), "key.txt")
	require.NoError(c, os.WriteFile(file, []byte("# created: now\n"+identity.String()+"\n"), 0o600))
	return file
}

// asks asks the database as a superuser.
func asks[T any](c *archiveCommands, sql string, args ...any) (value T) {
	c.Helper()
	conn, err := pgx.Connect(c.Context(), c.env["URL_"+stack.Superuser])
	require.NoError(c, err)
	defer conn.Close(c.Context())
	require.NoError(c, conn.QueryRow(c.Context(), sql, args...).Scan(&value))
	return value
}

func TestArchiveRestore(t *testing.T) {
	c := newArchiveCommands(t)
	key := c.newIdentity()
	first, second := c.events(3, 50), c.events(2, 40)
	entries := func(day time.Time) []string {
		return asks[[]string](c, `select array_agg(e.entry order by e.xid, e.log_entry_id) from custody.audit_entries e
			where e.tenant_id = 'acme' and e.occurred_at >= $1::timestamptz and e.occurred_at < $1::timestamptz + interval '1 day'`, day)
	}
	c.runs(ExitOK, "archive", "run")
	at := func(day time.Time) string { return day.Format(time.DateOnly) }
	restore := func(code int, args ...string) string {
		t.Helper()
		return c.runs(code, append([]string{"archive", "restore", "--reason", "case 7", "--identity", key}, args...)...)
	}
	day := []string{"--from", at(first), "--to", at(second)}
	both := []string{"--from", at(first), "--to", at(second.AddDate(0, 0, 1))}

	require.Equal(t, strings.Join(entries(first), "\n")+"\n", restore(ExitOK, day...), "byte for byte, in the order of leaves")
	require.Equal(t, 90, strings.Count(restore(ExitOK, both...), "\n"))
	require.Equal(t, 90, strings.Count(restore(ExitOK, append(both, "--tenant", "")...), "\n"), "of all tenants")
	require.Empty(t, restore(ExitOK, append(both, "--action", "account.login")...))
	one := asks[string](c, `select log_entry_id::text from custody_data.audit_logs where occurred_at = $1::timestamptz + interval '7 minutes'`, second)
	require.Equal(t, 1, strings.Count(restore(ExitOK, append(both, "--entry", one)...), one))
	person := asks[string](c, `select actor_id::text from custody_data.audit_logs where log_entry_id = $1`, one)
	c.exec(`insert into custody_data.identities (tenant_id, identity_id, kind, user_id) values ('acme', $1, 'person', 'ada')`, person)
	require.Equal(t, 1, strings.Count(restore(ExitOK, append(both, "--user", "ada")...), one))
	require.Equal(t, 1, strings.Count(restore(ExitOK, append(both, "--user", person)...), one), "of an erased person by the identity")
	require.Empty(t, restore(ExitOK, append(both, "--user", person, "--action", "account.login")...), "all that is asked for must hold")

	var done struct {
		RestoreID string `json:"restore_id"`
		Rows      int64  `json:"rows"`
		Segments  int    `json:"segments"`
	}
	require.NoError(t, json.Unmarshal([]byte(restore(ExitOK, append(day, "--into", "table", "--keep", "24h", "--json")...)), &done))
	require.EqualValues(t, 50, done.Rows)
	require.Equal(t, 1, done.Segments)
	require.EqualValues(t, 50, asks[int64](c, `select count(*) from custody_data.restored_events where restore_id = $1 and expires_at < now() + interval '25 hours'`, done.RestoreID))
	require.Contains(t, restore(ExitOK, append(day, "--into", "table")...), "50 events, out of 50 in 1 segments, are in custody.restored_events")
	require.EqualValues(t, 10, asks[int64](c, `select count(*) from custody_data.archive_restores where reason = 'case 7' and finished_at is not null`))

	t.Run("export", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "events.parquet")
		said := c.runs(ExitOK, append([]string{"archive", "export", "--parquet", file, "--reason", "figures", "--identity", key}, both...)...)
		require.Contains(t, said, "90 events, out of 90 in 2 segments, written to "+file)
		rows, err := parquet.ReadFile[retrieve.Row](file)
		require.NoError(t, err)
		require.Len(t, rows, 90)
		info, err := os.Stat(file)
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
		require.Contains(t, c.runs(ExitRefused, "archive", "export", "--parquet", filepath.Join(t.TempDir(), "x"), "--reason", "x", "--identity", key, "--from", "2001-01-01", "--to", "2001-01-02"), "no segment of the archive can hold such events")
		left, err := filepath.Glob(filepath.Join(filepath.Dir(file), ".pgcustody*"))
		require.NoError(t, err)
		require.Empty(t, left)
		require.Contains(t, c.runs(ExitUsage, append([]string{"archive", "export", "--reason", "x", "--identity", key}, both...)...), "--parquet")
		require.Contains(t, c.runs(ExitUsage, append([]string{"archive", "export", "--reason", "x", "--identity", key, "--parquet", "/no/such/folder/x"}, both...)...), "its folder does not exist")
	})
	t.Run("list", func(t *testing.T) {
		require.Contains(t, c.runs(ExitOK, "archive", "list", "--from", at(second)), at(second))
		require.NotContains(t, c.runs(ExitOK, "archive", "list", "--from", at(second)), segment.NewName(first, 1).ObjectKey())
		require.NotContains(t, c.runs(ExitOK, "archive", "list", "--to", at(second)), segment.NewName(second, 1).ObjectKey())
		require.Contains(t, c.runs(ExitUsage, "archive", "list", "--to", "soon"), `--to="soon"`)
	})
	t.Run("refused", func(t *testing.T) {
		for want, args := range map[string][]string{
			"--from: required":               {"--to", at(second)},
			"--to: required":                 {"--from", at(first)},
			`--to="` + at(first):             {"--from", at(second), "--to", at(first)},
			`--from="tomorrow": not a time`:  {"--from", "tomorrow", "--to", at(first)},
			`--entry="x": not a UUID`:        append(both, "--entry", "x"),
			`--into="file"`:                  append(both, "--into", "file"),
			"--keep=":                        append(both, "--keep", "1h"),
			"--tenant: required with --user": append(both, "--user", "ada", "--tenant", ""),
			"there is no table without":      append(both, "--into", "table", "--from-objects"),
			"--vkey: required":               append(both, "--from-objects"),
			"another --identity":             append(both, "--identity", filepath.Join(t.TempDir(), "none")),
		} {
			if want == "another --identity" {
				want = "--identity"
			}
			require.Contains(t, restore(ExitUsage, args...), want)
		}
		require.Contains(t, c.runs(ExitUsage, append([]string{"archive", "restore", "--identity", key}, both...)...), "--reason: required")
		require.Contains(t, c.runs(ExitUsage, append([]string{"archive", "restore", "--reason", "x"}, both...)...), "--identity: required")
		require.Contains(t, restore(ExitRefused, append(both, "--user", "nobody")...), "unknown person in tenant acme")
		require.Contains(t, restore(ExitRefused, append(both, "--into", "table", "--keep", "9999h")...), "invalid p_keep")
		require.Contains(t, restore(ExitRefused, "--from", "2001-01-01", "--to", "2001-01-02"), "no segment of the archive can hold such events: 2001-01-01 to 2001-01-02")
		require.Contains(t, restore(ExitPermission, append(both, "--database-url", c.env["URL_custody_app"])...), "permission denied")
		other := &archiveCommands{T: t, env: map[string]string{}}
		require.Contains(t, c.runs(ExitKeys, append([]string{"archive", "restore", "--reason", "x", "--identity", other.newIdentity()}, both...)...), "none of the identities given opens it")
	})
	t.Run("an object that is not what was archived", func(t *testing.T) {
		s, err := store.OpenURL(t.Context(), c.env["PGCUSTODY_STORE"])
		require.NoError(t, err)
		// Over it: the locked version is what is read.
		_, err = s.Put(t.Context(), segment.NewName(first, 1).ObjectKey(), strings.NewReader("tampered"), store.PutOptions{})
		require.NoError(t, err)
		require.Equal(t, 50, strings.Count(restore(ExitOK, day...), "\n"))
		// In the ledger's place: no line of it is handed out any more.
		c.exec(`alter table custody_data.ledger_tiles disable trigger all`)
		leaf := asks[int64](c, `select lower(leaves) from custody_data.archive_segments where day = $1::date`, at(first))
		c.exec(`update custody_data.ledger_tiles set hashes = set_byte(hashes, $1, get_byte(hashes, $1) # 1) where level = 0 and tile_index = 0`, leaf*32+5)
		require.Contains(t, restore(ExitCheck, both...), fmt.Sprintf("%s: line 1 is not what was sealed as leaf %d: run pgcustody archive verify", segment.NewName(first, 1).ObjectKey(), leaf))
		require.Contains(t, c.runs(ExitCheck, "archive", "verify"), "its root is not that of its leaves in the ledger")
	})
}

// exec runs a statement as a superuser.
func (c *archiveCommands) exec(sql string, args ...any) {
	c.Helper()
	conn, err := pgx.Connect(c.Context(), c.env["URL_"+stack.Superuser])
	require.NoError(c, err)
	defer conn.Close(c.Context())
	_, err = conn.Exec(c.Context(), sql, args...)
	require.NoError(c, err)
}

// The commands that README gives for whoever has neither Postgres nor pgcustody.
func TestTheArchiveWithoutPgcustody(t *testing.T) {
	for _, program := range []string{"bash", "age", "zstd", "jq", "sha256sum", "od"} {
		_, err := exec.LookPath(program)
		require.NoError(t, err, "make deps installs it")
	}
	readme, err := os.ReadFile(filepath.Join("..", "..", "..", "..", "README.md"))
	require.NoError(t, err)
	_, commands, found := strings.Cut(string(readme), "<!-- run by "+t.Name()+" -->\n```sh\n")
	commands, _, closed := strings.Cut(commands, "```")
	require.True(t, found && closed, "README has the commands")

	c := newArchiveCommands(t)
	key := c.newIdentity()
	day := c.events(3, 300)
	c.runs(ExitOK, "archive", "run")
	dir := t.TempDir()
	put := func(name string, content []byte) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), content, 0o600))
	}
	identity, err := os.ReadFile(key)
	require.NoError(t, err)
	put("key.txt", identity)
	s, err := store.OpenURL(t.Context(), c.env["PGCUSTODY_STORE"])
	require.NoError(t, err)
	fetch := func(key, version string) []byte {
		object, err := s.Get(t.Context(), key, version)
		require.NoError(t, err)
		defer object.Close()
		content, err := io.ReadAll(object)
		require.NoError(t, err)
		return content
	}
	name := segment.NewName(day, 1)
	put("manifest.json", fetch(name.ManifestKey(), ""))
	manifest, err := segment.DecodeManifest(bytes.NewReader(fetch(name.ManifestKey(), "")))
	require.NoError(t, err)
	events := fetch(name.ObjectKey(), manifest.ObjectVersion)
	put("events.age", events)
	put("tile", asks[[]byte](c, `select hashes from custody_data.ledger_tiles where level = 0 and tile_index = $1`, manifest.Leaves[0].First/256))

	run := func() (string, error) {
		command := exec.CommandContext(t.Context(), "bash", "-euo", "pipefail", "-c", commands)
		command.Dir = dir
		out, err := command.CombinedOutput()
		return string(out), err
	}
	out, err := run()
	require.NoError(t, err, out)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	require.Len(t, lines, 5+300, out)
	for i, file := range []string{"events.age", "events.zst", "events.jsonl"} {
		require.Equal(t, file+": OK", lines[i])
	}
	require.Equal(t, lines[4]+"  -", lines[3], "the line is the leaf")
	require.Contains(t, lines[5], day.Format(time.DateOnly))

	events[len(events)/2] ^= 1
	put("events.age", events)
	out, err = run()
	require.Error(t, err)
	require.Contains(t, out, "events.age: FAILED")
}
