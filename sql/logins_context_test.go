package sql_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"pgcustody/cmd/devstack/stack"
)

// minter is an application's auth layer: a library that knows nothing of ours.
type minter struct {
	kid string
	key []byte
}

func newMinter(t *testing.T, kid string) *minter {
	t.Helper()
	key := make([]byte, 32)
	_, err := rand.Read(key)
	require.NoError(t, err)
	return &minter{kid, key}
}

func (m *minter) token(t *testing.T, claims map[string]any) string {
	t.Helper()
	all := map[string]any{"tenant": tenant, "sub": "clerk", "purpose": "support", "iat": time.Now().Unix(), "exp": time.Now().Add(5 * time.Minute).Unix()}
	for name, value := range claims {
		all[name] = value
	}
	payload, err := json.Marshal(all)
	require.NoError(t, err)
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.HS256, Key: m.key}, (&jose.SignerOptions{}).WithType("JWT").WithHeader("kid", m.kid))
	require.NoError(t, err)
	signed, err := signer.Sign(payload)
	require.NoError(t, err)
	token, err := signed.CompactSerialize()
	require.NoError(t, err)
	return token
}

// asAdmin runs a statement of custody_admin in the context of tenant system.
func (b *bed) asAdmin(t *testing.T, statement string, args ...any) {
	t.Helper()
	require.NoError(t, pgx.BeginFunc(t.Context(), b.admin, func(tx pgx.Tx) error {
		if _, err := tx.Exec(t.Context(), "set local role custody_admin"); err != nil {
			return err
		}
		if _, err := tx.Exec(t.Context(), "select custody.set_context('system', 'root')"); err != nil {
			return err
		}
		_, err := tx.Exec(t.Context(), statement, args...)
		return err
	}))
}

// inTokenMode gives the database a key of tokens and puts the application into token mode.
func (b *bed) inTokenMode(t *testing.T) *minter {
	t.Helper()
	m := newMinter(t, "auth-1")
	b.asAdmin(t, "select custody.register_token_key($1, $2)", m.kid, m.key)
	b.asAdmin(t, "select custody.require_tokens('custody_app')")
	return m
}

func (s *session) beginToken(ctx context.Context, token string) error {
	if _, err := s.Exec(ctx, "begin"); err != nil {
		return err
	}
	_, err := s.Exec(ctx, "select custody.begin_context($1)", token)
	return err
}

const (
	seen = `select count(*) from custody_data.user_preferences`
	// settingsOf takes a context as it stands in a session, MAC included; put sets them in another.
	settingsOf = `select pg_catalog.string_agg(pg_catalog.format('set local custody.%I = %L', n, pg_catalog.current_setting('custody.' || n, true)), '; ')
		from pg_catalog.unnest(array['tenant', 'actor', 'actor_id', 'purpose', 'subject', 'subject_id', 'mac']) n`
)

