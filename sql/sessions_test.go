package sql_test

import (
	"context"
	"crypto/sha512"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"pgcustody/cmd/devstack/stack"
	"pgcustody/cmd/devstack/stack/stacktest"
)

// bed is a database in which sessions of different logins meet.
type bed struct {
	*stacktest.Database
	admin *pgx.Conn // a superuser: sees and locks what it likes; for the test's own goroutine
	keyed bool      // the tenants have keys, and transactions are unlocked
}

const tenant = "acme"

func newBed(t *testing.T) *bed {
	t.Helper()
	b := newBedWithoutKeys(t)
	b.registerKeys(t)
	return b
}

func newBedWithoutKeys(t *testing.T) *bed {
	t.Helper()
	d := stacktest.DB(t)
	b := &bed{Database: d, admin: d.Conn(t, stack.Superuser)}
	b.session(t, "custody_runner").run(t, "system", `
		select custody.register_tenant('acme', 'Acme'), custody.register_tenant('other', 'Other'),
		custody.ensure_audit_partitions(now(), now() + interval '3 months')`)
	return b
}

// tenantKey is the key-encryption key of a tenant whose test is not about keys.
func tenantKey(tenant string) []byte {
	key := sha512.Sum512([]byte("key of " + tenant))
	return key[:]
}

// registerKeys gives both tenants a key; sessions unlock from here on.
func (b *bed) registerKeys(t *testing.T) {
	t.Helper()
	s := b.session(t, "custody_runner")
	for _, name := range []string{tenant, "other"} {
		require.NoError(t, s.tryBegin(t.Context(), "", name, ""))
		_, err := s.Exec(t.Context(), "select custody.register_kek($1, 'test')", tenantKey(name))
		require.NoError(t, err)
		s.commit(t)
	}
	b.keyed = true
}

// again is the same database for a parallel subtest.
func (b *bed) again(t *testing.T) *bed {
	t.Helper()
	return &bed{b.Database, b.Conn(t, stack.Superuser), b.keyed}
}

// pooled is the same database by way of a pooler in transaction mode, where
// a session's pid says nothing; the superuser stays outside of it.
func (b *bed) pooled(t *testing.T) *bed {
	t.Helper()
	d := *b.Database
	d.URLs = stacktest.PgBouncer(t, b.Database)
	return &bed{&d, b.Conn(t, stack.Superuser), b.keyed}
}

// session is one client with one connection.
type session struct {
	*pgx.Conn
	login string
	pid   uint32
	keyed *bool // whether the tenants have keys
}

func (b *bed) session(t *testing.T, login string) *session {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), b.URLs[login])
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return &session{conn, login, conn.PgConn().PID(), &b.keyed}
}

func (b *bed) sessions(t *testing.T, login string, n int) []*session {
	t.Helper()
	list := make([]*session, n)
	for i := range list {
		list[i] = b.session(t, login)
	}
	return list
}

const setContext = `select custody.set_context($1, $2, null, nullif($3, ''))`

// begin opens a transaction in a context of the tenant acme, confined to subject
// unless that is empty, and unlocks it.
func (s *session) begin(t *testing.T, subject string) {
	t.Helper()
	require.NoError(t, s.tryBegin(t.Context(), "", tenant, subject))
}

func (s *session) tryBegin(ctx context.Context, isolation, tenant, subject string) error {
	if _, err := s.Exec(ctx, "begin "+isolation); err != nil {
		return err
	}
	if _, err := s.Exec(ctx, setContext, tenant, s.login, subject); err != nil {
		return err
	}
	return s.unlock(ctx, tenant)
}

// unlock unlocks the open transaction where the tenant has a key and the login may.
func (s *session) unlock(ctx context.Context, tenant string) error {
	if !*s.keyed || tenant == "system" || s.login == dump || s.login == stack.Superuser {
		return nil
	}
	_, err := s.Exec(ctx, "select custody.unlock($1)", tenantKey(tenant))
	return err
}

func (s *session) commit(t *testing.T)   { t.Helper(); s.must(t, "commit") }
func (s *session) rollback(t *testing.T) { t.Helper(); s.must(t, "rollback") }

func (s *session) must(t *testing.T, statement string) string {
	t.Helper()
	out, err := s.try(t.Context(), statement)
	require.NoError(t, err, statement)
	return out
}

// try runs a statement and returns the first column of its first row as text.
// No statement of a test takes a minute, unless it waits for what never comes.
func (s *session) try(ctx context.Context, statement string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	results, err := s.PgConn().Exec(ctx, statement).ReadAll()
	if err != nil {
		return "", err
	}
	last := results[len(results)-1]
	if len(last.Rows) == 0 || len(last.Rows[0]) == 0 {
		return "", nil
	}
	return string(last.Rows[0][0]), nil
}

// run runs a statement in a transaction and a context of its own.
func (s *session) run(t *testing.T, tenant, statement string) string {
	t.Helper()
	out, err := s.tryRun(t.Context(), tenant, "", statement)
	require.NoError(t, err, statement)
	return out
}

