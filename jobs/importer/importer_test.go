package importer

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"pgcustody/cmd/devstack/stack"
	"pgcustody/cmd/devstack/stack/stacktest"
	"pgcustody/db"
	"pgcustody/jobs"
	"pgcustody/jobs/importer/sample"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// site is a database with the tenants acme and other, their keys, and a folder for files.
type site struct {
	*testing.T
	database *stacktest.Database
	runner   *pgxpool.Pool
	super    *pgxpool.Pool
	unlock   *jobs.Unlocker
	dir      string
}

func newSite(t *testing.T) *site {
	t.Parallel()
	d := stacktest.DB(t)
	s := &site{T: t, database: d, runner: d.Pool(t, "custody_runner"), super: d.Pool(t, stack.Superuser), dir: t.TempDir()}
	for _, tenant := range []string{"acme", "other"} {
		s.in("system", func(tx pgx.Tx) error {
			_, err := tx.Exec(t.Context(), "select custody.register_tenant($1, null)", tenant)
			return err
		})
	}
	provider, _ := stacktest.KeyProvider(t)
	for _, tenant := range []string{"acme", "other"} {
		d.GiveKey(t, provider, tenant)
	}
	s.unlock = &jobs.Unlocker{Ring: jobs.Keyring{Pool: s.runner, Provider: provider, Actor: "tester"}}
	return s
}

func (s *site) in(tenant string, work func(pgx.Tx) error) {
	s.Helper()
	require.NoError(s, s.unlock.InContext(s.Context(), s.runner, jobs.Scope{Tenant: tenant, Actor: "tester"}, work))
}

// as runs a statement as a login in the context of acme, with its key.
func (s *site) as(login, query string, args ...any) {
	s.Helper()
	pool := s.database.Pool(s.T, login)
	require.NoError(s, s.unlock.InContext(s.Context(), pool, jobs.Scope{Tenant: "acme", Actor: "somebody"}, func(tx pgx.Tx) error {
		_, err := tx.Exec(s.Context(), query, args...)
		return err
	}))
}

// value reads one value as the superuser, past every policy.
func value[T any](s *site, query string, args ...any) (v T) {
	s.Helper()
	require.NoError(s, s.super.QueryRow(s.Context(), query, args...).Scan(&v))
	return v
}

// opened reads what is sealed in tenant acme, as the runner, and takes back the event that reading is.
func opened[T any](s *site, query string, args ...any) (values []T) {
	s.Helper()
	rollback := errors.New("rolled back")
	require.ErrorIs(s, s.unlock.InContext(s.Context(), s.runner, jobs.Scope{Tenant: "acme", Actor: "tester"}, func(tx pgx.Tx) error {
		rows, err := tx.Query(s.Context(), query, args...)
		if err != nil {
			return err
		}
		if values, err = pgx.CollectRows(rows, pgx.RowTo[T]); err != nil {
			return err
		}
		return rollback
	}), rollback)
	return values
}

func (s *site) config() Config {
	return Config{Database: s.runner, Unlock: s.unlock, Tenant: "acme", Actor: "tester"}
}

// file writes lines into a file of the table.
func (s *site) file(table string, lines ...string) string {
	s.Helper()
	path := filepath.Join(s.dir, table+"."+uuid.NewString()+".jsonl")
	require.NoError(s, os.WriteFile(path, []byte(strings.Join(lines, "\n")+"\n"), 0o600))
	return path
}

func (s *site) mustImport(cfg Config, paths ...string) []Report {
	s.Helper()
	reports, err := Run(s.Context(), cfg, paths)
	require.NoError(s, err)
	require.Len(s, reports, len(paths))
	return reports
}

// refused imports files that must be refused, checks that nothing changed, and returns the line's error.
func (s *site) refused(cfg Config, path string) *LineError {
	s.Helper()
	before := s.state()
	_, err := Run(s.Context(), cfg, []string{path})
	require.Error(s, err)
	var line *LineError
	require.ErrorAs(s, err, &line)
	require.Equal(s, path, line.File)
	require.Equal(s, before, s.state())
	return line
}

// state is a digest of the rows of every table of record, of governance and of evidence. The record of an import
// that failed, and the identity that it was done by, are left out.
func (s *site) state() map[string]string {
	s.Helper()
	rows, err := s.super.Query(s.Context(), `
		select c.relname from pg_class c
		where c.relnamespace = 'custody_data'::regnamespace and (c.relkind = 'p' or c.relkind = 'r' and not c.relispartition)`)
	require.NoError(s, err)
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(s, err)
	digests := map[string]string{}
	for _, table := range tables {
		where := map[string]string{
			"audit_logs": "t.action <> 'job.fail' and not (t.action = 'record.import' and t.result = 'failure')",
			"job_runs":   "t.status <> 'failed'",
			"identities": "coalesce(t.user_id, '') <> 'tester'",
		}[table]
		if where == "" {
			where = "true"
		}
		digests[table] = value[string](s, fmt.Sprintf(
			`select count(*) || ' ' || md5(coalesce(string_agg(t::text, chr(10) order by t::text), '')) from custody_data.%s t where %s`, table, where))
	}
	digests["partitions"] = value[string](s, "select string_agg(inhrelid::regclass::text, ' ' order by 1) from pg_inherits where inhparent = 'custody_data.audit_logs'::regclass")
	return digests
}

// samples are the real records where they are at hand, and generated ones.
func samples(t testing.TB) map[string][]string {
	sets := map[string][]string{}
	dir := filepath.Join("..", "..", "..", "shared", "data")
	if _, err := os.Stat(dir); err == nil {
		for _, name := range sample.Files {
			sets["real"] = append(sets["real"], filepath.Join(dir, name))
		}
	}
	generated, err := sample.Write(t.TempDir(), sample.Options{Seed: 7, People: 80, Consents: 300, Conversations: 200, Events: 3000, Until: testNow.AddDate(0, -1, 0)})
	require.NoError(t, err)
	sets["generated"] = generated
	return sets
}

var personalFields = []string{"source_ip", "user_agent", "request_parameters"}

// stored says what a table holds of tenant acme in the words of the file's lines, through the functions that open
// what is sealed.
var stored = map[string]string{
	"user_profiles": `select custody.get_profile(i.user_id) - array['version', 'created_at', 'updated_at']
		from custody_data.user_profiles t join custody_data.identities i using (tenant_id, identity_id)`,
	"user_preferences": `select jsonb_build_object('user_id', i.user_id, 'preferences', custody.get_preferences(i.user_id))
		from custody_data.user_preferences t join custody_data.identities i using (tenant_id, identity_id)`,
	"consent_records": `select jsonb_build_object('user_id', i.user_id, 'purpose', h.purpose, 'granted', h.granted, 'policy_version', h.policy_version,
			'legal_basis', h.legal_basis, 'timestamp', h.occurred_at, 'source', h.evidence ->> 'source')
		from (select distinct i.user_id from custody_data.consent_records t join custody_data.identities i using (tenant_id, identity_id)) i
		cross join lateral custody.consent_history(i.user_id, 10000) h`,
	"conversations": `select custody.get_conversation(i.user_id, t.conversation_id) - array['message_count', 'version', 'created_at', 'updated_at']
		from custody_data.conversations t join custody_data.identities i using (tenant_id, identity_id)`,
	"audit_logs": `select jsonb_build_object('log_entry_id', t.log_entry_id, 'timestamp', t.occurred_at, 'user_id', i.user_id, 'action', t.action,
			'resource_type', t.resource_type, 'resource_id', coalesce(r.user_id, t.resource_id), 'result', t.result, 'metadata', t.metadata || coalesce(e.personal, '{}'))
		from custody.audit_events('1970-01-02', now() + interval '2 days', p_limit => 10000) e
		join custody_data.audit_logs t on t.log_entry_id = e.log_entry_id
		join custody_data.identities i on i.tenant_id = t.tenant_id and i.identity_id = t.actor_id
		left join custody_data.identities r on r.tenant_id = t.tenant_id and r.identity_id::text = t.resource_id
		where t.import_id is not null`,
}

