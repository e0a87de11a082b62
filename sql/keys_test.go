package sql_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"pgcustody/cmd/devstack/stack"
)

func newKEK(t *testing.T) []byte {
	t.Helper()
	kek := make([]byte, 64)
	_, err := rand.Read(kek)
	require.NoError(t, err)
	return kek
}

// keyed is a connection whose transactions have a context and, with a key, are unlocked.
type keyed struct{ *pgx.Conn }

func connectKeyed(t *testing.T, url string) keyed {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return keyed{conn}
}

// in runs a function in a transaction of tenant acme.
func (k keyed) in(ctx context.Context, kek []byte, do func(pgx.Tx) error) error {
	return pgx.BeginFunc(ctx, k.Conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "select custody.set_context($1, 'clerk')", tenant); err != nil {
			return err
		}
		if kek != nil {
			if _, err := tx.Exec(ctx, "select custody.unlock($1)", kek); err != nil {
				return err
			}
		}
		return do(tx)
	})
}

// seal seals a value for a person's row of a table of the application.
func (k keyed) seal(ctx context.Context, kek []byte, identity uuid.UUID, value string) (sealed []byte, err error) {
	return sealed, k.in(ctx, kek, func(tx pgx.Tx) error {
		return tx.QueryRow(ctx, "select custody.seal_value($1, 'notes', 'body', 'r', $2)", identity, value).Scan(&sealed)
	})
}

func (k keyed) open(ctx context.Context, kek []byte, identity uuid.UUID, sealed []byte) (value string, err error) {
	return value, k.in(ctx, kek, func(tx pgx.Tx) error {
		return tx.QueryRow(ctx, "select custody.open_value($1, 'notes', 'body', 'r', $2)", identity, sealed).Scan(&value)
	})
}

func (k keyed) register(ctx context.Context, kek, current []byte) (version int, err error) {
	return version, k.in(ctx, nil, func(tx pgx.Tx) error {
		return tx.QueryRow(ctx, "select custody.register_kek($1, 'test', $2)", kek, current).Scan(&version)
	})
}

func (k keyed) person(t *testing.T, user string) (identity uuid.UUID) {
	t.Helper()
	require.NoError(t, k.in(t.Context(), nil, func(tx pgx.Tx) error {
		if _, err := tx.Exec(t.Context(), "select custody.record_consent($1, 'mail', true, '1')", user); err != nil {
			return err
		}
		return tx.QueryRow(t.Context(), "select i.identity_id from custody_data.identities i where i.user_id = $1", user).Scan(&identity)
	}))
	return identity
}

// Bound by the extended protocol a key unlocks; by the simple protocol, which writes
// it into the statement, it is refused.
func TestUnlockTakesABoundParameter(t *testing.T) {
	t.Parallel()
	b := newBedWithoutKeys(t)
	kek := newKEK(t)
	_, err := connectKeyed(t, b.URLs[runner]).register(t.Context(), kek, nil)
	require.NoError(t, err)
	for mode, code := range map[pgx.QueryExecMode]string{
		pgx.QueryExecModeCacheStatement: "", pgx.QueryExecModeCacheDescribe: "", pgx.QueryExecModeDescribeExec: "",
		pgx.QueryExecModeExec: "", pgx.QueryExecModeSimpleProtocol: "PC036",
	} {
		t.Run(mode.String(), func(t *testing.T) {
			t.Parallel()
			config, err := pgx.ParseConfig(b.URLs[app])
			require.NoError(t, err)
			config.DefaultQueryExecMode = mode
			conn, err := pgx.ConnectConfig(t.Context(), config)
			require.NoError(t, err)
			defer conn.Close(context.Background())
			err = keyed{conn}.in(t.Context(), kek, func(pgx.Tx) error { return nil })
			if code == "" {
				require.NoError(t, err)
				return
			}
			requireCode(t, err, code)
		})
	}
}

// spellings are the ways in which a key may stand in a file.
func spellings(name string, key []byte) map[string][]byte {
	return map[string][]byte{
		name + " as bytes":      key,
		name + " in hex":        []byte(hex.EncodeToString(key)),
		name + " in upper hex":  bytes.ToUpper([]byte(hex.EncodeToString(key))),
		name + " in base64":     []byte(base64.StdEncoding.EncodeToString(key)),
		name + " in base64 URL": []byte(base64.RawURLEncoding.EncodeToString(key)),
		name + ", half":         key[:32],
		name + ", other half":   key[32:],
	}
}