func (s *session) tryRun(ctx context.Context, tenant, subject, statement string) (out string, err error) {
	if err = s.tryBegin(ctx, "", tenant, subject); err == nil {
		out, err = s.try(ctx, statement)
	}
	if err != nil {
		_, undo := s.try(ctx, "rollback")
		return "", errors.Join(err, undo)
	}
	_, err = s.try(ctx, "commit")
	return out, err
}

// refused runs a statement in a transaction of its own that must fail with a code.
func (s *session) refused(t *testing.T, code, tenant, statement string) {
	t.Helper()
	_, err := s.tryRun(t.Context(), tenant, "", statement)
	requireCode(t, err, code)
}

func requireCode(t *testing.T, err error, code string) *pgconn.PgError {
	t.Helper()
	var pgErr *pgconn.PgError
	require.ErrorAs(t, err, &pgErr, "expected %s, got %v", code, err)
	require.Equal(t, code, pgErr.Code, "%s %s", pgErr.Message, pgErr.Detail)
	return pgErr
}

func codeOf(err error) string {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		return pgErr.Code
	}
	return ""
}

// pending is a statement that has been sent and may have to wait.
type pending struct {
	session *session
	done    chan struct{}
	out     string
	err     error
}

// send runs a statement in the session's open transaction, or on its own.
func (s *session) send(ctx context.Context, statement string) *pending {
	p := &pending{session: s, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		p.out, p.err = s.try(ctx, statement)
	}()
	return p
}

// requireWaiting waits until the statement waits for a lock, of that session if one is named.
func (b *bed) requireWaiting(t *testing.T, p *pending, by *session) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		var waiting bool
		require.NoError(t, b.admin.QueryRow(ctx, `
			select coalesce(cardinality(pg_catalog.pg_blocking_pids($1)) > 0 and ($2 = 0 or $2 = any (pg_catalog.pg_blocking_pids($1))), false)`,
			int32(p.session.pid), int32(by.id())).Scan(&waiting))
		if waiting {
			return
		}
		select {
		case <-p.done:
			require.FailNow(t, "the statement did not wait", "result %q, error %v", p.out, p.err)
		default:
		}
	}
}

func (s *session) id() uint32 {
	if s == nil {
		return 0
	}
	return s.pid
}

// result waits for the statement.
func (p *pending) result(t *testing.T) (string, error) {
	t.Helper()
	select {
	case <-p.done:
		return p.out, p.err
	case <-t.Context().Done():
		require.FailNow(t, "the test ended before the statement did")
		return "", nil
	}
}

// settle ends the transaction of a statement that has come back, whichever way it went.
func (p *pending) settle(t *testing.T) (string, error) {
	t.Helper()
	out, err := p.result(t)
	if err != nil {
		p.session.rollback(t)
		return "", err
	}
	p.session.commit(t)
	return out, nil
}

// together starts all functions at the same moment and waits for them.
func together(functions ...func()) {
	var wg sync.WaitGroup
	start := make(chan struct{})
	for _, f := range functions {
		wg.Go(func() { <-start; f() })
	}
	close(start)
	wg.Wait()
}

// ask reads a value as the superuser.
func ask[T any](t *testing.T, b *bed, query string, args ...any) (v T) {
	t.Helper()
	require.NoError(t, b.admin.QueryRow(t.Context(), query, args...).Scan(&v), query)
	return v
}

var people atomic.Int64

// newUser is a user_id that nobody has had.
func newUser(name string) string {
	return fmt.Sprintf("%s-%d@example.org", name, people.Add(1))
}

// identity is who has a user_id now, empty for nobody.
func (b *bed) identity(t *testing.T, user string) string {
	t.Helper()
	return ask[string](t, b, `select coalesce((select identity_id::text from custody_data.identities where tenant_id = 'acme' and user_id = $1), '')`, user)
}

// rows counts an identity's rows by table; tables without any are left out.
func (b *bed) rows(t *testing.T, identity string) map[string]int {
	t.Helper()
	if identity == "" {
		return map[string]int{}
	}
	return ask[map[string]int](t, b, `
		select coalesce(jsonb_object_agg(t.name, t.n), '{}') from (
		  select 'user_profiles', count(*) from custody_data.user_profiles where identity_id = $1::text::uuid
		  union all select 'user_preferences', count(*) from custody_data.user_preferences where identity_id = $1::text::uuid
		  union all select 'conversations', count(*) from custody_data.conversations where identity_id = $1::text::uuid
		  union all select 'consent_records', count(*) from custody_data.consent_records where identity_id = $1::text::uuid
		) t (name, n) where t.n > 0`, identity)
}

// fill puts the names of a person into a statement.
func fill(statement, user, identity string) string {
	return strings.NewReplacer(":user", "'"+user+"'", ":identity", "'"+identity+"'::uuid").Replace(statement)
}