// canonical makes lines comparable: null fields out, times in UTC, in order.
func canonical(t testing.TB, lines []string) []string {
	t.Helper()
	texts := make([]string, len(lines))
	for i, line := range lines {
		var fields map[string]any
		decoder := json.NewDecoder(strings.NewReader(line))
		decoder.UseNumber()
		require.NoError(t, decoder.Decode(&fields))
		for name, v := range fields {
			if v == nil {
				delete(fields, name)
			}
			if text, ok := v.(string); ok && slices.Contains([]string{"timestamp", "started_at", "last_message_at"}, name) {
				at, err := time.Parse(time.RFC3339Nano, text)
				require.NoError(t, err)
				fields[name] = at.UTC().Format(time.RFC3339Nano)
			}
		}
		text, err := json.Marshal(fields)
		require.NoError(t, err)
		texts[i] = string(text)
	}
	slices.Sort(texts)
	return texts
}

func fileLines(t testing.TB, path string) []string {
	t.Helper()
	content, err := os.ReadFile(path)
	require.NoError(t, err)
	return strings.Split(strings.TrimSuffix(string(content), "\n"), "\n")
}

func (s *site) storedLines(table string) []string { return opened[string](s, stored[table]) }

// TestImportIsFaithful: what is in the tables is what was in the files, in whatever order they were given, and a
// second time changes nothing but the records of importing.
func TestImportIsFaithful(t *testing.T) {
	for name, files := range samples(t) {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			cfg := s.config()
			cfg.RegisterVocabulary, cfg.Personal = true, personalFields
			given := slices.Clone(files)
			slices.Reverse(given)
			reports := s.mustImport(cfg, given...)
			for i, r := range reports {
				lines := fileLines(t, r.File)
				require.Equal(t, Tables()[i], r.Table, "files go in in the order of the tables")
				require.Equal(t, int64(len(lines)), r.RowsRead)
				require.Equal(t, int64(len(lines)), r.RowsAdded)
				content, err := os.ReadFile(r.File)
				require.NoError(t, err)
				sum := sha256.Sum256(content)
				require.Equal(t, hex.EncodeToString(sum[:]), r.SHA256)
				require.Equal(t, canonical(t, lines), canonical(t, s.storedLines(r.Table)), r.Table)
				require.Equal(t, 1, value[int](s, `select count(*) from custody_data.imports where tenant_id = 'acme' and import_id = $1 and run_id = $2
					and table_name = $3 and encode(file_sha256, 'hex') = $4 and rows_read = $5 and rows_added = $5 and rows_rejected = 0`,
					r.ImportID, r.RunID, r.Table, r.SHA256, r.RowsRead))
				require.Equal(t, 1, value[int](s, `select count(*) from custody_data.audit_logs where tenant_id = 'acme' and action = 'record.import' and result = 'success'
					and resource_type = $1 and metadata = jsonb_build_object('table', $1::text, 'rows', $2::bigint, 'rows_added', $2::bigint, 'rows_changed', 0, 'rows_rejected', 0,
						'file_sha256', $3::text, 'import_id', $4::uuid)`, r.Table, r.RowsRead, r.SHA256, r.ImportID))
				require.Equal(t, "succeeded", value[string](s, "select status from custody_data.job_runs where tenant_id = 'acme' and run_id = $1 and job = 'import'", r.RunID))
			}
			require.Zero(t, value[int](s, "select count(*) from custody_data.audit_logs where metadata ?| $1", personalFields))
			require.Zero(t, value[int](s, "select count(*) from custody_data.audit_logs where import_id is not null and personal is null and metadata ? 'source_ip'"))

			before := s.state()
			for _, again := range []bool{false, true} { // known as a file, and line by line
				cfg.Again = again
				for _, r := range s.mustImport(cfg, given...) {
					require.Equal(t, !again, r.Known)
					require.Equal(t, r.RowsRead, r.RowsUnchanged, r.Table)
					require.Zero(t, r.RowsAdded+r.RowsChanged+r.RowsRejected, r.Table)
					require.Zero(t, r.ActionsRegistered+r.ResourceTypesRegistered)
				}
				after := s.state()
				for _, evidence := range []string{"imports", "job_runs", "audit_logs"} {
					after[evidence] = before[evidence]
				}
				require.Equal(t, before, after)
			}
			require.Equal(t, reports[4].RowsAdded, value[int64](s, "select count(*) from custody_data.audit_logs where import_id is not null"))
		})
	}
}

// TestWholeOrNothing: one bad line at the end, and nothing of the file is there; the refusal is on record.
func TestWholeOrNothing(t *testing.T) {
	files := samples(t)["generated"]
	last := map[string]string{ // found by the parser, and by the database
		"user_profiles":    `{"user_id":"` + sample.UserID(0) + `","full_name":"Somebody else"}`,
		"user_preferences": `{"user_id":"` + sample.UserID(1) + `","preferences":{"other":true}}`,
		"consent_records":  `{"user_id":"x","consent_id":"875240ac-e821-4fc6-a311-8c352a1d20f5","purpose":"a","granted":true,"policy_version":"1","legal_basis":"consent","timestamp":"2026-01-01T00:00:00Z"}`,
		"conversations":    "",
		"audit_logs":       "",
	}
	for _, path := range files {
		table := TableOf(path)
		t.Run(table, func(t *testing.T) {
			s := newSite(t)
			cfg := s.config()
			cfg.RegisterVocabulary = true
			lines := fileLines(t, path)

			bad := s.file(table, append(slices.Clone(lines), `{"user_id":"u"`)...)
			line := s.refused(cfg, bad)
			require.Equal(t, int64(len(lines)+1), line.Line)
			require.Equal(t, "PC028", line.Code)
			s.requireFailureOnRecord(table, "PC028", fmt.Sprintf("%s: line %d: PC028", table, len(lines)+1))

			// Now one that the parser lets pass.
			second := last[table]
			switch table {
			case "consent_records":
				lines = append(lines, second)
				second = strings.Replace(second, "true", "false", 1)
			case "conversations":
				second = regexp.MustCompile(`"text":"[^"]*"`).ReplaceAllString(lines[0], `"text":"other"`)
			case "audit_logs":
				second = regexp.MustCompile(`"result":"[^"]*"`).ReplaceAllString(lines[0], `"result":"partial"`)
			}
			line = s.refused(cfg, s.file(table, append(slices.Clone(lines), second)...))
			require.Equal(t, int64(len(lines)+1), line.Line)
			require.Contains(t, line.Problem, "is also on line")
			require.Contains(t, []string{"PC010", "PC028"}, line.Code)

			s.mustImport(cfg, s.file(table, lines...))
		})
	}
}

