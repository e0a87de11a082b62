package jobs_test

import (
	"bytes"
	"context"
	cryptorand "crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/rivertype"
	"github.com/stretchr/testify/require"

	"pgcustody/cmd/devstack/stack"
	"pgcustody/cmd/devstack/stack/stacktest"
	"pgcustody/jobs"
	"pgcustody/jobs/importer"
	"pgcustody/jobs/keys"
	"pgcustody/jobs/segment"
	"pgcustody/jobs/store"
	"pgcustody/sql"
)

const tenant = "acme"

// talkative are settings under which the server tells as much as it can and custody.unlock still takes a key.
var talkative = []string{
	"log_destination = 'stderr,csvlog,jsonlog'", "log_statement = 'all'", "log_min_duration_statement = 0", "log_min_duration_sample = 0",
	"log_transaction_sample_rate = 1", "log_duration = on", "log_min_messages = 'debug2'", "log_min_error_statement = 'debug5'", "log_error_verbosity = 'verbose'",
	"log_parser_stats = on", "log_planner_stats = on", "log_executor_stats = on", "log_lock_waits = on", "deadlock_timeout = '50ms'", "log_temp_files = 0",
	"log_connections = on", "log_disconnections = on", "log_checkpoints = on", "log_autovacuum_min_duration = 0", "log_replication_commands = on", "trace_notify = on", "trace_sort = on",
	"pgaudit.log = 'all'", "pgaudit.log_catalog = on", "pgaudit.log_relation = on", "pgaudit.log_rows = on", "pgaudit.log_level = 'log'", "pgaudit.role = 'leak_audit'",
	"session_preload_libraries = 'auto_explain'", "pg_stat_statements.track = 'all'", "pg_stat_statements.track_utility = on", "pg_stat_statements.track_planning = on",
	"track_functions = 'all'", "track_io_timing = on", "compute_query_id = on",
}

// explained is set once the library is there that knows it.
var explained = []string{
	"auto_explain.log_min_duration = 0", "auto_explain.log_analyze = on", "auto_explain.log_buffers = on", "auto_explain.log_wal = on",
	"auto_explain.log_triggers = on", "auto_explain.log_settings = on", "auto_explain.log_format = 'json'",
}

// leaks is a cluster that talks, with what was planted in it.
type leaks struct {
	*testing.T
	cluster  *stack.Stack
	database *stacktest.Database
	super    *pgx.Conn // talks
	quiet    *pgx.Conn // a superuser of whom nothing is logged
	app, dpo *pgxpool.Pool
	provider *recording
	unlock   *jobs.Unlocker
	deps     jobs.Deps
	store    *faulty
	bucket   string
	log      lockedBuffer
	registry *prometheus.Registry
	client   *river.Client[pgx.Tx]
	secrets  secrets
}

type lockedBuffer struct {
	mu sync.Mutex
	bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.Write(p)
}

func (b *lockedBuffer) content() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return bytes.Clone(b.Buffer.Bytes())
}

// recording is a provider that notes the keys that it gives.
type recording struct {
	keys.Provider
	mu   sync.Mutex
	keks map[string][]byte
}

func (r *recording) note(ref keys.Ref, key keys.Key, err error) {
	if err == nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.keks[ref.String()] = bytes.Clone(key.Bytes())
	}
}

func (r *recording) NewKEK(ctx context.Context, tenant string, version int) (keys.Ref, keys.Key, error) {
	ref, key, err := r.Provider.NewKEK(ctx, tenant, version)
	r.note(ref, key, err)
	return ref, key, err
}

func (r *recording) KEK(ctx context.Context, ref keys.Ref) (keys.Key, error) {
	key, err := r.Provider.KEK(ctx, ref)
	r.note(ref, key, err)
	return key, err
}

// faulty is a store whose next Puts fail as they are told to.
type faulty struct {
	store.Store
	mu     sync.Mutex
	faults []func() error
}

func (f *faulty) next(faults ...func() error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults = faults
}

func (f *faulty) Put(ctx context.Context, key string, body io.Reader, o store.PutOptions) (store.PutResult, error) {
	f.mu.Lock()
	var fault func() error
	if len(f.faults) > 0 {
		fault, f.faults = f.faults[0], f.faults[1:]
	}
	f.mu.Unlock()
	if fault != nil {
		if err := fault(); err != nil {
			return store.PutResult{}, err
		}
	}
	return f.Store.Put(ctx, key, body, o)
}