func TestASignedContextIsOfOneTransaction(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.session(t, "custody_app").run(t, tenant, `select custody.put_preferences('pat', '{}')`)
	m := b.inTokenMode(t)
	for name, way := range map[string]*bed{"directly": b, "through the pooler": b.pooled(t)} {
		t.Run(name, func(t *testing.T) {
			s, other := way.session(t, "custody_app"), way.session(t, "custody_app")
			require.NoError(t, s.beginToken(t.Context(), m.token(t, nil)))
			require.Equal(t, "1", s.must(t, seen))
			require.Equal(t, "acme|clerk|support", s.must(t, whoAmI))
			stolen := s.must(t, settingsOf)
			require.Contains(t, stolen, "custody.mac")

			// In the transaction itself it is its own, and a savepoint gives it back.
			s.must(t, "savepoint s")
			s.must(t, "set local custody.tenant = 'other'")
			require.Empty(t, s.must(t, whoAmI))
			s.must(t, "rollback to savepoint s")
			require.Equal(t, "1", s.must(t, seen))
			s.must(t, "savepoint s")
			s.must(t, "select custody.begin_context('"+m.token(t, map[string]any{"tenant": "other"})+"')")
			require.Equal(t, "0", s.must(t, seen))
			s.must(t, "rollback to savepoint s")
			require.Equal(t, "1", s.must(t, seen))

			replay := func(s *session) {
				t.Helper()
				s.must(t, "begin")
				s.must(t, stolen)
				require.Empty(t, s.must(t, whoAmI))
				require.Equal(t, "0", s.must(t, seen))
				s.must(t, "savepoint s")
				_, err := s.try(t.Context(), `select custody.record_audit_event('account.login')`)
				requireCode(t, err, "PC001")
				s.must(t, "rollback to savepoint s")
				_, err = s.try(t.Context(), `select custody.get_preferences('pat')`)
				requireCode(t, err, "PC001")
				s.must(t, "rollback")
			}
			replay(other) // of another session, at the same time
			s.must(t, "commit")
			replay(s) // of the same one, later
			require.NoError(t, s.beginToken(t.Context(), m.token(t, map[string]any{"subject": "pat"})))
			s.must(t, stolen) // over another context
			require.Empty(t, s.must(t, whoAmI))
			s.must(t, "rollback")

			// In session settings, which the next transaction has.
			s.must(t, strings.ReplaceAll(stolen, "set local", "set"))
			require.Empty(t, s.must(t, whoAmI))
			s.must(t, "discard all")

			_, err := s.try(t.Context(), `select custody.set_context('acme', 'clerk')`)
			requireCode(t, err, "PC061")
		})
	}
}

func TestTheAPIInTokenMode(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	m := b.inTokenMode(t)
	s := b.pooled(t).session(t, "custody_app")
	call := func(claims map[string]any, statement string) (out string, err error) {
		if err = s.beginToken(t.Context(), m.token(t, claims)); err == nil {
			err = s.unlock(t.Context(), tenant)
		}
		if err == nil {
			out, err = s.try(t.Context(), statement)
		}
		if err != nil {
			_, undo := s.try(t.Context(), "rollback")
			return "", errors.Join(err, undo)
		}
		_, err = s.try(t.Context(), "commit")
		return out, err
	}
	for _, statement := range []string{
		`select custody.put_profile('pat', '{"full_name": "Pat", "email": "pat@example.org"}')`,
		`select custody.patch_profile('pat', '{"city": "Bern"}')`,
		`select custody.record_consent('pat', 'mail', true, '1', p_evidence => '{"form": "x"}')`,
		`select custody.save_conversation('pat', 'c', '[{"role": "user", "text": "hello"}]')`,
		`select custody.record_audit_event('account.login', p_subject_user_id => 'pat', p_personal => '{"source_ip": "192.0.2.1"}')`,
		`select custody.get_profile('pat')`,
	} {
		for _, claims := range []map[string]any{{"sub": "somebody new", "jti": "x"}, {"sub": "pat", "subject": "pat"}} {
			_, err := call(claims, statement)
			require.NoError(t, err, statement)
		}
	}
	out, err := call(map[string]any{"sub": "pat", "subject": "pat"}, `select custody.get_profile('pat') ->> 'city'`)
	require.NoError(t, err)
	require.Equal(t, "Bern", out)
	for name, claims := range map[string]map[string]any{
		"expired": {"exp": time.Now().Add(-time.Second).Unix()}, "early": {"nbf": time.Now().Add(time.Minute).Unix()}, "no tenant": {"tenant": nil}, "long": {"exp": time.Now().Add(2 * time.Hour).Unix()},
	} {
		_, err := call(claims, "select 1")
		requireCode(t, err, "PC060")
		require.NotContains(t, err.Error(), name)
	}
	forged := &minter{m.kid, newMinter(t, "").key}
	require.Error(t, s.beginToken(t.Context(), forged.token(t, nil)))
	s.must(t, "rollback")
	// What was never UTF-8 never comes to a function.
	_, err = s.Exec(t.Context(), "select custody.begin_context($1)", "a.b.\xff")
	requireCode(t, err, "22021")
}

