package sql_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"pgcustody/cmd/devstack/stack"
	"pgcustody/cmd/devstack/stack/stacktest"
)

// entryVector is an event of testdata/entries with its entry and the hash of its leaf.
type entryVector struct {
	name  string
	row   string
	entry []byte
	leaf  [32]byte
}

func entryVectors(t *testing.T) (vectors []entryVector) {
	t.Helper()
	const dir = "testdata/entries"
	listed, err := os.ReadFile(filepath.Join(dir, "LEAF_HASHES"))
	require.NoError(t, err)
	for line := range strings.Lines(string(listed)) {
		sum, file, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "  ")
		require.True(t, ok, line)
		v := entryVector{name: strings.TrimSuffix(file, ".entry")}
		v.entry, err = os.ReadFile(filepath.Join(dir, file))
		require.NoError(t, err)
		row, err := os.ReadFile(filepath.Join(dir, v.name+".row.json"))
		require.NoError(t, err)
		v.row = string(row)
		v.leaf = sha256.Sum256(append([]byte{0}, v.entry...))
		require.Equal(t, sum, hex.EncodeToString(v.leaf[:]), v.name)
		require.True(t, json.Valid(v.entry), v.name)
		require.NotContains(t, string(v.entry), "\n", v.name)
		vectors = append(vectors, v)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.entry"))
	require.NoError(t, err)
	require.Len(t, vectors, len(files), "LEAF_HASHES lists every file")
	return vectors
}

// The command of the README says of the files what LEAF_HASHES says.
func TestEntryVectorsAreReproducible(t *testing.T) {
	t.Parallel()
	entryVectors(t)
	readme, err := os.ReadFile("testdata/entries/README.md")
	require.NoError(t, err)
	_, command, ok := strings.Cut(string(readme), "```sh\n")
	require.True(t, ok)
	command, _, ok = strings.Cut(command, "```")
	require.True(t, ok)
	shell := exec.CommandContext(t.Context(), "sh", "-c", command)
	shell.Dir = "testdata/entries"
	out, err := shell.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Equal(t, "the same\n", string(out))
}

const entryOf = `select pg_catalog.convert_to(custody.audit_entry(r), 'UTF8'), custody_data.leaf_hash(r)
	from pg_catalog.jsonb_populate_record(null::custody_data.audit_logs, $1::pg_catalog.text::pg_catalog.jsonb) r`

// requireEntries compares what the database makes of the vectors.
func requireEntries(t *testing.T, tx pgx.Tx, vectors []entryVector, about string) {
	t.Helper()
	for _, v := range vectors {
		var entry, leaf []byte
		require.NoError(t, tx.QueryRow(t.Context(), entryOf, v.row).Scan(&entry, &leaf), "%s: %s", about, v.name)
		if !bytes.Equal(v.entry, entry) {
			require.Equal(t, string(v.entry), string(entry), "%s: %s", about, v.name)
		}
		require.Equal(t, v.leaf[:], leaf, "%s: %s", about, v.name)
	}
}