// findIn returns where in the files of a folder one of some texts stands.
func findIn(t *testing.T, dir string, secrets map[string][]byte) (found []string) {
	t.Helper()
	files := 0
	require.NoError(t, filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if os.IsNotExist(err) {
			return nil
		}
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		content, err := os.ReadFile(path)
		if os.IsNotExist(err) {
			return nil
		}
		if err != nil {
			return err
		}
		files++
		for name, secret := range secrets {
			if bytes.Contains(content, secret) {
				found = append(found, fmt.Sprintf("%s in %s", name, path))
			}
		}
		return nil
	}))
	require.Greater(t, files, 100, "a cluster has more files than that")
	return found
}

// Under settings that log every statement, and with errors in the middle, no key and
// no sealed value is in the server's log, its statistics, its WAL or its files. Where
// a setting would log a bound parameter, unlocking is refused.
func TestKeysLeaveNoTrace(t *testing.T) {
	t.Parallel()
	s := newCluster(t)
	migrate(t, s, stack.Database)
	super := connectKeyed(t, s.SuperURL(stack.Database))
	exec := func(statements ...string) {
		t.Helper()
		for _, statement := range statements {
			_, err := super.Exec(t.Context(), statement)
			require.NoError(t, err, statement)
		}
	}
	exec("create extension pg_stat_statements")
	require.NoError(t, pgx.BeginFunc(t.Context(), super.Conn, func(tx pgx.Tx) error {
		_, err := tx.Exec(t.Context(), "select custody.set_context('system', 'op'), custody.register_tenant('acme', 'Acme')")
		return err
	}))
	audited := strings.Contains(ask[string](t, bedOf(t, s, stack.Database), "select current_setting('shared_preload_libraries')"), "pgaudit")
	for _, setting := range []string{
		"log_statement = 'all'", "log_min_duration_statement = 0", "log_duration = on", "log_min_messages = 'debug1'", "log_error_verbosity = 'verbose'",
		"log_parser_stats = on", "log_planner_stats = on", "log_executor_stats = on", "pgaudit.log = 'all'", "pgaudit.log_relation = on", "pgaudit.log_rows = on",
		"pg_stat_statements.track = 'all'", "track_functions = 'all'", "track_activity_query_size = 16384", "log_lock_waits = on", "log_temp_files = 0",
	} {
		if audited || !strings.HasPrefix(setting, "pgaudit.") {
			exec("alter system set " + setting)
		}
	}
	exec("select pg_reload_conf()")
	require.Eventually(t, func() bool {
		var now string
		require.NoError(t, super.QueryRow(t.Context(), "show log_statement").Scan(&now))
		return now == "all"
	}, 10*time.Second, 10*time.Millisecond)

	// exposed are the settings of the application's login that the check names.
	exposed := func() (settings []string) {
		require.NoError(t, super.QueryRow(t.Context(), `select coalesce(pg_catalog.array_agg(f.detail order by f.detail), '{}')
			from custody_check.findings f where f.id = 'key-exposed' and f.object = 'custody_app'`).Scan(&settings))
		return settings
	}
	var version int
	require.NoError(t, super.QueryRow(t.Context(), "select pg_catalog.current_setting('server_version_num')::int").Scan(&version))

	old, kek := newKEK(t), newKEK(t)
	worker, client := connectKeyed(t, s.URL(runner, stack.Database)), connectKeyed(t, s.URL(app, stack.Database))
	first, err := worker.register(t.Context(), old, nil)
	require.NoError(t, err)
	require.Equal(t, 1, first)
	ada := client.person(t, "ada")
	const planted = "Planted-Value-4711-of-Ada"
	sealed, err := client.seal(t.Context(), old, ada, planted)
	require.NoError(t, err)

	// Rotation, and errors while unlocked.
	_, err = worker.register(t.Context(), kek, old)
	require.NoError(t, err)
	require.NoError(t, worker.in(t.Context(), kek, func(tx pgx.Tx) error {
		_, err := tx.Exec(t.Context(), "select custody.rewrap_keys()")
		return err
	}))
	value, err := client.open(t.Context(), kek, ada, sealed)
	require.NoError(t, err)
	require.Equal(t, planted, value)
	for statement, code := range map[string]string{
		"select 1 / 0":                             "22012",
		"select custody.put_profile('', '{}')":     "PC003",
		"select custody.unlock('\\x00', 1)":        "42883",
		"select pg_catalog.set_config('x', '', 1)": "42883",
		fmt.Sprintf("select custody.open_value('%s', 'other', 'body', 'r', '\\x%x')", ada, sealed):                                 "PC035",
		fmt.Sprintf("select custody.open_value('%s', 'notes', 'body', 'r', '\\x%x')", ada, append(bytes.Clone(sealed[:60]), 0, 0)): "PC035",
	} {
		requireCode(t, client.in(t.Context(), kek, func(tx pgx.Tx) error {
			_, err := tx.Exec(t.Context(), statement)
			return err
		}), code)
	}
	require.Error(t, client.in(t.Context(), newKEK(t), func(pgx.Tx) error { return nil }), "a wrong key")
	require.NoError(t, worker.in(t.Context(), kek, func(tx pgx.Tx) error {
		_, err := tx.Exec(t.Context(), "select custody.retire_kek()")
		return err
	}))

	// What an unlocked session shows of itself while it is at work.
	require.NoError(t, client.in(t.Context(), kek, func(tx pgx.Tx) error {
		_, err := tx.Exec(t.Context(), "select custody.open_value($1, 'notes', 'body', 'r', $2)", ada, sealed)
		require.NoError(t, err)
		var shown string
		require.NoError(t, super.QueryRow(t.Context(), `select coalesce(pg_catalog.string_agg(a::text, ' '), '') from pg_catalog.pg_stat_activity a`).Scan(&shown))
		require.Contains(t, shown, "custody.open_value", "the session is seen")
		requireNone(t, shown, map[string][]byte{"kek": []byte(hex.EncodeToString(kek)), "value": []byte(planted)})
		return nil
	}))

	secrets := map[string][]byte{"value": []byte(planted), "value in hex": []byte(hex.EncodeToString([]byte(planted)))}
	for name, key := range map[string][]byte{"old kek": old, "kek": kek} {
		for spelling, secret := range spellings(name, key) {
			secrets[spelling] = secret
		}
	}
	var dataKey []byte // as the owner's functions see it; fetched now, so that this itself is in no log
	exec("set log_statement = 'none'", "set log_min_duration_statement = -1", "set pgaudit.log = 'none'", "set pg_stat_statements.track = 'none'")
	require.NoError(t, super.in(t.Context(), kek, func(tx pgx.Tx) error {
		return tx.QueryRow(t.Context(), "select custody_data.data_key($1, 1)", ada).Scan(&dataKey)
	}))
	require.Len(t, dataKey, 64)
	for spelling, secret := range spellings("data key", dataKey) {
		secrets[spelling] = secret
	}
	for _, view := range []string{"pg_stat_statements", "pg_catalog.pg_stats", "pg_catalog.pg_stat_activity", "pg_catalog.pg_settings", "pg_catalog.pg_prepared_statements"} {
		var text string
		require.NoError(t, super.QueryRow(t.Context(), fmt.Sprintf("select coalesce(pg_catalog.string_agg(v::text, ' '), '') from %s v", view)).Scan(&text))
		requireNone(t, text, secrets)
	}
	exec("checkpoint")
	require.Empty(t, findIn(t, s.PGHome, secrets))
	// The search finds what is there.
	exec("set log_statement = 'all'", "select 'needle-in-the-log'", "create table needle (v bytea)", fmt.Sprintf("insert into needle values ('\\x%x')", "needle-in-a-table"), "checkpoint")
	require.GreaterOrEqual(t, len(findIn(t, s.PGHome, map[string][]byte{"log": []byte("needle-in-the-log")})), 1)
	require.GreaterOrEqual(t, len(findIn(t, s.PGHome, map[string][]byte{"table and WAL": []byte("needle-in-a-table")})), 2)

	// Settings that would log a parameter: refused before the key is looked at, and named to whoever checks. Of two that
	// do so together either alone does not.
	exec("load 'auto_explain'")
	quietly := []string{"log_parameter_max_length = -1", "log_statement = 'ddl'", "log_min_duration_statement = -1", "log_min_duration_sample = -1", "log_transaction_sample_rate = 0"}
	explained := []string{"session_preload_libraries = 'auto_explain'", "auto_explain.log_min_duration = 0"}
	for _, test := range []struct {
		name  string // of the setting that is refused, "" for none
		quiet []string
		loud  string
	}{
		{"log_parameter_max_length", quietly, "log_statement = 'all'"},
		{"log_parameter_max_length", quietly, "log_statement = 'mod'"},
		{"log_parameter_max_length", quietly, "log_min_duration_statement = 60000"},
		{"log_parameter_max_length", quietly, "log_min_duration_sample = 60000"},
		{"log_parameter_max_length", quietly, "log_transaction_sample_rate = 0.001"},
		{"log_parameter_max_length", nil, "log_parameter_max_length = 1"},
		{"", quietly, "log_duration = on"},
		{"pgaudit.log_parameter", nil, "pgaudit.log_parameter = on"},
		{"auto_explain.log_nested_statements", explained, "auto_explain.log_nested_statements = ON"},
		{"auto_explain.log_verbose", explained, "auto_explain.log_verbose = 'tru'"},
		{"", explained[:1], "auto_explain.log_verbose = on"},
		{"debug_print_parse", nil, "debug_print_parse = on"},
		{"debug_print_rewritten", nil, "debug_print_rewritten = true"},
		{"debug_print_plan", nil, "debug_print_plan = 1"},
	} {
		if version >= 160000 && len(test.quiet) == len(explained) { // where it is on by itself
			test.quiet = append(slices.Clone(explained), "auto_explain.log_parameter_max_length = 0")
		}
		for _, setting := range append(slices.Clone(test.quiet), test.loud) {
			exec("alter role custody_app set " + setting)
		}
		err := connectKeyed(t, s.URL(app, stack.Database)).in(t.Context(), kek, func(pgx.Tx) error { return nil })
		if test.name == "" {
			require.NoError(t, err, test.loud)
		} else {
			require.Equal(t, "key refused: under "+test.name+" it would be in the server log", requireCode(t, err, "PC036").Message, test.loud)
			require.Contains(t, exposed(), test.name, test.loud)
		}
		exec("alter role custody_app reset all")
		require.Empty(t, exposed())
	}
	// A plan shows what is compared and sorted by, so under auto_explain the key comes in a statement of its own.
	for _, setting := range explained {
		exec("alter role custody_app set " + setting)
	}
	if version >= 160000 {
		exec("alter role custody_app set auto_explain.log_parameter_max_length = 0")
	}
	unseen := newKEK(t) // the settings above have logged the other one
	_, err = worker.register(t.Context(), unseen, kek)
	require.NoError(t, err)
	for query, code := range map[string]string{
		"select custody.unlock($1)": "", "select custody.set_context('acme', 'clerk'), custody.unlock($1)": "", "select * from custody.unlock($1)": "",
		"select 1 where custody.unlock($1) is not null": "PC036", "select custody.unlock($1) order by 1": "PC036", "select distinct custody.unlock($1)": "PC036",
		"select custody.unlock($1) UNION select 1": "PC036", "select custody.unlock($1) as k group by k": "PC036",
	} {
		err := connectKeyed(t, s.URL(app, stack.Database)).in(t.Context(), nil, func(tx pgx.Tx) error {
			_, err := tx.Exec(t.Context(), query, unseen)
			return err
		})
		if code == "" {
			require.NoError(t, err, query)
		} else {
			require.Contains(t, requireCode(t, err, code).Message, "auto_explain", query)
		}
	}
	require.Empty(t, findIn(t, s.PGHome, spellings("kek", unseen)))
	exec("alter role custody_app reset all")

	// Postgres 16 has this one, any may know it by name.
	explain := connectKeyed(t, s.SuperURL(stack.Database))
	for _, setting := range []string{"auto_explain.log_min_duration = 0", "auto_explain.log_parameter_max_length = -1"} {
		_, err := explain.Exec(t.Context(), "alter role custody_app set "+setting)
		require.NoError(t, err)
	}
	err = connectKeyed(t, s.URL(app, stack.Database)).in(t.Context(), kek, func(pgx.Tx) error { return nil })
	require.Equal(t, "key refused: under auto_explain.log_parameter_max_length it would be in the server log", requireCode(t, err, "PC036").Message)
	require.Equal(t, []string{"auto_explain.log_parameter_max_length"}, exposed())
	exec("alter role custody_app reset all")

	// An error would be logged with the parameters of its statement, so there is none until the key is needed. (Messages
	// of debugging settings have the same context: nothing helps where these are on as well.)
	exec("alter system reset log_min_messages", "alter system reset log_planner_stats", "alter system reset log_parser_stats", "alter system reset log_executor_stats", "select pg_reload_conf()")
	require.Eventually(t, func() bool {
		var now string
		require.NoError(t, super.QueryRow(t.Context(), "show log_planner_stats").Scan(&now))
		return now == "off"
	}, 10*time.Second, 10*time.Millisecond)
	exec("alter role custody_app set log_parameter_max_length_on_error = -1")
	require.Equal(t, []string{"log_parameter_max_length_on_error"}, exposed())
	quiet, other := connectKeyed(t, s.URL(app, stack.Database)), newKEK(t)
	_, err = quiet.seal(t.Context(), other, ada, "x")
	require.Contains(t, requireCode(t, err, "PC033").Detail, "log_parameter_max_length_on_error")
	require.Empty(t, findIn(t, s.PGHome, spellings("refused kek", other)))
}