func (s *site) requireFailureOnRecord(table, code, text string) {
	s.Helper()
	require.Equal(s, 1, value[int](s, `select count(*) from custody_data.audit_logs where tenant_id = 'acme' and action = 'record.import' and result = 'failure'
		and resource_type = $1 and metadata = jsonb_build_object('table', $1::text, 'error_code', $2::text)`, table, code))
	require.Equal(s, text, value[string](s, "select string_agg(error, ';') from custody_data.job_runs where tenant_id = 'acme' and status = 'failed' and error like $1", table+"%"))
}

// TestBadInputIsRefused goes through the kinds of bad input with a real database behind.
func TestBadInputIsRefused(t *testing.T) {
	s := newSite(t)
	for _, test := range []struct {
		table, field, code string
		value              any
	}{
		{"user_profiles", "user_id", "PC003", ""},
		{"user_profiles", "user_id", "PC003", strings.Repeat("x", 257)},
		{"audit_logs", "action", "PC004", "no.such.action"},
		{"audit_logs", "resource_type", "PC005", "nothing"},
		{"audit_logs", "result", "PC007", "maybe"},
		{"audit_logs", "timestamp", "PC009", "infinity"},
		{"audit_logs", "timestamp", "PC009", "1969-12-31T00:00:00Z"},
		{"audit_logs", "timestamp", "PC009", time.Now().Add(25 * time.Hour).Format(time.RFC3339)},
		{"consent_records", "legal_basis", "PC008", "whim"},
		{"consent_records", "timestamp", "PC009", "-infinity"},
		{"user_profiles", "full_name", "PC028", "a\x00b"},
	} {
		base := map[string]any{test.field: test.value}
		if test.table == "audit_logs" {
			if base["action"] == nil {
				base["action"] = "account.login"
			}
			if base["resource_type"] == nil {
				base["resource_type"] = "account"
			}
			base["metadata"] = map[string]any{"method": "password"}
		}
		line := s.refused(s.config(), s.file(test.table, lineOf(t, test.table, base)))
		require.Equal(t, test.field, line.Field)
		require.Equal(t, test.code, line.Code)
		require.Equal(t, int64(1), line.Line)
	}
	line := s.refused(s.config(), s.file("audit_logs", lineOf(t, "audit_logs", map[string]any{
		"action": "account.login", "resource_type": "account", "metadata": map[string]any{"source_ip": "10.0.0.1"}})))
	require.Equal(t, "PC006", line.Code)
	require.ErrorIs(t, line, db.ErrMetadataKey)
}

func TestFilesThatCannotBeImported(t *testing.T) {
	s := newSite(t)
	before := s.state()
	for _, test := range []struct {
		path, table, problem string
	}{
		{filepath.Join(s.dir, "user_profiles.jsonl"), "", "no such file"},
		{s.file("people", "{}"), "", "name of no table"},
		{s.file("people", "{}"), "identities", `no table "identities"`},
		{s.dir, "user_profiles", "not a regular file"},
	} {
		cfg := s.config()
		cfg.Table = test.table
		// A good file beside it is not imported either: what can be known before is said before.
		_, err := Run(t.Context(), cfg, []string{s.file("user_profiles", lineOf(t, "user_profiles", nil)), test.path})
		var file *FileError
		require.ErrorAs(t, err, &file)
		require.Contains(t, file.Problem, test.problem)
	}
	require.Equal(t, before, s.state())
}

func TestUnknownTenant(t *testing.T) {
	s := newSite(t)
	for _, tenant := range []string{"nobody", "", "ACME", "acme; drop"} {
		cfg := s.config()
		cfg.Tenant = tenant
		before := s.state()
		_, err := Run(t.Context(), cfg, []string{s.file("user_profiles", lineOf(t, "user_profiles", nil))})
		require.Error(t, err)
		require.Equal(t, before, s.state())
		if tenant != "" {
			require.ErrorIs(t, db.FromPg(err), db.ErrUnknownTenant)
		}
	}
}

// TestTenantsAreApart: the same ids in two tenants are different people and different events.
func TestTenantsAreApart(t *testing.T) {
	s := newSite(t)
	files := samples(t)["generated"]
	for _, tenant := range []string{"acme", "other"} {
		cfg := s.config()
		cfg.Tenant, cfg.RegisterVocabulary = tenant, true
		for _, r := range s.mustImport(cfg, files...) {
			require.Equal(t, r.RowsRead, r.RowsAdded, "%s %s", tenant, r.Table)
		}
	}
	require.Zero(t, value[int](s, "select count(*) from custody_data.identities a join custody_data.identities b using (identity_id) where a.tenant_id < b.tenant_id"))
	for table := range stored {
		rows := func(tenant string) int {
			imported := ""
			if table == auditTable {
				imported = " and import_id is not null"
			}
			return value[int](s, "select count(*) from custody_data."+table+" where tenant_id = $1"+imported, tenant)
		}
		require.Equal(t, rows("acme"), rows("other"))
		require.NotZero(t, rows("acme"))
	}
	// Another tenant's content under the same id is nobody's business.
	cfg := s.config()
	cfg.Tenant = "other"
	line := strings.Replace(fileLines(t, files[0])[0], `"full_name":"`, `"full_name":"Dr `, 1)
	require.Equal(t, int64(1), s.mustImport(cfg, s.file("user_profiles", line))[0].RowsChanged)
	require.Zero(t, value[int](s, "select count(*) from custody_data.user_profiles where tenant_id = 'acme' and version <> 1"))
}

// TestChangesAreMade: a line that says something else about what may change is a change, once.
func TestChangesAreMade(t *testing.T) {
	s := newSite(t)
	for table, changed := range map[string]map[string]any{
		"user_profiles":    {"full_name": "Ada L.", "email": nil},
		"user_preferences": {"preferences": map[string]any{"theme": "light"}},
		"conversations":    {"title": "New"},
	} {
		first, second := s.file(table, lineOf(t, table, nil)), s.file(table, lineOf(t, table, changed))
		require.Equal(t, int64(1), s.mustImport(s.config(), first)[0].RowsAdded)
		require.Equal(t, int64(1), s.mustImport(s.config(), second)[0].RowsChanged)
		for _, again := range []bool{false, true} {
			cfg := s.config()
			cfg.Again = again
			r := s.mustImport(cfg, second)[0]
			require.Equal(t, int64(1), r.RowsUnchanged)
			require.Zero(t, r.RowsChanged)
		}
		require.Equal(t, 2, value[int](s, "select version from custody_data."+table+" where tenant_id = 'acme'"))
		require.Equal(t, 1, value[int](s, "select count(*) from custody_data.audit_logs where action = 'record.update' and resource_type = $1", table))
	}
	require.Equal(t, []string{"Ada L. null"}, opened[string](s, "select (p ->> 'full_name') || ' ' || (p -> 'email')::text from custody.get_profile('u1') p"))
}