// An entry has the same bytes under every value of every setting that a session may
// give, whatever its search_path finds, for every role, and after the table has got
// more columns.
func TestEntriesAreIndependentOfTheSession(t *testing.T) {
	t.Parallel()
	vectors := entryVectors(t)
	d := stacktest.DB(t)
	conn := d.Conn(t, stack.Superuser)

	type setting struct{ Name, Value string }
	rows, err := conn.Query(t.Context(), `
		select s.name, v from pg_catalog.pg_settings s
		cross join lateral pg_catalog.unnest(case s.vartype when 'bool' then array['on', 'off'] else s.enumvals end) v
		where s.context in ('user', 'superuser') and s.vartype in ('bool', 'enum')
		  -- what is about whether a transaction may run at all
		  and s.name not like '%transaction\_%' order by 1, 2`)
	require.NoError(t, err)
	settings, err := pgx.CollectRows(rows, pgx.RowToStructByPos[setting])
	require.NoError(t, err)
	require.Greater(t, len(settings), 100)
	for name, values := range map[string][]string{
		"timezone":               {"UTC", "Asia/Kathmandu", "America/St_Johns", "Pacific/Kiritimati", "Europe/London", "Antarctica/Troll", "Africa/Monrovia", "XYZ+25:59"},
		"timezone_abbreviations": {"Default", "Australia", "India"},
		"datestyle":              {"ISO, DMY", "SQL, DMY", "SQL, MDY", "German, YMD", "Postgres, MDY"},
		"extra_float_digits":     {"-15", "3"},
		"lc_time":                {"C", "C.UTF-8"},
		"lc_numeric":             {"C", "C.UTF-8"},
		"lc_monetary":            {"C", "C.UTF-8"},
		"lc_messages":            {"C", "C.UTF-8"},
		"client_encoding":        {"UTF8", "LATIN1", "SQL_ASCII", "SJIS", "WIN1252"},
		"search_path":            {"", "pg_temp", "shadow, pg_catalog", "shadow, pg_temp, pg_catalog", "custody, custody_data"},
		"role":                   {"custody_worker", "custody_owner", stack.MigratorLogin},
		"session_authorization":  {"custody_runner", stack.Superuser},
		"work_mem":               {"64kB"},
	} {
		for _, value := range values {
			settings = append(settings, setting{name, value})
		}
	}
	// What a search_path may find instead.
	_, err = conn.Exec(t.Context(), `
		create schema shadow;
		grant usage on schema shadow to public;
		create function shadow.to_char(timestamp, text) returns text language sql return 'shadow';
		create function shadow.to_json(anyelement) returns json language sql as 'select ''"shadow"''::json';
		create function shadow.encode(bytea, text) returns text language sql return 'shadow';
		create function shadow.sha256(bytea) returns bytea language sql return pg_catalog.decode('00', 'hex');
		create function shadow.concat_texts(text, text) returns text language sql return 'shadow';
		create operator shadow.|| (leftarg = text, rightarg = text, function = shadow.concat_texts);
		create domain shadow.text as pg_catalog.text check (false);`)
	require.NoError(t, err)

	for _, s := range settings {
		require.NoError(t, pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error {
			if _, err := tx.Exec(t.Context(), "select pg_catalog.set_config($1, $2, true)", s.Name, s.Value); err != nil {
				return fmt.Errorf("%s = %s: %w", s.Name, s.Value, err)
			}
			requireEntries(t, tx, vectors, s.Name+" = "+s.Value)
			return nil
		}))
	}

	tx, err := conn.Begin(t.Context())
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), "alter table custody_data.audit_logs add column later text default 'later', add column aa integer not null default 1, add column json jsonb")
	require.NoError(t, err)
	requireEntries(t, tx, vectors, "with later columns")
	require.NoError(t, tx.Rollback(t.Context()))
}

// Two events that differ in a single column, by whatever a superuser can store, have
// different entries.
func TestEntriesTellEventsApart(t *testing.T) {
	t.Parallel()
	conn := stacktest.DB(t).Conn(t, stack.Superuser)
	vectors := entryVectors(t)
	base := vectors[slices.IndexFunc(vectors, func(v entryVector) bool { return v.name == "minimal" })].row
	seen := map[string]string{}
	for _, change := range []string{
		`{}`, `{"occurred_at": "2026-03-01 08:00:00.000001+00 BC"}`, `{"occurred_at": "12026-03-01 08:00:00.000001+00"}`, `{"occurred_at": "infinity"}`, `{"occurred_at": "-infinity"}`,
		`{"recorded_at": "2026-03-01 08:00:00+00 BC"}`, `{"recorded_at": "2026-03-01 08:00:00.000001+00"}`, `{"recorded_at": "infinity"}`,
		`{"result": "success\",\"purpose\":\"x"}`, `{"purpose": "x"}`, `{"purpose": ""}`, `{"resource_id": ""}`, `{"resource_type": ""}`,
		`{"resource_id": "a\",\"result\":\"b"}`, `{"metadata": {"a": 1}}`, `{"metadata": {"a": 1.0}}`, `{"metadata": {"a": "1"}}`, `{"metadata": null}`, `{"metadata": {"a": null}}`,
		`{"db_role": "custody_app\",\"xid\":\"1"}`, `{"db_role": ""}`, `{"xid": "0"}`, `{"subject_id": "01a1fd93-0000-4000-8000-000000000002"}`, `{"import_id": "01a1fd93-0000-4000-8000-000000000002"}`,
		`{"action": "phi.access "}`, `{"action": ""}`, `{"tenant_id": "acme2"}`,
	} {
		var entry *string
		require.NoError(t, conn.QueryRow(t.Context(), `select custody.audit_entry(pg_catalog.jsonb_populate_record(null::custody_data.audit_logs, $1::text::jsonb || $2::text::jsonb))`, base, change).Scan(&entry), change)
		key := "none"
		if entry != nil {
			key = *entry
		}
		require.NotContains(t, seen, key, "%s is as %s", change, seen[key])
		require.NotContains(t, key, "\n", change)
		seen[key] = change
	}
}