// The first contexts of a server make its key: nobody waits for another's, and all hold.
func TestTheFirstContextsAtOnce(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	m := b.inTokenMode(t)
	list := b.sessions(t, "custody_app", 6)
	token := m.token(t, nil)
	errs := make([]error, len(list))
	var calls []func()
	for i, s := range list {
		calls = append(calls, func() { errs[i] = s.beginToken(t.Context(), token) })
	}
	together(calls...) // and none has committed
	require.NoError(t, errors.Join(errs...))
	for _, s := range list {
		require.Equal(t, "acme|clerk|support", s.must(t, whoAmI))
		s.must(t, "commit")
	}
	require.Equal(t, 6, ask[int](t, b, `select count(*) from custody_keys.context_keys where kind = 'context'`))
	require.NoError(t, list[0].beginToken(t.Context(), token))
	list[0].must(t, "commit")
	require.Equal(t, 6, ask[int](t, b, `select count(*) from custody_keys.context_keys where kind = 'context'`), "later ones make none")
}

func TestRotationOfTheContextKeyWhileSessionsAreOpen(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	m := b.inTokenMode(t)
	s, later := b.session(t, "custody_app"), b.session(t, "custody_app")
	require.NoError(t, s.beginToken(t.Context(), m.token(t, nil)))
	s.must(t, "commit")
	require.NoError(t, s.beginToken(t.Context(), m.token(t, nil)))
	b.asAdmin(t, "select custody.rotate_context_key()")
	require.Equal(t, "acme|clerk|support", s.must(t, whoAmI), "under the key before")
	require.NoError(t, later.beginToken(t.Context(), m.token(t, nil)))
	b.asAdmin(t, "select custody.rotate_context_key()")
	require.Equal(t, "acme|clerk|support", s.must(t, whoAmI), "under the session's own secret")
	require.Equal(t, "acme|clerk|support", later.must(t, whoAmI))
	reader := b.session(t, "custody_app")
	reader.must(t, "begin read only")
	_, err := reader.Exec(t.Context(), "select custody.begin_context($1)", m.token(t, nil))
	require.NoError(t, err)
	b.asAdmin(t, "select custody.rotate_context_key()")
	require.Equal(t, "acme|clerk|support", reader.must(t, whoAmI), "under the key before")
	b.asAdmin(t, "select custody.rotate_context_key()")
	require.Empty(t, reader.must(t, whoAmI), "two rotations end it")
	reader.must(t, "rollback")
	s.must(t, "commit")

	// Keys of tokens: the new one beside the old, then the old one goes.
	next := newMinter(t, "auth-2")
	b.asAdmin(t, "select custody.register_token_key($1, $2, $3)", next.kid, next.key, tenant)
	for _, token := range []string{m.token(t, nil), next.token(t, nil)} {
		require.NoError(t, s.beginToken(t.Context(), token))
		s.must(t, "commit")
	}
	b.asAdmin(t, "select custody.retire_token_key($1)", m.kid)
	requireCode(t, s.beginToken(t.Context(), m.token(t, nil)), "PC060")
	s.must(t, "rollback")
	requireCode(t, s.beginToken(t.Context(), next.token(t, map[string]any{"tenant": "other"})), "PC060")
	s.must(t, "rollback")
	require.NoError(t, s.beginToken(t.Context(), next.token(t, nil)))
}