// TestRepeatedLines: the same line twice in a file counts once.
func TestRepeatedLines(t *testing.T) {
	s := newSite(t)
	for _, table := range Tables() {
		good := lineOf(t, table, nil)
		if table == "audit_logs" {
			good = lineOf(t, table, map[string]any{"action": "account.login", "resource_type": nil, "metadata": nil})
		}
		r := s.mustImport(s.config(), s.file(table, good, good, "", good))[0]
		require.Equal(t, int64(3), r.RowsRead, table)
		require.Equal(t, int64(1), r.RowsAdded, table)
		require.Equal(t, int64(2), r.RowsUnchanged, table)
	}
}

// TestConsentIDs: a consent without an id is known again by its content, which has the identity in it and not the
// user_id, so that the id gives nobody away.
func TestConsentIDs(t *testing.T) {
	s := newSite(t)
	line := lineOf(t, "consent_records", nil)
	s.mustImport(s.config(), s.file("consent_records", line))
	id := value[uuid.UUID](s, "select consent_id from custody_data.consent_records")
	require.Equal(t, uuid.Version(8), id.Version())
	require.Equal(t, uuid.RFC4122, id.Variant())

	cfg := s.config()
	cfg.Tenant = "other"
	s.mustImport(cfg, s.file("consent_records", line))
	require.Equal(t, 2, value[int](s, "select count(distinct consent_id) from custody_data.consent_records"), "the same person elsewhere is another identity")

	for field, v := range map[string]any{"granted": false, "purpose": "x", "policy_version": "2", "legal_basis": "contract", "timestamp": "2026-01-01T00:00:00.000001Z"} {
		require.Equal(t, int64(1), s.mustImport(s.config(), s.file("consent_records", lineOf(t, "consent_records", map[string]any{field: v})))[0].RowsAdded, field)
	}

	// The evidence is sealed and not in the id: the same decision at the same instant is the same record, and has one.
	other := s.refused(s.config(), s.file("consent_records", lineOf(t, "consent_records", map[string]any{"source": "app"})))
	require.Equal(t, "PC010", other.Code)

	// One that the application recorded, by its id.
	given := uuid.New()
	s.as("custody_app", "select custody.record_consent('u1', 'service', true, '1', 'consent', '{\"source\": \"web\"}', '2026-01-01T00:00:00Z', $1)", given)
	require.Equal(t, int64(1), s.mustImport(s.config(), s.file("consent_records", lineOf(t, "consent_records", map[string]any{"consent_id": given})))[0].RowsUnchanged)
	for field, v := range map[string]any{"granted": false, "user_id": "u2", "source": nil} {
		bad := s.refused(s.config(), s.file("consent_records", lineOf(t, "consent_records", map[string]any{"consent_id": given, field: v})))
		require.Equal(t, "PC010", bad.Code)
		require.Equal(t, "consent_id", bad.Field)
		require.ErrorIs(t, bad, db.ErrDifferentContent)
	}
}

// eventLine makes a line of audit_logs in the shared vocabulary.
func eventLine(t testing.TB, changes map[string]any) string {
	base := map[string]any{"action": "account.login", "resource_type": "account", "resource_id": "r-1", "metadata": map[string]any{"method": "password"}}
	maps.Copy(base, changes)
	return lineOf(t, "audit_logs", base)
}

// TestEventSeenBefore: the same id with other content is refused whatever differs, and that is an event.
func TestEventSeenBefore(t *testing.T) {
	s := newSite(t)
	whole := map[string]any{"subject_user_id": "patient", "purpose": "care", "personal": map[string]any{"note": "n"}}
	s.mustImport(s.config(), s.file("audit_logs", eventLine(t, whole)))
	for field, v := range map[string]any{
		"timestamp": "2026-01-01T00:00:00.000001Z", "user_id": "u2", "subject_user_id": "another", "action": "account.logout", "resource_type": "document",
		"resource_id": "r-2", "result": "failure", "purpose": "billing", "metadata": map[string]any{"method": "key"}, "personal": map[string]any{"note": "m"},
	} {
		changed := maps.Clone(whole)
		changed[field] = v
		if field == "action" {
			changed["metadata"] = nil
		}
		bad := s.refused(s.config(), s.file("audit_logs", eventLine(t, changed)))
		require.Equal(t, "PC010", bad.Code, field)
		require.Equal(t, "log_entry_id", bad.Field, field)
		for _, gone := range []string{"subject_user_id", "purpose", "personal", "resource_id"} {
			if gone == field {
				changed[field] = missing
				bad = s.refused(s.config(), s.file("audit_logs", eventLine(t, changed)))
				require.Equal(t, "PC010", bad.Code, field)
			}
		}
	}
	moved := maps.Clone(whole)
	moved["timestamp"], moved["user_id"] = "2026-02-02T00:00:00Z", "nobody yet"
	require.Equal(t, "PC010", s.refused(s.config(), s.file("audit_logs", eventLine(t, moved))).Code)
	require.Equal(t, 15, value[int](s, "select count(*) from custody_data.audit_logs where action = 'record.import' and result = 'failure' and metadata ->> 'error_code' = 'PC010'"))
	require.Equal(t, int64(1), s.mustImport(s.config(), s.file("audit_logs", eventLine(t, whole)))[0].RowsUnchanged)
}

// TestEventOfTheApplication: an event that the application recorded is the same event in an import, and the other way round.
func TestEventOfTheApplication(t *testing.T) {
	s := newSite(t)
	at := time.Now().UTC().Truncate(time.Microsecond).Add(-time.Hour)
	record := `select custody.record_audit_event('account.login', 'account', $1, 'success', '{"method": "password"}', null, $2, $3)`
	for _, importFirst := range []bool{false, true} {
		for _, resource := range []string{"r-1", "somebody"} { // the second is a user_id, that of the actor
			id := uuid.New()
			file := s.file("audit_logs", eventLine(t, map[string]any{"log_entry_id": id, "timestamp": at, "user_id": "somebody", "resource_id": resource}))
			if importFirst {
				require.Equal(t, int64(1), s.mustImport(s.config(), file)[0].RowsAdded)
				s.as("custody_app", record, resource, at, id)
			} else {
				s.as("custody_app", record, resource, at, id)
				require.Equal(t, int64(1), s.mustImport(s.config(), file)[0].RowsUnchanged)
			}
			require.Equal(t, 1, value[int](s, "select count(*) from custody_data.audit_logs where log_entry_id = $1", id))
		}
	}
}