func requireNone(t *testing.T, text string, secrets map[string][]byte) {
	t.Helper()
	for name, secret := range secrets {
		require.False(t, bytes.Contains([]byte(text), secret), "%s is shown", name)
	}
}

// Whatever runs at once, every live data key is wrapped by the key that is left, and
// no key of an erased person is.
func TestRotationUnderLoad(t *testing.T) {
	t.Parallel()
	b := newBedWithoutKeys(t)
	ctx := t.Context()
	old, kek := newKEK(t), newKEK(t)
	worker := connectKeyed(t, b.URLs[runner])
	_, err := worker.register(ctx, old, nil)
	require.NoError(t, err)

	type note struct {
		identity uuid.UUID
		sealed   []byte
		value    string
	}
	var mu sync.Mutex
	var notes []note
	write := func(name string, count int, key []byte) {
		client := connectKeyed(t, b.URLs[app])
		for i := range count {
			user := fmt.Sprintf("%s-%d", name, i)
			identity := client.person(t, user)
			sealed, err := client.seal(ctx, key, identity, user)
			if codeOf(err) == "PC034" { // retired meanwhile
				sealed, err = client.seal(ctx, kek, identity, user)
			}
			require.NoError(t, err)
			mu.Lock()
			notes = append(notes, note{identity, sealed, user})
			mu.Unlock()
		}
	}
	write("before", 60, old)
	_, err = worker.register(ctx, kek, old)
	require.NoError(t, err)

	rotate := func() {
		worker := connectKeyed(t, b.URLs[runner])
		for range 500 {
			err := worker.in(ctx, kek, func(tx pgx.Tx) error {
				_, err := tx.Exec(ctx, "select custody.rewrap_keys(7)")
				return err
			})
			require.NoError(t, err)
			err = worker.in(ctx, kek, func(tx pgx.Tx) error {
				_, err := tx.Exec(ctx, "select custody.retire_kek()")
				return err
			})
			if err == nil {
				return
			}
			requireCode(t, err, "PC037")
		}
		require.Fail(t, "the rotation does not end")
	}
	erase := func() {
		dpo := connectKeyed(t, b.URLs[dpo])
		for i := range 20 {
			var request uuid.UUID
			require.NoError(t, dpo.in(ctx, nil, func(tx pgx.Tx) error {
				return tx.QueryRow(ctx, "select custody.request_erasure($1)", fmt.Sprintf("before-%d", i*3)).Scan(&request)
			}))
			require.NoError(t, dpo.in(ctx, nil, func(tx pgx.Tx) error {
				_, err := tx.Exec(ctx, "select custody.erase_subject($1)", request)
				return err
			}))
		}
	}
	together(func() { write("old", 40, old) }, func() { write("new", 40, kek) }, rotate, rotate, erase)

	require.Zero(t, ask[int](t, b, `select count(*) from custody_keys.wrapped_keys w where w.kek_version = 1`))
	require.Zero(t, ask[int](t, b, `select count(*) from custody_keys.wrapped_keys w join custody_data.identities i using (tenant_id, identity_id) where i.erased_at is not null`))
	require.Zero(t, ask[int](t, b, `select count(*) from custody_keys.data_keys k where k.destroyed_at is null and not exists (
		select from custody_keys.wrapped_keys w where w.identity_id = k.identity_id and w.key_version = k.key_version and w.kek_version = 2)`))
	client := connectKeyed(t, b.URLs[app])
	require.Len(t, notes, 140)
	erased := 0
	for _, n := range notes {
		value, err := client.open(ctx, kek, n.identity, n.sealed)
		if codeOf(err) == "PC021" {
			erased++
			continue
		}
		require.NoError(t, err)
		require.Equal(t, n.value, value)
	}
	require.Equal(t, 20, erased)
}