// A mode holds from the next transaction on, in sessions that are open and have plans.
func TestTokenModeReachesOpenSessions(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	s := b.session(t, "custody_app")
	s.run(t, tenant, `select custody.put_preferences('pat', '{}')`)
	s.must(t, "set plan_cache_mode = force_generic_plan; prepare p as "+seen)
	s.begin(t, "")
	require.Equal(t, "1", s.must(t, "execute p"))
	b.inTokenMode(t)
	s.commit(t)
	s.must(t, "begin; set local custody.tenant = 'acme'; set local custody.actor = 'clerk'")
	require.Equal(t, "0", s.must(t, "execute p"), "the plan has the new list")
	_, err := s.try(t.Context(), `select custody.get_preferences('pat')`)
	requireCode(t, err, "PC001")
	s.must(t, "rollback")
	b.asAdmin(t, "select custody.require_tokens('custody_app', false)")
	s.begin(t, "")
	require.Equal(t, "1", s.must(t, "execute p"))
	s.rollback(t)
}

// Nothing that signs or checks a context is a checked login's to read, call or change, nor a backup's.
func TestNobodyReadsWhatSignsAContext(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.session(t, app).run(t, tenant, `select custody.put_preferences('pat', '{}')`)
	m := b.inTokenMode(t)
	require.NoError(t, pgx.BeginFunc(t.Context(), b.admin, func(tx pgx.Tx) error {
		_, err := tx.Exec(t.Context(), `set local role custody_admin; select custody.set_context('acme', 'root'), custody.register_login('custody_dpo', 'dora', 'acme', '{access}')`)
		return err
	}))
	refused := map[string]string{
		`select secret from custody_keys.context_keys`:         "42501",
		`select currval('custody_keys.session_secret_1')`:      "42501",
		`select last_value from custody_keys.session_secret_2`: "42501",
		`select setval('custody_keys.session_secret_1', 1)`:    "42501",
		`select nextval('custody_keys.session_secret_2')`:      "42501",
		`select lastval()`:                                                             "55000",
		`select custody_data.session_secret()`:                                         "42501",
		`select custody_data.context_mac('x')`:                                         "42501",
		`select custody_data.hmac_sha256('x', 'x')`:                                    "42501",
		`select custody_data.sign_context()`:                                           "42501",
		`select custody_data.context_key()`:                                            "42501",
		`select custody_data.line_key()`:                                               "42501",
		`select custody_data.enter_context('other', 'x')`:                              "42501",
		`select custody_data.read_token('x')`:                                          "42501",
		`select custody_data.write_checked_logins('{}')`:                               "42501",
		`select custody.require_tokens('custody_app', false)`:                          "42501",
		`select custody.register_login('custody_dpo', 'x', 'other')`:                   "42501",
		`select custody.register_token_key('mine', $1)`:                                "42501",
		`update custody_data.logins set ended_at = now()`:                              "42501",
		`create function custody_data.checked_logins(int) returns int return 1`:        "42501",
		`set session authorization custody_runner`:                                     "42501",
		`set role custody_owner`:                                                       "42501",
		`select set_config('session_authorization', 'custody_runner', true)`:           "42501",
		`select custody.set_context('other', 'dora', 'access')`:                        "PC061",
		`select custody.set_context('acme', 'somebody else', 'access')`:                "PC061",
		`select custody.set_context('acme', 'dora', 'curiosity')`:                      "PC061",
		`select custody.begin_context('` + m.token(t, map[string]any{"exp": 1}) + `')`: "PC060",
	}
	for login, enter := range map[string]string{
		app: `select custody.begin_context('` + m.token(t, nil) + `')`,
		dpo: `select custody.set_context('acme', 'dora', 'access')`,
	} {
		s := b.session(t, login)
		s.must(t, "begin")
		s.must(t, enter)
		is := s.must(t, whoAmI)
		require.NotEmpty(t, is)
		for statement, code := range refused {
			s.must(t, "savepoint a")
			_, err := s.try(t.Context(), strings.Replace(statement, "$1", `'\x00'`, 1))
			requireCode(t, err, code)
			s.must(t, "rollback to savepoint a")
			require.Equal(t, is, s.must(t, whoAmI))
		}
		require.Equal(t, "0", s.must(t, `select count(last_value) from pg_catalog.pg_sequences where schemaname = 'custody_keys'`))
		// Who is taken to another tenant or actor by a token is the application alone.
		s.must(t, "savepoint a")
		_, err := s.try(t.Context(), `select custody.begin_context('`+m.token(t, map[string]any{"tenant": "other", "sub": "somebody"})+`')`)
		if login == dpo {
			requireCode(t, err, "PC061")
		} else {
			require.NoError(t, err)
		}
		s.must(t, "rollback to savepoint a")
		require.Equal(t, "1", s.must(t, seen))
		// What forgets the secret ends the context, and no more.
		s.must(t, "discard sequences")
		_, err = s.try(t.Context(), seen)
		requireCode(t, err, "55000")
		s.must(t, "rollback")
		s.must(t, "begin")
		s.must(t, enter)
		require.Equal(t, "1", s.must(t, seen))
		s.must(t, "rollback")
	}
	s := b.session(t, dump)
	require.Equal(t, "0", s.must(t, `select count(*) from custody_keys.context_keys`))
	for _, statement := range []string{`select last_value from custody_keys.session_secret_1`, `select currval('custody_keys.session_secret_2')`} {
		_, err := s.try(t.Context(), statement)
		requireCode(t, err, "42501")
	}
}