// TestResourceThatIsAPerson: a resource_id that is a user_id of the tenant is stored as the identity.
func TestResourceThatIsAPerson(t *testing.T) {
	s := newSite(t)
	s.mustImport(s.config(), s.file("user_profiles", lineOf(t, "user_profiles", map[string]any{"user_id": "known"})))
	ids := map[string]uuid.UUID{}
	var lines []string
	for _, e := range []struct{ name, actor, resource, subject string }{
		{"known", "u1", "known", ""}, {"actor of this file", "u1", "u9", ""}, {"that actor", "u9", "r-1", ""}, {"unknown", "u1", "stranger", ""},
		{"other subject", "u1", "known", "patient"}, {"tenant of others", "u1", "elsewhere", ""},
	} {
		ids[e.name] = uuid.New()
		change := map[string]any{"log_entry_id": ids[e.name], "user_id": e.actor, "resource_id": e.resource}
		if e.subject != "" {
			change["subject_user_id"] = e.subject
		}
		lines = append(lines, eventLine(t, change))
	}
	other := s.config()
	other.Tenant = "other"
	s.mustImport(other, s.file("user_profiles", lineOf(t, "user_profiles", map[string]any{"user_id": "elsewhere"})))
	s.mustImport(s.config(), s.file("audit_logs", lines...))

	look := func(name string) (resource, subject string) {
		return value[string](s, "select resource_id from custody_data.audit_logs where log_entry_id = $1", ids[name]),
			value[string](s, "select coalesce((select user_id from custody_data.identities i where i.tenant_id = 'acme' and i.identity_id = a.subject_id), '') from custody_data.audit_logs a where log_entry_id = $1", ids[name])
	}
	identity := func(user string) string {
		return value[string](s, "select identity_id::text from custody_data.identities where tenant_id = 'acme' and user_id = $1", user)
	}
	for name, want := range map[string][2]string{
		"known": {identity("known"), "known"}, "actor of this file": {identity("u9"), "u9"}, "that actor": {"r-1", ""}, "unknown": {"stranger", ""},
		"other subject": {identity("known"), "patient"}, "tenant of others": {"elsewhere", ""},
	} {
		resource, subject := look(name)
		require.Equal(t, want, [2]string{resource, subject}, name)
	}
	require.Zero(t, value[int](s, "select count(*) from custody_data.identities where tenant_id = 'acme' and user_id in ('stranger', 'elsewhere', 'r-1')"))
	r := s.mustImport(s.config(), s.file("audit_logs", append(lines, "")...))[0]
	require.Equal(t, int64(len(lines)), r.RowsUnchanged)
}

// TestErasedPeopleAreNotCompared: after the erasure of everybody in it, the same file of events adds nothing, brings
// nobody back, and other content is still refused.
func TestErasedPeopleAreNotCompared(t *testing.T) {
	s := newSite(t)
	event := map[string]any{"user_id": "doctor", "subject_user_id": "patient", "resource_id": "patient"}
	consent := map[string]any{"user_id": "patient", "consent_id": uuid.New()}
	s.mustImport(s.config(), s.file("user_profiles", lineOf(t, "user_profiles", map[string]any{"user_id": "patient"})))
	s.mustImport(s.config(), s.file("audit_logs", eventLine(t, event)), s.file("consent_records", lineOf(t, "consent_records", consent)))
	for _, user := range []string{"doctor", "patient"} {
		request := uuid.New()
		s.as("custody_dpo", "select custody.request_erasure($1, null, $2)", user, request)
		s.as("custody_dpo", "select custody.erase_subject($1)", request)
		require.Equal(t, "done", value[string](s, "select status from custody_data.requests where request_id = $1", request))
	}
	people := value[int](s, "select count(*) from custody_data.identities")

	// In another form, so that it is not the same file.
	require.Equal(t, int64(1), s.mustImport(s.config(), s.file("audit_logs", " "+eventLine(t, event)))[0].RowsUnchanged)
	require.Equal(t, int64(1), s.mustImport(s.config(), s.file("consent_records", " "+lineOf(t, "consent_records", consent)))[0].RowsUnchanged)
	require.Equal(t, people, value[int](s, "select count(*) from custody_data.identities"), "nobody comes back")

	event["result"] = "denied"
	require.Equal(t, "PC010", s.refused(s.config(), s.file("audit_logs", eventLine(t, event))).Code)
	consent["granted"] = false
	require.Equal(t, "PC010", s.refused(s.config(), s.file("consent_records", lineOf(t, "consent_records", consent))).Code)

	// A person who comes back is a new identity.
	s.mustImport(s.config(), s.file("user_profiles", " "+lineOf(t, "user_profiles", map[string]any{"user_id": "patient"})))
	require.Equal(t, 1, value[int](s, "select count(*) from custody_data.identities where user_id = 'patient'"))
	require.Equal(t, people+1, value[int](s, "select count(*) from custody_data.identities"))
}

// TestAfterTheMonthIsGone: events whose partition was dropped after archiving are not imported again.
func TestAfterTheMonthIsGone(t *testing.T) {
	s := newSite(t)
	whole := eventLine(t, map[string]any{"timestamp": "2023-05-05T00:00:00Z", "resource_id": "u1"})
	file := s.file("audit_logs", whole)
	s.mustImport(s.config(), file)
	drop := func() {
		_, err := s.super.Exec(t.Context(), "drop table custody_data.audit_logs_2023_05")
		require.NoError(t, err)
	}
	drop()
	r := s.mustImport(s.config(), file)[0]
	require.Equal(t, int64(1), r.RowsUnchanged)
	require.Nil(t, value[*string](s, "select to_regclass('custody_data.audit_logs_2023_05')::text"))
	// The same event in another file: its id is known.
	require.Equal(t, int64(1), s.mustImport(s.config(), s.file("audit_logs", " "+whole))[0].RowsUnchanged)
	require.Equal(t, "PC010", s.refused(s.config(), s.file("audit_logs", eventLine(t, map[string]any{"timestamp": "2023-05-05T00:00:00Z", "result": "denied"}))).Code)

	// Later the ids are forgotten, the file is not.
	_, err := s.super.Exec(t.Context(), "delete from custody_data.audit_entry_ids")
	require.NoError(t, err)
	require.Equal(t, int64(1), s.mustImport(s.config(), file)[0].RowsUnchanged)
}

// TestKnownFileAddsNothing: also when an erasure and retention took rows away, and the application changed others.
func TestKnownFileAddsNothing(t *testing.T) {
	s := newSite(t)
	var files []string
	for _, table := range Tables() {
		var lines []string
		for _, user := range []string{"gone", "kept"} {
			changes := map[string]any{"user_id": user}
			if table == auditTable {
				changes["log_entry_id"] = uuid.New()
			}
			lines = append(lines, lineOf(t, table, changes))
		}
		files = append(files, s.file(table, lines...))
	}
	cfg := s.config()
	cfg.RegisterVocabulary = true
	s.mustImport(cfg, files...)

	request := uuid.New()
	s.as("custody_dpo", "select custody.request_erasure('gone', null, $1)", request)
	s.as("custody_dpo", "select custody.erase_subject($1)", request)
	s.in("acme", func(tx pgx.Tx) error {
		_, err := tx.Exec(t.Context(), "select custody.enforce_retention('conversations', 1000), custody.enforce_retention('consent', 1000)")
		return err
	})
	s.as("custody_app", `select custody.patch_profile('kept', '{"full_name": "By the application"}'), custody.delete_preferences('kept')`)
	records := func() map[string]int {
		counts := map[string]int{}
		for _, table := range []string{"identities", "user_profiles", "user_preferences", "consent_records", "conversations"} {
			counts[table] = value[int](s, "select count(*) from custody_data."+table+" where tenant_id = 'acme'")
		}
		counts["events"] = value[int](s, "select count(*) from custody_data.audit_logs where import_id is not null")
		counts["changed"] = len(opened[bool](s, "select true where custody.get_profile('kept') ->> 'full_name' = 'By the application'"))
		return counts
	}
	before := records()
	require.Equal(t, 1, before["user_profiles"])
	require.Zero(t, before["conversations"], "retention has taken the old one")
	require.Zero(t, before["user_preferences"])

	for _, r := range s.mustImport(cfg, files...) {
		require.True(t, r.Known, r.Table)
		require.Equal(t, int64(2), r.RowsUnchanged, r.Table)
		require.Zero(t, r.RowsAdded+r.RowsChanged+r.RowsRejected, r.Table)
	}
	require.Equal(t, before, records())

	// Into another table, or by somebody who says so, it is imported.
	cfg.Again = true
	require.Equal(t, int64(1), s.mustImport(cfg, files...)[0].RowsAdded, "the one who was erased")
	require.Zero(t, records()["changed"])
}