// Two sessions that seal for the same new person at once agree on one data key.
func TestOneDataKeyForTwoAtOnce(t *testing.T) {
	t.Parallel()
	b := newBedWithoutKeys(t)
	kek := newKEK(t)
	_, err := connectKeyed(t, b.URLs[runner]).register(t.Context(), kek, nil)
	require.NoError(t, err)
	one, two := connectKeyed(t, b.URLs[app]), connectKeyed(t, b.URLs[app])
	for i := range 20 {
		ada := one.person(t, fmt.Sprintf("ada-%d", i))
		var sealed [2][]byte
		var errs [2]error
		together(
			func() { sealed[0], errs[0] = one.seal(t.Context(), kek, ada, "one") },
			func() { sealed[1], errs[1] = two.seal(t.Context(), kek, ada, "two") })
		require.NoError(t, errs[0])
		require.NoError(t, errs[1])
		for j, want := range []string{"one", "two"} {
			got, err := one.open(t.Context(), kek, ada, sealed[j])
			require.NoError(t, err)
			require.Equal(t, want, got)
		}
		require.Equal(t, 1, ask[int](t, b, `select count(*) from custody_keys.data_keys where identity_id = $1`, ada))
	}
}

// The known answers of the format, which Go is held to as well.
func TestSealedVectors(t *testing.T) {
	t.Parallel()
	b := newBedWithoutKeys(t)
	text, err := os.ReadFile("../jobs/seal/testdata/vectors.json")
	require.NoError(t, err)
	var vectors struct {
		Sealed []struct {
			Name, Key, Plaintext, Sealed string
			Version                      int
			Place                        struct{ Tenant, Identity, Table, Column, Row string }
		}
	}
	require.NoError(t, json.Unmarshal(text, &vectors))
	require.GreaterOrEqual(t, len(vectors.Sealed), 5)
	for _, v := range vectors.Sealed {
		const place = `custody_data.sealing_place($1, $2::uuid, $3, $4, $5)`
		args := []any{v.Place.Tenant, v.Place.Identity, v.Place.Table, v.Place.Column, v.Place.Row, fromHex(t, v.Key)}
		require.Equal(t, v.Plaintext, hex.EncodeToString(ask[[]byte](t, b, `select custody_data.open_bytes($6, `+place+`, $7)`, append(args, fromHex(t, v.Sealed))...)), v.Name)
		if v.Version > math.MaxInt32 { // the database counts that far
			var version int
			err := connectTo(t, b.URLs[stack.Superuser]).QueryRow(t.Context(), `select custody_data.sealed_key_version($1)`, fromHex(t, v.Sealed)).Scan(&version)
			requireCode(t, err, "PC035")
			continue
		}
		require.Equal(t, v.Sealed, hex.EncodeToString(ask[[]byte](t, b, `select custody_data.seal_bytes($6, $8, `+place+`, $7)`,
			append(args, fromHex(t, v.Plaintext), v.Version)...)), v.Name)
		require.Equal(t, v.Version, ask[int](t, b, `select custody_data.sealed_key_version($1)`, fromHex(t, v.Sealed)), v.Name)
	}
}

func fromHex(t *testing.T, text string) []byte {
	t.Helper()
	b, err := hex.DecodeString(text)
	require.NoError(t, err)
	return b
}