// A context that is checked does not keep scans from running in parallel.
func TestParallelScansInASignedContext(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	m := b.inTokenMode(t)
	s := b.session(t, "custody_app")
	require.NoError(t, s.beginToken(t.Context(), m.token(t, nil)))
	s.must(t, `select custody.record_consent('pat', 'mail', true, n::text) from pg_catalog.generate_series(1, 20) n`)
	s.must(t, "set local parallel_setup_cost = 0; set local parallel_tuple_cost = 0; set local min_parallel_table_scan_size = 0; set local enable_indexscan = off; set local enable_bitmapscan = off")
	plan := s.must(t, `explain (format json, costs off) select count(*) from custody_data.consent_records`)
	require.Contains(t, plan, `"Gather`)
	require.Equal(t, "20", s.must(t, `select count(*) from custody_data.consent_records`))
	s.must(t, "rollback")
}

// A dump has the logins and their modes, and no key; a restored database makes its own.
func TestADumpHasNoKeysOfContexts(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.session(t, "custody_app").run(t, tenant, `select custody.put_preferences('pat', '{}')`)
	m := b.inTokenMode(t)
	s := b.session(t, "custody_app")
	require.NoError(t, s.beginToken(t.Context(), m.token(t, nil)))
	s.must(t, "commit")
	secrets := ask[[]string](t, b, `select pg_catalog.array_agg(pg_catalog.encode(k.secret, 'hex')) from custody_keys.context_keys k`)
	require.Len(t, secrets, 3) // of tokens, of contexts, of log lines
	require.Contains(t, secrets, hex.EncodeToString(m.key))

	byBackup := b.backup(t)
	bySuperuser := filepath.Join(t.TempDir(), "dump")
	_, err := client(t, b.Stack, "pg_dump", "--exclude-table-data=custody_keys.context_keys", "--format=custom", "--file="+bySuperuser, "--dbname="+b.URLs[stack.Superuser])
	require.NoError(t, err)
	keysOnly := filepath.Join(t.TempDir(), "keys")
	_, err = client(t, b.Stack, "pg_dump", "--enable-row-security", "--no-unlogged-table-data", "--data-only", "--schema=custody_keys", "--format=custom", "--file="+keysOnly, "--dbname="+b.URLs["custody_dump"])
	require.NoError(t, err)
	for _, file := range []string{byBackup, bySuperuser, keysOnly} {
		text, err := client(t, b.Stack, "pg_restore", "--file=-", file)
		require.NoError(t, err)
		for _, secret := range secrets {
			require.False(t, strings.Contains(text, secret))
		}
		raw, err := os.ReadFile(file)
		require.NoError(t, err)
		require.False(t, bytes.Contains(raw, m.key))
	}
	// The search finds what is there.
	everything := filepath.Join(t.TempDir(), "all")
	_, err = client(t, b.Stack, "pg_dump", "--format=plain", "--file="+everything, "--dbname="+b.URLs[stack.Superuser])
	require.NoError(t, err)
	text, err := os.ReadFile(everything)
	require.NoError(t, err)
	require.Contains(t, string(text), secrets[0])

	name := b.Name + "_restored"
	require.NoError(t, b.Stack.CreateDatabase(t.Context(), name, ""))
	t.Cleanup(func() { require.NoError(t, b.Stack.DropDatabase(context.Background(), name)) })
	_, err = client(t, b.Stack, "pg_restore", "--exit-on-error", "--dbname="+b.Stack.SuperURL(name), bySuperuser)
	require.NoError(t, err)
	require.NoError(t, b.Stack.PutLogins(t.Context(), name))
	r := bedOf(t, b.Stack, name)
	rs := r.session(t, "custody_app")
	_, err = rs.try(t.Context(), `select custody.set_context('acme', 'clerk')`)
	requireCode(t, err, "PC061")
	requireCode(t, rs.beginToken(t.Context(), m.token(t, nil)), "PC060")
	rs.must(t, "rollback")
	r.asAdmin(t, "select custody.register_token_key($1, $2)", m.kid, m.key)
	require.NoError(t, rs.beginToken(t.Context(), m.token(t, nil)))
	require.Equal(t, "1", rs.must(t, seen))
	rs.must(t, "commit")
	r.requireNoFindings(t)

	// A copy of the files, keys included, in the same server.
	require.NoError(t, rs.Close(t.Context()))
	require.NoError(t, r.admin.Close(t.Context()))
	copied := b.Name + "_copied"
	require.NoError(t, b.Stack.CreateDatabase(t.Context(), copied, name))
	t.Cleanup(func() { require.NoError(t, b.Stack.DropDatabase(context.Background(), copied)) })
	require.NoError(t, b.Stack.PutLogins(t.Context(), copied))
	c := bedOf(t, b.Stack, copied)
	cs := c.session(t, "custody_app")
	before := ask[int](t, c, `select count(*) from custody_keys.context_keys where kind = 'context'`)
	require.NoError(t, cs.beginToken(t.Context(), m.token(t, nil)))
	require.Equal(t, fmt.Sprint(1), cs.must(t, seen))
	cs.must(t, "commit")
	require.Equal(t, before+1, ask[int](t, c, `select count(*) from custody_keys.context_keys where kind = 'context'`))
}