// TestPartialFileIsNoWholeFile: lines that were rejected the first time come in the second time.
func TestPartialFileIsNoWholeFile(t *testing.T) {
	s := newSite(t)
	file := s.file("audit_logs", eventLine(t, nil), eventLine(t, map[string]any{"log_entry_id": uuid.New(), "action": "own.action"}))
	cfg := s.config()
	cfg.Rejects = s.rejects("first.jsonl")
	require.Equal(t, int64(1), s.mustImport(cfg, file)[0].RowsRejected)
	cfg = s.config()
	cfg.RegisterVocabulary = true
	r := s.mustImport(cfg, file)[0]
	require.Equal(t, int64(1), r.RowsAdded)
	require.Equal(t, int64(1), r.RowsUnchanged)
}

func (s *site) rejects(name string) *Rejects {
	s.Helper()
	r, err := CreateRejects(filepath.Join(s.dir, name))
	require.NoError(s, err)
	s.Cleanup(func() { _ = r.file.Close() })
	return r
}

// TestRejects: the good lines are in, the bad ones in the file with their reasons, those that the parser found and
// those that the database did.
func TestRejects(t *testing.T) {
	s := newSite(t)
	seen := eventLine(t, map[string]any{"log_entry_id": "00000000-0000-4000-8000-000000000001"})
	s.mustImport(s.config(), s.file("audit_logs", seen))

	clash := eventLine(t, map[string]any{"log_entry_id": "00000000-0000-4000-8000-000000000001", "result": "failure"})
	twice := map[string]any{"log_entry_id": "00000000-0000-4000-8000-000000000002"}
	lines := []string{
		`{"broken`,
		eventLine(t, twice),
		clash,
		"",
		eventLine(t, map[string]any{"timestamp": "1960-01-01T00:00:00Z"}),
		seen,
		eventLine(t, map[string]any{"log_entry_id": "00000000-0000-4000-8000-000000000002", "result": "denied"}),
		eventLine(t, map[string]any{"log_entry_id": "00000000-0000-4000-8000-000000000003"}) + "\r",
		"bytes: \xff",
	}
	events := s.file("audit_logs", lines...)
	profiles := s.file("user_profiles", lineOf(t, "user_profiles", nil), `{"user_id":""}`)
	cfg := s.config()
	cfg.Rejects = s.rejects("rejects.jsonl")
	reports := s.mustImport(cfg, events, profiles)
	require.NoError(t, cfg.Rejects.Close())

	require.Equal(t, int64(1), reports[0].RowsAdded)
	require.Equal(t, int64(1), reports[0].RowsRejected)
	require.Equal(t, int64(8), reports[1].RowsRead)
	require.Equal(t, int64(2), reports[1].RowsAdded)
	require.Equal(t, int64(1), reports[1].RowsUnchanged)
	require.Equal(t, int64(5), reports[1].RowsRejected)
	require.Equal(t, 1, value[int](s, "select count(*) from custody_data.audit_logs where action = 'record.import' and result = 'partial' and (metadata ->> 'rows_rejected')::int = 5"))
	require.Equal(t, int64(5), value[int64](s, "select rows_rejected from custody_data.imports where import_id = $1", reports[1].ImportID))

	info, err := os.Stat(filepath.Join(s.dir, "rejects.jsonl"))
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o600), info.Mode().Perm())
	rejected := readRejects(t, filepath.Join(s.dir, "rejects.jsonl"))
	require.Len(t, rejected, 6)
	require.Equal(t, profiles, rejected[0].File)
	require.Equal(t, "user_profiles", rejected[0].Table)
	require.Equal(t, "PC003", rejected[0].Code)
	var found []string
	for _, r := range rejected[1:] {
		require.Equal(t, events, r.File)
		if r.Original != nil {
			require.Equal(t, strings.TrimSuffix(lines[r.Line-1], "\r"), *r.Original)
		} else {
			require.Equal(t, lines[r.Line-1], string(r.OriginalBase64))
		}
		require.NotEmpty(t, r.Problem)
		found = append(found, fmt.Sprintf("%d %s %s", r.Line, r.Field, r.Code))
	}
	require.Equal(t, []string{"1  PC028", "5 timestamp PC009", "9  PC028", "3 log_entry_id PC010", "7 log_entry_id PC010"}, found)
}

// TestRejectsOfAFailedImport: what a file that failed had rejected is not in the rejects file.
func TestRejectsOfAFailedImport(t *testing.T) {
	s := newSite(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	cfg := s.config()
	cfg.Rejects = s.rejects("rejects.jsonl")
	good := s.file("user_profiles", lineOf(t, "user_profiles", nil), "bad one")
	failing := s.file("user_preferences", lineOf(t, "user_preferences", nil), "bad two")
	cfg.Progress = func(p Progress) {
		if p.File == failing && p.Storing > 0 {
			cancel()
		}
	}
	reports, err := Run(ctx, cfg, []string{good, failing})
	require.ErrorIs(t, err, context.Canceled)
	require.Len(t, reports, 1)
	require.NoError(t, cfg.Rejects.Close())
	rejected := readRejects(t, filepath.Join(s.dir, "rejects.jsonl"))
	require.Len(t, rejected, 1)
	require.Equal(t, "bad one", *rejected[0].Original)
}

// TestKilled: an import that ends at any point leaves nothing behind, and can be done again.
func TestKilled(t *testing.T) {
	s := newSite(t)
	files := samples(t)["generated"]
	for _, path := range files {
		for _, storing := range []bool{false, true} {
			ctx, cancel := context.WithCancel(t.Context())
			cfg := s.config()
			cfg.RegisterVocabulary = true
			cfg.Progress = func(p Progress) {
				if (p.Storing > 0) == storing {
					cancel()
				}
			}
			before := s.state()
			_, err := Run(ctx, cfg, []string{path})
			require.ErrorIs(t, err, context.Canceled, path)
			require.Equal(t, before, s.state(), path)
			cancel()
		}
	}
	cfg := s.config()
	cfg.RegisterVocabulary = true
	s.mustImport(cfg, files...)
}

// TestSameFileAtOnce: several imports of the same files end as one.
func TestSameFileAtOnce(t *testing.T) {
	s := newSite(t)
	files := samples(t)["generated"]
	var mu sync.Mutex
	added, read := map[string]int64{}, map[string]int64{}
	var wg sync.WaitGroup
	for range 4 {
		pool := s.database.Pool(t, "custody_runner")
		wg.Go(func() {
			cfg := s.config()
			cfg.Database, cfg.RegisterVocabulary = pool, true
			reports, err := Run(t.Context(), cfg, files)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Error(err)
			}
			for _, r := range reports {
				added[r.Table] += r.RowsAdded
				read[r.Table] = r.RowsRead
			}
		})
	}
	wg.Wait()
	require.Equal(t, read, added)
	for table, want := range read {
		require.Equal(t, want, int64(len(s.storedLines(table))), table)
	}
	require.Zero(t, value[int](s, "select count(*) from custody_data.user_profiles where version <> 1"))
}