func newLeaks(t *testing.T) *leaks {
	t.Helper()
	ctx := t.Context()
	dir, err := stack.TempDir()
	require.NoError(t, err)
	cluster, err := stack.Start(ctx, stack.Options{Dir: dir, NoFsync: true, Ephemeral: true})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, cluster.Destroy(context.Background())) })
	require.NoError(t, cluster.OpenMigrator(ctx))
	_, err = sql.Up(ctx, sql.Config{URL: cluster.URL(stack.MigratorLogin, stack.Database)})
	require.NoError(t, err)
	require.NoError(t, cluster.PutLogins(ctx, stack.Database))
	require.NoError(t, cluster.CloseMigrator(ctx))
	d := &stacktest.Database{Name: stack.Database, Stack: cluster, URLs: map[string]string{}}
	for login := range cluster.Passwords {
		d.URLs[login] = cluster.URL(login, stack.Database)
	}
	d.URLs[stack.Superuser] = cluster.SuperURL(stack.Database)

	l := &leaks{T: t, cluster: cluster, database: d, registry: prometheus.NewRegistry()}
	l.talk()
	l.super, l.quiet = d.Conn(t, stack.Superuser), d.Conn(t, stack.Superuser)
	for _, setting := range []string{
		"log_statement = 'none'", "log_min_duration_statement = -1", "log_min_duration_sample = -1", "log_transaction_sample_rate = 0", "log_duration = off",
		"log_min_messages = 'fatal'", "log_parser_stats = off", "log_planner_stats = off", "log_executor_stats = off",
		"pgaudit.log = 'none'", "pgaudit.role = ''", "pg_stat_statements.track = 'none'", "auto_explain.log_min_duration = -1",
	} {
		_, err := l.quiet.Exec(ctx, "set "+setting)
		require.NoError(t, err)
	}
	l.app, l.dpo = d.Pool(t, "custody_app"), d.Pool(t, "custody_dpo")
	runner := d.Pool(t, "custody_runner")
	provider, _ := stacktest.KeyProvider(t)
	l.provider = &recording{Provider: provider, keks: map[string][]byte{}}
	l.unlock = &jobs.Unlocker{Ring: jobs.Keyring{Pool: runner, Provider: l.provider, Actor: "runner"}}
	l.store = &faulty{Store: jobs.NewTestStore(t)}
	l.bucket = strings.TrimPrefix(l.store.URL(), "s3://")
	l.deps = jobs.Deps{
		Pool: runner, Unlock: l.unlock, Store: l.store, Recipients: jobs.TestRecipients(), Actor: "runner", Metrics: jobs.NewMetrics(l.registry, runner),
		Log:    slog.New(slog.NewTextHandler(&l.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Config: jobs.Config{Notify: jobs.NotifyConfig{Key: make([]byte, 32)}},
	}
	l.must(runner, "system", "select custody.register_tenant($1, 'Acme')", tenant)
	_, err = l.unlock.Ring.Create(ctx, tenant)
	require.NoError(t, err)
	l.client, err = jobs.NewClient(l.deps, jobs.ClientOptions{SoftStop: 20 * time.Second})
	require.NoError(t, err)
	require.NoError(t, l.client.Start(context.WithoutCancel(ctx)))
	t.Cleanup(func() { require.NoError(t, l.client.StopAndCancel(context.Background())) })
	return l
}

// talk makes the server talk to whoever connects from here on.
func (l *leaks) talk() {
	l.Helper()
	conn := l.database.Conn(l.T, stack.Superuser)
	exec := func(statement string) {
		_, err := conn.Exec(l.Context(), statement)
		require.NoError(l, err, statement)
	}
	exec("create extension pg_stat_statements")
	exec("create role leak_audit")
	exec("grant select, insert, update, delete on all tables in schema custody_data, custody_keys, river to leak_audit")
	for _, setting := range talkative {
		exec("alter system set " + setting)
	}
	exec("load 'auto_explain'")
	for _, setting := range explained {
		exec("alter system set " + setting)
	}
	exec("select pg_catalog.pg_reload_conf()")
	require.Eventually(l, func() bool {
		fresh, err := pgx.Connect(l.Context(), l.database.URLs["custody_app"])
		require.NoError(l, err)
		defer fresh.Close(l.Context())
		var talks bool
		require.NoError(l, fresh.QueryRow(l.Context(), `select pg_catalog.current_setting('log_executor_stats') = 'on' and pg_catalog.current_setting('compute_query_id') = 'on'
			and pg_catalog.current_setting('auto_explain.log_format', true) = 'json'`).Scan(&talks))
		return talks
	}, 30*time.Second, 20*time.Millisecond)
}

// plant makes a value that stands nowhere else.
func (l *leaks) plant(name string) string {
	value := cryptorand.Text()[:22]
	l.secrets.text(name, value)
	return value
}

// person is somebody with a planted value in every personal column.
type person struct {
	user                                        string
	email, phone, profile, preferences, consent string
	title, messages, personal                   string
	fields                                      map[string]any
}

func (l *leaks) person(user string) *person {
	plant := func(column string) string { return l.plant(column + " of " + user) }
	local, domain := plant("e-mail address"), plant("domain")
	p := &person{user: user, email: local + "@" + domain + ".example", fields: map[string]any{}}
	digits := fmt.Sprintf("%012d", rand.Int64N(1e12))
	p.phone = "+49 " + digits[:3] + " " + digits[3:7] + " " + digits[7:]
	l.secrets.text("number of "+user, p.phone)
	l.secrets.text("number of "+user+", compared", "49"+digits)
	for _, column := range []string{"full_name", "organisation", "title", "address", "city", "region", "postal_code", "country"} {
		p.fields[column] = plant(column)
	}
	p.fields["email"], p.fields["phone"] = p.email, p.phone
	p.fields["attributes"] = map[string]any{plant("attribute"): plant("value of an attribute"), "n": []any{1, plant("inner attribute")}}
	p.profile = l.json(p.fields)
	p.preferences = l.json(map[string]any{plant("preference"): plant("value of a preference")})
	p.consent = l.json(map[string]any{"source": plant("evidence"), plant("key of evidence"): true})
	p.title = plant("title of a conversation")
	p.messages = l.json([]any{
		map[string]any{"role": "user", "text": plant("message"), "at": time.Now().UTC()},
		map[string]any{"role": "agent", "text": plant("answer"), plant("key of a message"): plant("member of a message")}})
	p.personal = l.json(map[string]any{plant("key of a personal part"): plant("personal part")})
	return p
}

// with is the profile with some fields changed.
func (p *person) with(l *leaks, changes map[string]any) string {
	fields := map[string]any{}
	for name, value := range p.fields {
		fields[name] = value
	}
	for name, value := range changes {
		fields[name] = value
	}
	return l.json(fields)
}

func (l *leaks) json(v any) string {
	l.Helper()
	text, err := json.Marshal(v)
	require.NoError(l, err)
	return string(text)
}

// in runs work in a transaction of a tenant, unlocked.
func (l *leaks) in(pool *pgxpool.Pool, scope jobs.Scope, work func(pgx.Tx) error) error {
	scope.Actor, scope.Purpose = "clerk", "a test"
	if scope.Tenant == "" {
		scope.Tenant = tenant
	}
	return l.unlock.InContext(l.Context(), pool, scope, work)
}

func call(l *leaks, query string, args ...any) func(pgx.Tx) error {
	return func(tx pgx.Tx) error {
		rows, err := tx.Query(l.Context(), query, args...)
		if err != nil {
			return err
		}
		for rows.Next() {
		}
		return rows.Err()
	}
}

func (l *leaks) must(pool *pgxpool.Pool, tenant, query string, args ...any) {
	l.Helper()
	require.NoError(l, l.in(pool, jobs.Scope{Tenant: tenant}, call(l, query, args...)), query)
}

// exec runs a statement as the application.
func (l *leaks) exec(query string, args ...any) {
	l.Helper()
	l.must(l.app, tenant, query, args...)
}

// fails runs a statement as the application that the server refuses.
func (l *leaks) fails(code, query string, args ...any) {
	l.Helper()
	l.requireCode(code, l.in(l.app, jobs.Scope{}, call(l, query, args...)), query)
}

func (l *leaks) requireCode(code string, err error, what ...any) {
	l.Helper()
	var pg *pgconn.PgError
	require.ErrorAs(l, err, &pg, what...)
	require.Equal(l, code, pg.Code, "%v: %s", what, pg.Message)
}

// ask reads one value past every policy, and leaves no trace.
func ask[T any](l *leaks, query string, args ...any) (v T) {
	l.Helper()
	require.NoError(l, l.quiet.QueryRow(l.Context(), query, args...).Scan(&v), query)
	return v
}

// everything stores and reads all that there is about a person.
func (l *leaks) everything(p *person) {
	l.Helper()
	consent, event := uuid.New(), uuid.New()
	l.exec("select custody.put_profile($1, $2)", p.user, p.profile)
	l.exec("select custody.put_profile($1, $2)", p.user, p.profile)
	l.exec("select custody.patch_profile($1, $2, 2)", p.user, l.json(map[string]any{"city": l.plant("later city of " + p.user), "email": p.email, "attributes": map[string]any{"n": nil}}))
	l.exec("select custody.get_profile($1)", p.user)
	l.exec("select * from custody.find_subject(p_email => $1)", strings.ToUpper(p.email))
	l.exec("select * from custody.find_subject(p_phone => $1, p_email => $2)", p.phone, " "+strings.ToLower(p.email)+" ")
	l.exec("select custody.put_preferences($1, $2)", p.user, p.preferences)
	l.exec("select custody.patch_preferences($1, $2)", p.user, l.json(map[string]any{"more": l.plant("later preference of " + p.user)}))
	l.exec("select custody.get_preferences($1)", p.user)
	for range 2 {
		l.exec("select custody.record_consent($1, 'mail', true, '1', p_evidence => $2, p_consent_id => $3)", p.user, p.consent, consent)
	}
	l.fails("PC010", "select custody.record_consent($1, 'mail', true, '1', p_evidence => $2, p_consent_id => $3)", p.user,
		l.json(map[string]any{"source": l.plant("other evidence of " + p.user)}), consent)
	l.exec("select * from custody.current_consents($1)", p.user)
	l.exec("select * from custody.consent_history($1)", p.user)
	l.exec("select * from custody.consents")
	l.exec("select custody.save_conversation($1, 'c', $2, $3)", p.user, p.messages, p.title)
	l.exec("select custody.append_message($1, 'c', $2)", p.user, l.json(map[string]any{"role": "user", "text": l.plant("later message of " + p.user)}))
	l.exec("select custody.update_conversation($1, 'c', $2)", p.user, l.plant("later title of "+p.user))
	l.exec("select custody.get_conversation($1, 'c')", p.user)
	l.exec("select * from custody.list_conversations($1)", p.user)
	for range 2 {
		l.exec("select custody.record_audit_event('account.login', 'account', $1, p_metadata => '{\"method\": \"key\"}', p_log_entry_id => $2, p_personal => $3)", p.user, event, p.personal)
	}
	l.fails("PC010", "select custody.record_audit_event('account.login', 'account', $1, p_metadata => '{\"method\": \"key\"}', p_log_entry_id => $2, p_personal => $3)", p.user, event,
		l.json(map[string]any{"x": l.plant("other personal part of " + p.user)}))
	l.exec("select custody.record_audit_events($1)", l.json([]any{map[string]any{
		"action": "phi.access", "subject_user_id": p.user, "personal": map[string]any{"note": l.plant("personal part of " + p.user + " in an array")}}}))
	l.must(l.dpo, tenant, "select * from custody.audit_events(now() - interval '1 day', now() + interval '1 day', $1)", p.user)
	l.must(l.dpo, tenant, "select custody.audit_event($1)", event)
	var sealed []byte
	var identity uuid.UUID
	require.NoError(l, l.in(l.app, jobs.Scope{}, func(tx pgx.Tx) error {
		return tx.QueryRow(l.Context(), `select i.identity_id, custody.seal_value(i.identity_id, 'notes', 'body', '1', $2) from custody_data.identities i where i.user_id = $1`,
			p.user, l.plant("value of the application about "+p.user)).Scan(&identity, &sealed)
	}))
	l.exec("select custody.open_value($1, 'notes', 'body', '1', $2)", identity, sealed)
	l.fails("PC035", "select custody.open_value($1, 'notes', 'body', '2', $2)", identity, sealed)
	l.must(l.dpo, tenant, "select custody.export_subject($1)", p.user)
}

// mistakes makes the server refuse statements whose parameters are personal.
func (l *leaks) mistakes(p, other *person) {
	l.Helper()
	ctx := l.Context()
	long := strings.Repeat("x", 1000)
	for _, profile := range []string{
		l.json(l.plant("profile that is a string")), l.json([]any{l.plant("profile that is an array")}), p.with(l, map[string]any{l.plant("unknown field"): 1}),
		p.with(l, map[string]any{"email": []any{l.plant("e-mail address in an array")}}), p.with(l, map[string]any{"full_name": l.plant("name that is too long") + long}),
		p.with(l, map[string]any{"attributes": l.plant("attributes that are a string")}), p.with(l, map[string]any{"user_id": "another"}),
	} {
		l.fails("PC023", "select custody.put_profile($1, $2)", p.user, profile)
		if !strings.Contains(profile, `"another"`) {
			l.fails("PC023", "select custody.patch_profile($1, $2)", p.user, profile)
		}
	}
	l.fails("PC014", "select custody.patch_profile($1, $2, 99)", p.user, p.profile)
	l.fails("PC011", "select custody.patch_profile('unknown', $1)", p.profile)
	l.fails("PC003", "select custody.put_profile(' ', $1)", p.profile)
	l.fails("PC023", "select custody.put_preferences($1, $2)", p.user, l.json(l.plant("preferences that are a string")))
	l.fails("PC014", "select custody.patch_preferences($1, $2, 99)", p.user, p.preferences)
	for _, message := range []map[string]any{
		{"role": l.plant("role") + long, "text": "x"}, {"role": "user"}, {"text": l.plant("message without a role")}, {"role": "user", "text": []any{l.plant("message in an array")}},
		{"role": "user", "text": "x", "at": l.plant("time of a message")},
	} {
		l.fails("PC023", "select custody.save_conversation($1, 'c', $2)", p.user, l.json([]any{message}))
		l.fails("PC023", "select custody.append_message($1, 'c', $2)", p.user, l.json(message))
	}
	late := l.json([]any{map[string]any{"role": "user", "text": l.plant("message of no month"), "at": "2026-99-99T00:00:00Z"}})
	l.fails("22008", "select custody.save_conversation($1, 'c', $2)", p.user, late)
	l.fails("PC023", "select custody.save_conversation($1, 'c', $2, $3)", p.user, p.messages, l.plant("title that is too long")+long)
	l.fails("PC027", "select custody.update_conversation($1, 'none', $2)", p.user, l.plant("title of nothing"))
	l.fails("PC023", "select custody.record_consent($1, '', true, '1', p_evidence => $2)", p.user, p.consent)
	l.fails("PC006", "select custody.record_audit_event('account.login', p_metadata => $1)", l.json(map[string]any{l.plant("key of metadata"): l.plant("metadata")}))
	l.fails("PC023", "select custody.record_audit_event('account.login', p_personal => $1)", l.json(l.plant("personal part that is a string")))
	l.fails("PC004", "select custody.record_audit_event('no.such', p_personal => $1)", p.personal)
	l.fails("PC023", "select custody.record_audit_events($1)", l.json([]any{map[string]any{"action": "account.login", l.plant("unknown member"): 1}}))
	l.fails("PC023", "select custody.record_audit_events($1)", l.json([]any{map[string]any{"action": "account.login", "log_entry_id": l.plant("log_entry_id")}}))
	l.fails("PC023", "select * from custody.find_subject(p_email => $1, p_limit => 0)", l.plant("e-mail address that is looked for"))
	l.exec("select * from custody.find_subject(p_email => $1)", l.plant("e-mail address that nobody has"))
	// Past the functions: what is not sealed is no sealed value.
	l.fails("23514", "insert into custody_data.audit_logs (tenant_id, log_entry_id, occurred_at, actor_id, action, personal) values ('acme', gen_random_uuid(), now(), custody.current_actor_id(), 'account.login', $1)",
		[]byte(l.plant("value that is not sealed")))
	// A statement that fails after what it called has opened.
	l.fails("22012", "select custody.get_profile($1), 1 / (select count(*) from custody_data.tenants where false)", p.user)
	l.fails("22P02", "select (custody.get_profile($1) ->> 'version')::int, 'none'::int", p.user)

	// Locked, and with a wrong key.
	locked := jobs.Scope{Tenant: tenant, Actor: "clerk"}
	for _, query := range []string{"select custody.put_profile($1, $2)", "select custody.put_preferences($1, $2)", "select custody.patch_profile($1, $2)"} {
		l.requireCode("PC033", jobs.InContext(ctx, l.app, locked, call(l, query, p.user, p.profile)), query)
	}
	l.requireCode("PC033", jobs.InContext(ctx, l.app, locked, call(l, "select * from custody.find_subject(p_email => $1)", p.email)))
	l.requireCode("PC033", jobs.InContext(ctx, l.app, locked, call(l, "select custody.get_profile($1)", p.user)))
	for _, size := range []int{64, 63} {
		wrong := make([]byte, size)
		_, _ = cryptorand.Read(wrong)
		l.secrets.key(fmt.Sprintf("wrong key of %d bytes", size), wrong)
		scope := locked
		scope.KEK = wrong
		l.requireCode("PC034", jobs.InContext(ctx, l.app, scope, call(l, "select 1")))
	}

	// Two at once: a row that was changed meanwhile, a lock that does not come, a circle.
	twoAtOnce := l.json(map[string]any{"x": l.plant("preference of two at once")})
	put := func(tx pgx.Tx, of *person) error {
		return call(l, "select custody.put_preferences($1, $2)", of.user, twoAtOnce)(tx)
	}
	l.requireCode("40001", l.in(l.app, jobs.Scope{Isolation: pgx.RepeatableRead}, func(tx pgx.Tx) error {
		require.NoError(l, l.in(l.app, jobs.Scope{}, func(tx pgx.Tx) error { return put(tx, p) }))
		return put(tx, p)
	}))
	require.NoError(l, l.in(l.app, jobs.Scope{}, func(tx pgx.Tx) error {
		require.NoError(l, put(tx, p))
		l.requireCode("57014", l.in(l.app, jobs.Scope{Timeout: 300 * time.Millisecond}, func(tx pgx.Tx) error { return put(tx, p) }))
		l.requireCode("55P03", l.in(l.app, jobs.Scope{LockTimeout: 300 * time.Millisecond}, func(tx pgx.Tx) error { return put(tx, p) }))
		return nil
	}))
	first, second := make(chan struct{}), make(chan struct{})
	circle := func(mine, theirs chan struct{}, one, two *person) error {
		return l.in(l.app, jobs.Scope{}, func(tx pgx.Tx) error {
			err := put(tx, one)
			close(mine)
			<-theirs
			return errors.Join(err, put(tx, two))
		})
	}
	ended := make(chan error)
	go func() { ended <- circle(first, second, p, other) }()
	err := circle(second, first, other, p)
	l.requireCode("40P01", errors.Join(err, <-ended))

	// An address and a number that somebody has.
	l.exec("select custody.set_unique_fields('{email,phone}')")
	l.fails("PC038", "select custody.patch_profile($1, $2)", other.user, l.json(map[string]any{"email": strings.ToUpper(p.email)}))
	l.fails("PC038", "select custody.put_profile($1, $2)", other.user, other.with(l, map[string]any{"phone": p.phone}))
	l.requireCode("PC026", l.in(l.app, jobs.Scope{Isolation: pgx.Serializable}, call(l, "select custody.patch_profile($1, $2)", p.user, p.profile)))
	l.exec("select custody.set_unique_fields('{}')")
	l.exec("select custody.patch_profile($1, $2)", other.user, l.json(map[string]any{"phone": p.phone}))
	l.fails("PC038", "select custody.set_unique_fields('{phone}')")
	l.exec("select custody.patch_profile($1, $2)", other.user, l.json(map[string]any{"phone": other.phone}))
	l.exec("select custody.set_unique_fields('{email,phone}')")
}

// altered reads what somebody wrote past the functions.
func (l *leaks) altered() {
	l.Helper()
	p := l.person("altered")
	l.exec("select custody.put_profile($1, $2)", p.user, p.profile)
	l.exec("select custody.record_consent($1, 'mail', true, '1', p_evidence => $2)", p.user, p.consent)
	require.NoError(l, pgx.BeginFunc(l.Context(), l.super, func(tx pgx.Tx) error {
		return errors.Join(call(l, "select custody.set_context('acme', 'somebody')")(tx),
			call(l, `update custody_data.user_profiles p set city = set_byte(p.city, 40, get_byte(p.city, 40) # 1)
				from custody_data.identities i where i.identity_id = p.identity_id and i.user_id = $1`, p.user)(tx))
	}))
	l.fails("PC035", "select custody.get_profile($1)", p.user)
	l.fails("PC035", "select custody.patch_profile($1, $2)", p.user, p.profile)
	require.Contains(l, l.work(jobs.ExportArgs{Tenant: tenant, RequestID: l.request("export", p.user)}, river.EventKindJobFailed).Errors[0].Error, "PC035")
	l.exec("select custody.delete_profile($1)", p.user)
}

// imports brings all five tables in, with lines that are wrong.
func (l *leaks) imports() {
	l.Helper()
	ctx := l.Context()
	p, again, taken := l.person("imported"), l.person("imported too"), l.person("has it already")
	l.exec("select custody.put_profile($1, $2)", taken.user, taken.profile)
	dir := l.TempDir()
	file := func(table string, lines ...any) string {
		l.Helper()
		var text strings.Builder
		for _, line := range lines {
			fmt.Fprintln(&text, l.json(line))
		}
		path := filepath.Join(dir, table+"."+uuid.NewString()+".jsonl")
		require.NoError(l, os.WriteFile(path, []byte(text.String()), 0o600))
		return path
	}
	line := func(fields map[string]any, changes map[string]any) map[string]any {
		out := map[string]any{"user_id": p.user}
		for _, from := range []map[string]any{fields, changes} {
			for name, value := range from {
				out[name] = value
			}
		}
		return out
	}
	object := func(text string) (v any) {
		require.NoError(l, json.Unmarshal([]byte(text), &v))
		return v
	}
	at := time.Now().UTC().AddDate(0, -2, 0).Format(time.RFC3339)
	consent := map[string]any{"consent_id": uuid.New(), "purpose": "mail", "granted": true, "policy_version": "1", "legal_basis": "consent", "timestamp": at, "evidence": object(p.consent)}
	conversation := map[string]any{"conversation_id": "imported", "title": p.title, "started_at": at, "last_message_at": at,
		"messages": []any{map[string]any{"role": "user", "text": l.plant("imported message"), "at": at}}}
	event := map[string]any{"log_entry_id": uuid.New(), "timestamp": at, "action": "account.login", "resource_type": "account", "result": "success",
		"metadata": map[string]any{"method": "key"}, "personal": object(p.personal)}
	files := map[string][]any{
		"user_profiles": {
			line(p.fields, nil), line(again.fields, map[string]any{"user_id": again.user, "email": strings.ToUpper(taken.email)}),
			line(p.fields, map[string]any{"city": l.plant("city of a repeated line")}), line(again.fields, map[string]any{"phone": []any{l.plant("number in an array")}}),
			line(again.fields, map[string]any{"full_name": l.plant("imported name that is too long") + strings.Repeat("x", 1000)}),
			line(again.fields, map[string]any{l.plant("imported unknown field"): "x"}), l.plant("line that is a string"),
		},
		"user_preferences": {line(nil, map[string]any{"preferences": object(p.preferences)}), line(nil, map[string]any{"preferences": l.plant("imported preferences that are a string")})},
		"consent_records": {
			line(consent, nil), line(consent, map[string]any{"evidence": map[string]any{"source": l.plant("imported evidence of the same id")}}),
			line(consent, map[string]any{"evidence": l.plant("imported evidence that is a string"), "consent_id": uuid.New()}),
		},
		"conversations": {
			line(conversation, nil), line(conversation, map[string]any{"title": l.plant("imported title of the same id")}),
			line(conversation, map[string]any{"messages": []any{map[string]any{"role": "user", "text": 7, l.plant("key of an imported message"): 1, "at": at}}}),
		},
		"audit_logs": {
			line(event, nil), line(event, map[string]any{"personal": map[string]any{"note": l.plant("imported personal part of the same id")}}),
			line(event, map[string]any{"log_entry_id": uuid.New(), "metadata": map[string]any{l.plant("key of imported metadata"): l.plant("imported metadata")}}),
			line(event, map[string]any{"log_entry_id": uuid.New(), "metadata": map[string]any{"source_ip": l.plant("metadata that moves")}}),
		},
	}
	config := importer.Config{Database: l.deps.Pool, Unlock: l.unlock, Log: l.deps.Log, Tenant: tenant, Actor: "importer", Personal: []string{"source_ip"}}
	var paths []string
	for table, lines := range files {
		// Each of the bad lines ends an import of its own.
		for _, bad := range lines[1:] {
			_, err := importer.Run(ctx, config, []string{file(table, lines[0], bad)})
			if bad, ok := bad.(map[string]any); !ok || bad["metadata"] == nil || !strings.Contains(l.json(bad["metadata"]), "source_ip") {
				require.Error(l, err, "%s: %v", table, bad)
			}
		}
		paths = append(paths, file(table, lines...))
	}
	var err error
	config.Rejects, err = importer.CreateRejects(filepath.Join(dir, "rejects.jsonl"))
	require.NoError(l, err)
	reports, err := importer.Run(ctx, config, paths)
	require.NoError(l, err)
	require.NoError(l, config.Rejects.Close())
	require.Len(l, reports, 5)
	rejects, err := os.ReadFile(filepath.Join(dir, "rejects.jsonl"))
	require.NoError(l, err)
	require.NotEmpty(l, l.secrets.in("rejects", rejects), "the operator's file has the lines")
	config.Rejects = nil
	config.Unlock = nil
	_, err = importer.Run(ctx, config, []string{file("user_preferences", line(nil, map[string]any{"preferences": map[string]any{"x": l.plant("preference of a locked import")}}))})
	l.requireCode("PC033", err)
	l.exec("select custody.get_profile($1), custody.get_preferences($1), custody.get_conversation($1, 'imported')", p.user)
}

// staged looks at the disk while rows are on their way in. They are in temporary tables, so in no log and no backup, but
// those that do not fit into temp_buffers are in files of the cluster until the transaction ends.
func (l *leaks) staged() {
	l.Helper()
	name, address := l.plant("staged name"), l.plant("staged address")
	rolledBack := errors.New("rolled back")
	var left []string
	err := l.in(l.deps.Pool, jobs.Scope{}, func(tx pgx.Tx) error {
		if err := call(l, "select custody.prepare_import('user_profiles')")(tx); err != nil {
			return err
		}
		filler := make([]byte, 4000) // nothing in a row of it that could be compressed
		for i := range filler {
			filler[i] = byte('a' + rand.IntN(26))
		}
		_, err := tx.CopyFrom(l.Context(), pgx.Identifier{"pg_temp", "staged_user_profiles"}, []string{"line", "user_id", "full_name", "address"}, pgx.CopyFromSlice(8000, func(i int) ([]any, error) {
			text := filler[i%2000:]
			return []any{i, fmt.Sprintf("staged-%d", i), fmt.Sprintf("%s-%d-%s", name, i, text[:1500]), address + string(text[:200])}, nil
		}))
		if err != nil {
			return err
		}
		if err := call(l, "set local work_mem = '64kB'")(tx); err != nil {
			return err
		}
		if err := call(l, "declare sorted cursor for select s.full_name, s.address from pg_temp.staged_user_profiles s order by s.full_name desc")(tx); err != nil {
			return err
		}
		if err := call(l, "fetch 1 from sorted")(tx); err != nil {
			return err
		}
		found, _ := l.secrets.inFiles(l.T, filepath.Join(l.cluster.PGHome, "data", "base"))
		place := regexp.MustCompile(` in \S*/(base/pgsql_tmp/\S+|base/\d+/t\d+_\d+\S*): `)
		for _, f := range found {
			if !strings.HasPrefix(f, "staged") {
				continue // search will find it
			}
			require.Regexp(l, place, f, "only files of temporary tables and of sorting have what is staged")
			left = append(left, place.FindStringSubmatch(f)[1])
		}
		return rolledBack
	})
	require.ErrorIs(l, err, rolledBack)
	slices.Sort(left)
	l.Logf("while rows were staged they stood in %q", slices.Compact(left))

	// Bytes that are no text, in the middle of a COPY; and one in text, which the importer never makes.
	for _, name := range []string{"bytes that are no text", "and more of them"} {
		bad := l.plant(name)
		l.requireCode("22021", l.in(l.deps.Pool, jobs.Scope{}, func(tx pgx.Tx) error {
			if err := call(l, "select custody.prepare_import('user_profiles')")(tx); err != nil {
				return err
			}
			_, err := tx.CopyFrom(l.Context(), pgx.Identifier{"pg_temp", "staged_user_profiles"}, []string{"line", "user_id", "email"},
				pgx.CopyFromRows([][]any{{1, "x", bad}, {2, "x", bad + "\xff\xfe" + bad}}))
			return err
		}))
	}
}

func (l *leaks) request(kind, user string) (id uuid.UUID) {
	l.Helper()
	require.NoError(l, l.in(l.dpo, jobs.Scope{}, func(tx pgx.Tx) error {
		return tx.QueryRow(l.Context(), "select custody.request_"+kind+"($1, 'asked by letter')", user).Scan(&id)
	}))
	return id
}

// work has a job done by the client, and waits for an attempt that ends so.
func (l *leaks) work(args river.JobArgs, kind river.EventKind) *rivertype.JobRow {
	l.Helper()
	events, unsubscribe := l.client.Subscribe(river.EventKindJobCompleted, river.EventKindJobFailed, river.EventKindJobCancelled, river.EventKindJobSnoozed)
	defer unsubscribe()
	inserted, err := l.client.Insert(l.Context(), args, nil)
	require.NoError(l, err)
	for {
		select {
		case event := <-events:
			if event.Job.ID == inserted.Job.ID && event.Kind == kind {
				return event.Job
			}
			if event.Job.ID == inserted.Job.ID && event.Kind == river.EventKindJobCompleted {
				require.FailNow(l, "the job was to fail", args.Kind())
			}
		case <-time.After(2 * time.Minute):
			require.FailNow(l, "no event for the job came", args.Kind())
		}
	}
}

// jobsOfAllKinds lets the runner do what it does, and fail.
func (l *leaks) jobsOfAllKinds(erased *person) {
	l.Helper()
	ctx := l.Context()
	done := river.EventKindJobCompleted
	l.must(l.deps.Pool, tenant, "select custody.register_holder('crm', null, 'a file')")
	l.exec("select custody.save_conversation('old', 'old', $1, $2)", l.json([]any{map[string]any{"role": "user", "text": l.plant("old message"), "at": "2020-01-01T00:00:00Z"}}), l.plant("old title"))
	l.must(l.deps.Pool, tenant, `select custody.place_hold('{"user_id": "imported"}', 'case 1', 'litigation')`)
	l.work(jobs.RetentionArgs{}, done)
	l.work(jobs.PartitionsArgs{}, done)
	l.work(jobs.RequestsArgs{}, done)

	// Exports that the store fails, with an error and a panic that say what was in hand, and that come again.
	says, panics := l.plant("error of a store"), l.plant("panic of a store")
	for _, fault := range []func() error{func() error { return errors.New("no room for " + says) }, func() error { panic("no room for " + panics) }} {
		l.store.next(fault)
		require.Len(l, l.work(jobs.ExportArgs{Tenant: tenant, RequestID: l.request("export", "ada")}, done).Errors, 1)
	}
	l.work(jobs.ExportArgs{Tenant: tenant, RequestID: uuid.New()}, river.EventKindJobFailed)

	l.must(l.dpo, tenant, "select custody.plan_erasure($1)", erased.user)
	erasure := l.request("erasure", erased.user)
	l.must(l.dpo, tenant, "select custody.search_residue($1)", erasure)
	l.work(jobs.EraseArgs{Tenant: tenant, RequestID: erasure}, done)
	l.must(l.deps.Pool, tenant, "select custody.acknowledge_erasure($1, 'crm', '{\"by\": \"hand\"}')", erasure)
	l.must(l.dpo, tenant, "select custody.verify_erasure($1)", erasure)
	l.must(l.dpo, tenant, "select custody.get_certificate($1)", erasure)

	l.work(jobs.ArchiveArgs{}, done)
	require.NotZero(l, ask[int](l, "select count(*) from custody_data.archive_segments"), "a day was archived")
	checks, err := jobs.VerifyArchive(ctx, l.deps, jobs.TestIdentities(), 0, func(int, int) {})
	require.NoError(l, err)
	for _, check := range checks {
		require.Empty(l, check.Finding, check.Object)
	}
}

// rotations replaces every key.
func (l *leaks) rotations() {
	l.Helper()
	ctx := l.Context()
	ring := l.unlock.Ring
	l.collectKeys()
	rotated, err := ring.Rotate(ctx, tenant, nil)
	require.NoError(l, err)
	require.NotZero(l, rotated.Rewrapped)
	_, err = ring.Destroy(ctx, tenant, 1)
	require.NoError(l, err)
	data, err := ring.RotateData(ctx, tenant, 0, nil)
	require.NoError(l, err)
	require.NotZero(l, data.Identities)
	require.NotZero(l, data.Profiles)
	_, err = ring.ExpireData(ctx, tenant)
	require.NoError(l, err)
	_, err = ring.Maintain(ctx, tenant, 0)
	require.NoError(l, err)
	l.work(jobs.KeysArgs{}, river.EventKindJobCompleted)
	_, err = ring.Values(ctx, tenant)
	require.NoError(l, err)
	require.NoError(l, l.unlock.Check(ctx))
	l.collectKeys()
}

// collectKeys adds all keys that there are to what is searched for.
func (l *leaks) collectKeys() {
	l.Helper()
	require.NoError(l, l.unlock.InContext(l.Context(), l.quiet, jobs.Scope{Tenant: tenant, Actor: "tester"}, func(tx pgx.Tx) error {
		rows, err := tx.Query(l.Context(), `select k.identity_id, k.key_version, custody_data.data_key(k.identity_id, k.key_version)
			from custody_keys.data_keys k where k.tenant_id = 'acme' and k.destroyed_at is null`)
		if err != nil {
			return err
		}
		n := 0
		var identity uuid.UUID
		var version int
		var key []byte
		_, err = pgx.ForEachRow(rows, []any{&identity, &version, &key}, func() error {
			n++
			require.Len(l, key, 64)
			l.secrets.key(fmt.Sprintf("data key %d of %s", version, identity), bytes.Clone(key))
			return nil
		})
		require.Greater(l, n, 3)
		return err
	}))
	l.provider.mu.Lock()
	defer l.provider.mu.Unlock()
	for name, key := range l.provider.keks {
		l.secrets.key(name, key)
	}
}

// search looks everywhere.
func (l *leaks) search() (found []string) {
	l.Helper()
	ctx := l.Context()
	look := func(place string, content []byte) { found = append(found, l.secrets.in(place, content)...) }

	look("the runner's log", l.log.content())
	metrics := httptest.NewRecorder()
	promhttp.HandlerFor(l.registry, promhttp.HandlerOpts{}).ServeHTTP(metrics, httptest.NewRequest("GET", "/metrics", nil))
	require.Contains(l, metrics.Body.String(), "pgcustody_job_items_total")
	look("the metrics", metrics.Body.Bytes())

	rows, err := l.quiet.Query(ctx, `select c.oid::regclass::text from pg_catalog.pg_class c
		where c.relkind in ('r', 'p', 'v', 'm') and c.relnamespace in ('custody_data'::regnamespace, 'custody_keys'::regnamespace, 'custody_check'::regnamespace, 'river'::regnamespace)
			and not c.relispartition
		union all select pg_catalog.unnest(array['pg_stat_statements', 'pg_catalog.pg_stats', 'pg_catalog.pg_stats_ext', 'pg_catalog.pg_stat_activity', 'pg_catalog.pg_prepared_statements',
			'pg_catalog.pg_cursors', 'pg_catalog.pg_settings', 'pg_catalog.pg_file_settings', 'pg_catalog.pg_db_role_setting', 'pg_catalog.pg_locks', 'pg_catalog.pg_stat_user_functions', 'pg_catalog.pg_description'])`)
	require.NoError(l, err)
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(l, err)
	require.Greater(l, len(tables), 30)
	for _, table := range tables {
		look(table, []byte(ask[string](l, "select coalesce(pg_catalog.string_agg(v::text, E'\\n'), '') from "+table+" v")))
	}

	objects, err := stacktest.Shared(l.T).S3().ListObjectVersions(ctx, &s3.ListObjectVersionsInput{Bucket: &l.bucket})
	require.NoError(l, err)
	require.False(l, objects.IsTruncated != nil && *objects.IsTruncated)
	for _, version := range objects.Versions {
		object, err := stacktest.Shared(l.T).S3().GetObject(ctx, &s3.GetObjectInput{Bucket: &l.bucket, Key: version.Key, VersionId: version.VersionId})
		require.NoError(l, err)
		content, err := io.ReadAll(object.Body)
		require.NoError(l, err)
		object.Body.Close()
		if strings.HasSuffix(*version.Key, ".zst.age") {
			lines := 0
			_, err := segment.Read(bytes.NewReader(bytes.Clone(content)), jobs.TestIdentities(), func(line []byte) error {
				lines++
				content = append(append(content, line...), '\n')
				return nil
			})
			require.NoError(l, err, *version.Key)
			require.NotZero(l, lines)
		}
		if strings.HasPrefix(*version.Key, "exports/") {
			require.NotEmpty(l, l.secrets.in("", content), "what a person is given says what there is")
			continue
		}
		look("object "+*version.Key, content)
		look("its name", []byte(*version.Key))
	}

	for _, statement := range []string{"checkpoint", "select pg_catalog.pg_switch_wal()"} {
		_, err := l.quiet.Exec(ctx, statement)
		require.NoError(l, err)
	}
	// The server's log, the tables as they lie on disk, and the WAL.
	inFiles, files := l.secrets.inFiles(l.T, l.cluster.PGHome)
	require.Greater(l, files, 500, "a cluster has more files than that")
	return append(found, inFiles...)
}

// Everything is done that pgcustody does, by applications and by the runner, with values in every personal column that stand
// nowhere else, under settings that log whatever they can, and with errors in the middle. No key and no value is found
// afterwards but sealed, in the export that a person asked for, and in the rejects that an operator asked for.
func TestNothingLeaks(t *testing.T) {
	t.Parallel()
	l := newLeaks(t)
	ctx := t.Context()
	ada, bob, carol := l.person("ada"), l.person("bob"), l.person("carol")
	for _, p := range []*person{ada, bob, carol} {
		l.everything(p)
	}
	l.mistakes(ada, bob)
	l.imports()
	l.staged()
	l.altered()
	l.collectKeys() // before some are destroyed
	l.jobsOfAllKinds(carol)
	l.rotations()
	for _, statement := range []string{"select custody.delete_profile($1)", "select custody.delete_preferences($1)", "select custody.delete_conversation($1, 'c')"} {
		l.exec(statement, bob.user)
	}

	// What an unlocked session shows of itself while it is at work, and what its statements are prepared as.
	require.NoError(t, l.in(l.app, jobs.Scope{}, func(tx pgx.Tx) error {
		require.NoError(t, call(l, "select custody.patch_profile($1, $2)", ada.user, ada.profile)(tx))
		for _, view := range []string{"pg_catalog.pg_stat_activity", "pg_catalog.pg_locks", "pg_stat_statements"} {
			shown := ask[string](l, "select pg_catalog.string_agg(v::text, E'\\n') from "+view+" v")
			require.Empty(t, l.secrets.in(view, []byte(shown)))
		}
		require.Contains(t, ask[string](l, "select pg_catalog.string_agg(a.query, ' ') from pg_catalog.pg_stat_activity a"), "custody.patch_profile", "the session is seen")
		var prepared string
		require.NoError(t, tx.QueryRow(ctx, "select pg_catalog.string_agg(p::text, ' ') from pg_catalog.pg_prepared_statements p").Scan(&prepared))
		require.Contains(t, prepared, "custody.unlock")
		require.Empty(t, l.secrets.in("prepared statements", []byte(prepared)))
		return nil
	}))
	_, err := l.quiet.Exec(ctx, "analyze")
	require.NoError(t, err)
	require.Empty(t, l.search(), "what was planted is found")
	t.Logf("%d spellings were searched for", l.secrets.count)

	// The search finds what is there: a value that a function writes to the log, one that an application puts where it must
	// not stand, and one in the error of a job.
	logged, misplaced, failed := l.plant("logged value"), l.plant("misplaced value"), l.plant("value in an error")
	_, err = l.quiet.Exec(ctx, `create or replace function custody_data.check_preferences(p_preferences jsonb) returns void language plpgsql as
		$$begin raise log 'preferences: %', p_preferences; end$$`)
	require.NoError(t, err)
	l.exec("select custody.put_preferences('ada', $1)", l.json(map[string]any{"x": logged}))
	l.exec("select custody.record_consent('ada', $1, true, '1')", misplaced)
	l.store.next(func() error { return &jobs.Failure{Step: failed, Code: "none"} })
	l.work(jobs.ExportArgs{Tenant: tenant, RequestID: l.request("export", "ada")}, river.EventKindJobFailed)
	found := strings.Join(l.search(), "\n")
	for name, places := range map[string][]string{
		"logged value":      {`\.json: `, `\.csv: `, `\.log: `},
		"misplaced value":   {`custody_data\.consent_records: `, `/base/\d+/\d+: `, `/pg_wal/[0-9A-F]{24}: `},
		"value in an error": {`the runner's log: `, `river\.river_job: `, `custody_data\.job_runs: `},
	} {
		for _, place := range places {
			require.Regexp(t, name+" in (/[^\n]*)?"+place, found)
		}
	}
}