// A start of the server makes a new key; a standby has its primary's.
func TestAStartOfTheServerRenewsTheContextKey(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	m := b.inTokenMode(t)
	s := b.session(t, "custody_app")
	require.NoError(t, s.beginToken(t.Context(), m.token(t, nil)))
	s.must(t, "commit")
	// As after a start: the keys there are were made for another run of the server.
	b.must(t, `alter table custody_keys.context_keys disable trigger a_reject_key_change`,
		`update custody_keys.context_keys set server = 'the start before' where kind = 'context'`,
		`alter table custody_keys.context_keys enable always trigger a_reject_key_change`)
	s = b.session(t, "custody_app")
	s.must(t, "begin read only")
	_, err := s.Exec(t.Context(), "select custody.begin_context($1)", m.token(t, nil))
	requireCode(t, err, "PC062")
	s.must(t, "rollback")
	require.NoError(t, s.beginToken(t.Context(), m.token(t, nil)))
	require.Equal(t, "acme|clerk|support", s.must(t, whoAmI))
	s.must(t, "commit")
	require.Equal(t, 2, ask[int](t, b, `select count(*) from custody_keys.context_keys where kind = 'context'`))
	s.must(t, "begin read only")
	_, err = s.Exec(t.Context(), "select custody.begin_context($1)", m.token(t, nil))
	require.NoError(t, err)
	require.Equal(t, "acme|clerk|support", s.must(t, whoAmI))
	s.must(t, "rollback")
}