// TestAgainstTheApplication: an application that has recorded the id and not yet committed is waited for; the import
// then goes by what it finds.
func TestAgainstTheApplication(t *testing.T) {
	s := newSite(t)
	app := s.database.Pool(t, "custody_app")
	at := time.Now().UTC().Add(-time.Hour).Truncate(time.Microsecond)
	for _, result := range []string{"success", "failure"} {
		id := uuid.New()
		tx, err := app.Begin(t.Context())
		require.NoError(t, err)
		_, err = tx.Exec(t.Context(), "select custody.set_context('acme', 'somebody')")
		require.NoError(t, err)
		_, err = tx.Exec(t.Context(), `select custody.record_audit_event('account.login', 'account', 'r-1', $1, '{"method": "password"}', null, $2, $3)`, result, at, id)
		require.NoError(t, err)

		type outcome struct {
			reports []Report
			err     error
		}
		done := make(chan outcome, 1)
		go func() {
			reports, err := Run(t.Context(), s.config(), []string{s.file("audit_logs", eventLine(t, map[string]any{"log_entry_id": id, "timestamp": at, "user_id": "somebody"}))})
			done <- outcome{reports, err}
		}()
		s.waitForLock()
		require.NoError(t, tx.Commit(t.Context()))
		end := <-done
		if result == "success" {
			require.NoError(t, end.err)
			require.Equal(t, int64(1), end.reports[0].RowsUnchanged)
		} else {
			require.ErrorIs(t, end.err, db.ErrDifferentContent)
		}
		require.Equal(t, 1, value[int](s, "select count(*) from custody_data.audit_logs where log_entry_id = $1", id))
	}
}

// TestVocabularyOfEveryParser: words that only one of several blocks has are registered whoever parsed it.
func TestVocabularyOfEveryParser(t *testing.T) {
	s := newSite(t)
	var lines []string
	for block := range 24 {
		for range 4 {
			lines = append(lines, eventLine(t, map[string]any{"log_entry_id": uuid.New(), "action": fmt.Sprintf("action.%d", block),
				"resource_type": fmt.Sprintf("type.%d", block), "metadata": map[string]any{fmt.Sprintf("key_%d", block): strings.Repeat("x", blockSize/4)}}))
		}
	}
	cfg := s.config()
	cfg.RegisterVocabulary, cfg.Parsers = true, 4
	r := s.mustImport(cfg, s.file("audit_logs", lines...))[0]
	require.Equal(t, 24, r.ActionsRegistered)
	require.Equal(t, 24, r.ResourceTypesRegistered)
	require.Equal(t, 24, value[int](s, "select count(distinct (action, metadata_keys)) from custody_data.audit_actions where tenant_id = 'acme' and metadata_keys[1] = 'key_' || split_part(action, '.', 2)"))
}

// waitForLock waits until a session of this database waits for another's transaction.
func (s *site) waitForLock() {
	s.Helper()
	require.Eventually(s, func() bool {
		return value[bool](s, "select exists (select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock')")
	}, 30*time.Second, 10*time.Millisecond)
}

// TestErasureAndImport: an erasure that is under way is waited for, and the person comes back as a new identity.
func TestErasureAndImport(t *testing.T) {
	s := newSite(t)
	file := s.file("user_profiles", lineOf(t, "user_profiles", map[string]any{"full_name": "Back Again"}))
	s.mustImport(s.config(), s.file("user_profiles", lineOf(t, "user_profiles", nil)))
	request := uuid.New()
	s.as("custody_dpo", "select custody.request_erasure('u1', null, $1)", request)
	tx, err := s.database.Pool(t, "custody_dpo").Begin(t.Context())
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), "select custody.set_context('acme', 'somebody')")
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), "select custody.erase_subject($1)", request)
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() {
		_, err := Run(t.Context(), s.config(), []string{file})
		done <- err
	}()
	s.waitForLock()
	require.NoError(t, tx.Commit(t.Context()))
	require.NoError(t, <-done)
	require.Equal(t, []string{"Back Again"}, opened[string](s, "select custody.get_profile('u1') ->> 'full_name'"))
	require.Equal(t, 1, value[int](s, "select count(*) from custody_data.user_profiles"))
	require.Equal(t, 1, value[int](s, "select count(*) from custody_data.identities where erased_at is not null"))
}

func TestThroughPooler(t *testing.T) {
	s := newSite(t)
	config, err := pgxpool.ParseConfig(stacktest.PgBouncer(t, s.database)["custody_runner"])
	require.NoError(t, err)
	config.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	cfg := s.config()
	cfg.Database, cfg.RegisterVocabulary, cfg.Rejects = pool, true, s.rejects("none.jsonl")
	files := samples(t)["generated"]
	for range 2 { // the staging tables of the first are gone when the second begins
		for _, r := range s.mustImport(cfg, files...) {
			require.Equal(t, r.RowsRead, r.RowsAdded+r.RowsUnchanged)
		}
	}
}

// TestRights: imports are the worker's, and nobody's in a context confined to one person.
func TestRights(t *testing.T) {
	s := newSite(t)
	for _, login := range []string{"custody_app", "custody_reports", "custody_dpo", "custody_audit"} {
		cfg := s.config()
		cfg.Database = s.database.Pool(t, login)
		before := s.state()
		_, err := Run(t.Context(), cfg, []string{s.file("user_profiles", lineOf(t, "user_profiles", nil))})
		require.ErrorIs(t, db.FromPg(err), db.ErrPermission, login)
		require.Equal(t, before, s.state())
	}
	for query, want := range map[string]error{
		"select custody.prepare_import('user_profiles')":                                db.ErrNotForCaller,
		"select custody_data.claim_identities(array['u1'])":                             db.ErrNotForCaller,
		"select custody.finish_import(gen_random_uuid(), 'x', sha256('x'), 1, 1, 0, 0)": errors.New("PC015 or 42501"),
	} {
		err := s.unlock.InContext(t.Context(), s.runner, jobs.Scope{Tenant: "acme", Actor: "tester", Subject: "u1"}, func(tx pgx.Tx) error {
			_, err := tx.Exec(t.Context(), query)
			return err
		})
		require.Error(t, err, query)
		if errors.Is(want, db.ErrNotForCaller) {
			require.ErrorIs(t, db.FromPg(err), want, query)
		}
	}
	err := s.unlock.InContext(t.Context(), s.runner, jobs.Scope{Tenant: "acme", Actor: "tester", Isolation: pgx.RepeatableRead}, func(tx pgx.Tx) error {
		_, err := tx.Exec(t.Context(), "select custody.prepare_import('user_profiles'), custody.import_profiles()")
		return err
	})
	require.ErrorIs(t, db.FromPg(err), db.ErrIsolationLevel)
	err = s.unlock.InContext(t.Context(), s.runner, jobs.Scope{Tenant: "acme", Actor: "tester"}, func(tx pgx.Tx) error {
		_, err := tx.Exec(t.Context(), "select custody.import_profiles()")
		return err
	})
	require.ErrorIs(t, db.FromPg(err), db.ErrInvalidArgument)
}

// TestStagedRowsAreChecked: what the parser would have refused the tables refuse too, for whoever calls the functions
// without it.
func TestStagedRowsAreChecked(t *testing.T) {
	s := newSite(t)
	for name, statements := range map[string][2]string{
		"blank user_id":   {"user_profiles", "insert into pg_temp.staged_user_profiles (line, user_id) values (1, '  ')"},
		"null user_id":    {"user_profiles", "insert into pg_temp.staged_user_profiles (line) values (1)"},
		"unknown action":  {"audit_logs", "insert into pg_temp.staged_audit_logs values (1, gen_random_uuid(), now(), 'u', null, 'no.such', null, null, 'success', null, '{}', null)"},
		"unknown type":    {"audit_logs", "insert into pg_temp.staged_audit_logs values (1, gen_random_uuid(), now(), 'u', null, 'account.login', 'no', null, 'success', null, '{}', null)"},
		"unknown result":  {"audit_logs", "insert into pg_temp.staged_audit_logs values (1, gen_random_uuid(), now(), 'u', null, 'account.login', null, null, 'no', null, '{}', null)"},
		"infinite":        {"audit_logs", "insert into pg_temp.staged_audit_logs values (1, gen_random_uuid(), 'infinity', 'u', null, 'account.login', null, null, 'success', null, '{}', null)"},
		"before 1970":     {"audit_logs", "insert into pg_temp.staged_audit_logs values (1, gen_random_uuid(), '1960-01-01', 'u', null, 'account.login', null, null, 'success', null, '{}', null)"},
		"a month ahead":   {"audit_logs", "insert into pg_temp.staged_audit_logs values (1, gen_random_uuid(), now() + interval '40 days', 'u', null, 'account.login', null, null, 'success', null, '{}', null)"},
		"metadata a text": {"audit_logs", `insert into pg_temp.staged_audit_logs values (1, gen_random_uuid(), now(), 'u', null, 'account.login', null, null, 'success', null, '"x"', null)`},
		"legal basis":     {"consent_records", "insert into pg_temp.staged_consent_records values (1, null, 'u', 'p', true, '1', 'no', null, now())"},
	} {
		before := s.state()
		function := map[string]string{"user_profiles": "import_profiles()", "consent_records": "import_consents()", "audit_logs": "import_audit_events(gen_random_uuid(), sha256('x'))"}[statements[0]]
		err := s.unlock.InContext(t.Context(), s.runner, jobs.Scope{Tenant: "acme", Actor: "tester"}, func(tx pgx.Tx) error {
			for _, statement := range []string{"select custody.prepare_import('" + statements[0] + "')", statements[1]} {
				if _, err := tx.Exec(t.Context(), statement); err != nil {
					t.Fatalf("%s: %s", name, err)
				}
			}
			_, err := tx.Exec(t.Context(), "select custody."+function)
			return err
		})
		require.Error(t, err, name)
		require.Equal(t, before, s.state(), name)
		if slices.Contains([]string{"infinite", "before 1970", "a month ahead"}, name) {
			require.ErrorIs(t, db.FromPg(err), db.ErrTimeOutOfRange, name)
		}
	}
}

// TestWhatTheParserTakesTheDatabaseTakes: JSON that the parser lets pass never ends a COPY.
func TestWhatTheParserTakesTheDatabaseTakes(t *testing.T) {
	s := newSite(t)
	random := rand.New(rand.NewPCG(5, 6))
	taken, refused := 0, 0
	var lines []string
	for range 20_000 {
		lines = append(lines, `{"user_id":"u`+fmt.Sprint(len(lines))+`","preferences":{"x":`+randomJSON(random, 0)+`}}`)
		if _, prob := testParser("user_preferences").appendRow(nil, []byte(lines[len(lines)-1]), 1); prob == nil {
			taken++
		} else {
			refused++
		}
	}
	require.Greater(t, taken, 5000)
	require.Greater(t, refused, 500)
	cfg := s.config()
	cfg.Rejects = s.rejects("rejects.jsonl")
	r := s.mustImport(cfg, s.file("user_preferences", lines...))[0]
	require.Equal(t, int64(taken), r.RowsAdded)
	require.Equal(t, int64(refused), r.RowsRejected)

	// And what it refuses as no JSON, the database refuses, but for the parser's own limits.
	require.NoError(t, cfg.Rejects.Close())
	_, err := s.super.Exec(t.Context(), `create function public.is_jsonb(p text) returns boolean language plpgsql as
		$$ begin perform p::jsonb; return true; exception when others then return false; end $$`)
	require.NoError(t, err)
	for _, rejected := range readRejects(t, filepath.Join(s.dir, "rejects.jsonl")) {
		if !strings.Contains(rejected.Problem, "exponent") {
			require.False(t, value[bool](s, "select public.is_jsonb($1)", *rejected.Original), "%s: %s", rejected.Problem, *rejected.Original)
		}
	}
}

// TestMemoryIsConstant: a file ten times as long takes no more memory.
func TestMemoryIsConstant(t *testing.T) {
	line := lineOf(t, "user_preferences", map[string]any{"preferences": map[string]any{"x": strings.Repeat("y", 1000)}}) + "\n"
	blocks := func(lines int) int64 {
		reader, writer := io.Pipe()
		go func() {
			out := bufio.NewWriter(writer)
			for range lines {
				_, _ = out.WriteString(line)
			}
			_ = out.Flush()
			_ = writer.Close()
		}()
		s := newStream(t.Context(), reader, []*rowParser{testParser("user_preferences"), testParser("user_preferences")}, nil, nil)
		defer s.close()
		n, err := io.Copy(io.Discard, s)
		require.NoError(t, err)
		require.Greater(t, n, int64(lines*1000))
		var held int64
		for range blocksAhead {
			b := <-s.free
			held += int64(cap(b.lines) + cap(b.rows))
			if len(s.free) == 0 {
				break
			}
		}
		return held
	}
	require.Less(t, blocks(200_000), int64(blocksAhead*4*blockSize))
}

func TestSampleIsDeterministic(t *testing.T) {
	var digests [2][]string
	for round := range digests {
		files, err := sample.Write(t.TempDir(), sample.Options{Seed: 3, People: 50, Consents: 60, Conversations: 70, Events: 80, Until: testNow})
		require.NoError(t, err)
		for i, file := range files {
			content, err := os.ReadFile(file)
			require.NoError(t, err)
			require.Equal(t, []int{50, 50, 60, 70, 80}[i], bytes.Count(content, []byte("\n")))
			digests[round] = append(digests[round], fmt.Sprintf("%x", sha256.Sum256(content)))
		}
	}
	require.Equal(t, digests[0], digests[1])
}
