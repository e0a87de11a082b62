package sql_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"
	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/tlog"

	"pgcustody/cmd/devstack/stack"
)

// event is one of the trail, with the leaf that it must have.
type event struct {
	Tenant string
	ID     uuid.UUID
	At     time.Time
	XID    uint64
	Entry  string
}

func (e event) leaf() [32]byte { return sha256.Sum256(append([]byte{0}, e.Entry...)) }

// before is the order of leaves within a stretch.
func (e event) before(f event) bool {
	if e.XID != f.XID {
		return e.XID < f.XID
	}
	if c := bytes.Compare(e.ID[:], f.ID[:]); c != 0 {
		return c < 0
	}
	if e.Tenant != f.Tenant {
		return e.Tenant < f.Tenant
	}
	return e.At.Before(f.At)
}

// ledger is the tree as its tables have it, read without a function of ours.
type ledger struct {
	size      int64
	sealedTo  uint64
	life      uuid.UUID // the head's incarnation
	leaves    []tlog.Hash
	xids      []uint64
	ids       []uuid.UUID
	stretches []stretch
	root      tlog.Hash
}

type stretch struct {
	First int64
	Kind  string
	Life  uuid.UUID
}

func (l *ledger) kinds() (kinds []string) {
	for _, s := range l.stretches {
		kinds = append(kinds, s.Kind)
	}
	return kinds
}

func collect[T any](t *testing.T, conn *pgx.Conn, query string, args ...any) []T {
	t.Helper()
	rows, err := conn.Query(t.Context(), query, args...)
	require.NoError(t, err)
	values, err := pgx.CollectRows(rows, pgx.RowToStructByPos[T])
	require.NoError(t, err)
	return values
}

// readLedger reads the tree as a superuser and builds it anew from its leaves, with two
// libraries: every tile and the root must be what the leaves make them.
func readLedger(t *testing.T, conn *pgx.Conn) *ledger {
	t.Helper()
	l := &ledger{}
	require.NoError(t, conn.QueryRow(t.Context(), `select h.tree_size, h.sealed_to::text::bigint, coalesce(h.incarnation_id, '00000000-0000-0000-0000-000000000000') from custody_data.ledger_heads h`).
		Scan(&l.size, &l.sealedTo, &l.life))
	type tile struct {
		Level, Index int64
		Hashes       []byte
	}
	tiles := collect[tile](t, conn, `select t.level::bigint, t.tile_index, t.hashes from custody_data.ledger_tiles t order by 1, 2`)
	for _, tile := range tiles {
		for ; tile.Level == 0 && len(tile.Hashes) > 0; tile.Hashes = tile.Hashes[32:] {
			l.leaves = append(l.leaves, tlog.Hash(tile.Hashes[:32]))
		}
	}
	require.Len(t, l.leaves, int(l.size), "leaves as the head counts them")

	var stored memory
	tree := (&compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}).NewEmptyRange(0)
	for i, leaf := range l.leaves {
		hashes, err := tlog.StoredHashesForRecordHash(int64(i), leaf, stored)
		require.NoError(t, err)
		stored = append(stored, hashes...)
		require.NoError(t, tree.Append(leaf[:], nil))
	}
	var err error
	l.root, err = tlog.TreeHash(l.size, stored)
	require.NoError(t, err)
	if l.size > 0 {
		root, err := tree.GetRootHash(nil)
		require.NoError(t, err)
		require.Equal(t, root, l.root[:])
	}
	want := tlog.NewTiles(8, 0, l.size)
	require.Len(t, tiles, len(want))
	for i, w := range want {
		data, err := tlog.ReadTileData(w, stored)
		require.NoError(t, err)
		require.Equal(t, tile{int64(w.L), w.N, data}, tiles[i])
	}

	for _, page := range collect[struct{ XIDs, IDs []byte }](t, conn, `select e.xids, e.entry_ids from custody_data.ledger_entries e order by e.tile_index`) {
		for ; len(page.XIDs) > 0; page.XIDs, page.IDs = page.XIDs[8:], page.IDs[16:] {
			l.xids = append(l.xids, binary.BigEndian.Uint64(page.XIDs))
			l.ids = append(l.ids, uuid.UUID(page.IDs[:16]))
		}
	}
	require.Len(t, l.xids, int(l.size))
	l.stretches = collect[stretch](t, conn, `select s.first_leaf, s.kind, s.incarnation_id from custody_data.ledger_stretches s order by 1`)
	return l
}

// requireLedger compares the tree with the trail: every event has exactly one leaf, but
// for those that wait; every leaf has its event, but for those that are lost; leaves
// within a stretch ascend; and the database's own functions say the same.
func requireLedger(t *testing.T, conn *pgx.Conn, waiting, lost int) *ledger {
	t.Helper()
	l := readLedger(t, conn)
	unsealed := map[[32]byte]event{}
	for _, e := range collect[event](t, conn, `select a.tenant_id, a.log_entry_id, a.occurred_at, a.xid::text::bigint, custody.audit_entry(a) from custody_data.audit_logs a`) {
		_, twice := unsealed[e.leaf()]
		require.False(t, twice, "one leaf for two events: %s", e.Entry)
		unsealed[e.leaf()] = e
	}
	var last *event
	next, without := 0, 0
	for i, leaf := range l.leaves {
		if next < len(l.stretches) && l.stretches[next].First == int64(i) {
			last, next = nil, next+1
		}
		e, ok := unsealed[leaf]
		if !ok {
			require.Zero(t, l.xids[i], "leaf %d of transaction %d has no event, or its event has a leaf before", i, l.xids[i])
			require.Equal(t, uuid.Nil, l.ids[i])
			require.Equal(t, "lost", l.stretches[next-1].Kind, "leaf %d", i)
			without++
			continue
		}
		delete(unsealed, leaf)
		require.Equal(t, e.XID, l.xids[i], "leaf %d", i)
		require.Equal(t, e.ID, l.ids[i], "leaf %d", i)
		if last != nil && l.stretches[next-1].Kind != "lost" {
			require.True(t, last.before(e), "leaf %d in stretch %+v: %+v after %+v", i, l.stretches[next-1], e, *last)
		}
		last = &e
	}
	require.Equal(t, len(l.stretches), next, "stretches begin at leaves")
	require.Equal(t, lost, without, "lost leaves")
	for _, e := range unsealed {
		require.Len(t, unsealed, waiting, "events without a leaf, such as %+v; sealed up to %d", e, l.sealedTo)
	}
	require.Len(t, unsealed, waiting)

	tx, err := conn.Begin(t.Context())
	require.NoError(t, err)
	defer func() { require.NoError(t, tx.Rollback(t.Context())) }()
	var root []byte
	require.NoError(t, tx.QueryRow(t.Context(), `select custody.ledger_root($1) from custody.set_context('system', 'tester')`, l.size).Scan(&root))
	require.Equal(t, l.root[:], root)
	if waiting == 0 {
		require.Empty(t, findings(t, tx))
	}
	return l
}

// findings are what the self-check says, in a transaction with a context.
func findings(t *testing.T, tx pgx.Tx) (found []string) {
	t.Helper()
	require.NoError(t, tx.QueryRow(t.Context(), `select coalesce(array_agg(f.kind order by f.kind), '{}') from custody.verify_ledger() f`).Scan(&found))
	return found
}

// sealed is what seal_audit_log returns.
type sealed struct {
	Sealed   int64     `json:"sealed"`
	TreeSize int64     `json:"tree_size"`
	More     bool      `json:"more"`
	Busy     bool      `json:"busy"`
	Opened   bool      `json:"opened"`
	Life     uuid.UUID `json:"incarnation_id"`
}

// sealOnce seals one batch in a transaction of its own.
func sealOnce(ctx context.Context, conn *pgx.Conn, limit int) (s sealed, err error) {
	return s, pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "select custody.set_context('system', 'sealer')"); err != nil {
			return err
		}
		return tx.QueryRow(ctx, "select custody.seal_audit_log($1)", limit).Scan(&s)
	})
}

// sealAll seals until nothing is left, and returns what the first batch did.
func sealAll(t *testing.T, conn *pgx.Conn) (first sealed) {
	t.Helper()
	for n := 0; ; n++ {
		s, err := sealOnce(t.Context(), conn, 10000)
		require.NoError(t, err)
		require.False(t, s.Busy)
		if n == 0 {
			first = s
		}
		if s.Sealed == 0 && !s.More {
			return first
		}
	}
}

// sealUntil seals as the runner's job does, with small batches, until something goes
// wrong; it returns how often another was at work.
func sealUntil(ctx context.Context, url string) (busy int, err error) {
	config, err := pgx.ParseConfig(url)
	if err != nil {
		return 0, err
	}
	config.RuntimeParams["application_name"] = "sealer"
	// Nobody waits for another sealer; half a second is what a busy machine takes for a lock that is free.
	config.RuntimeParams["lock_timeout"] = "500"
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return 0, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	for {
		s, err := sealOnce(ctx, conn, 1+rand.IntN(1<<rand.IntN(10)))
		if err != nil {
			return busy, err
		}
		if s.Busy {
			busy++
		}
		if !s.More {
			select {
			case <-ctx.Done():
				return busy, ctx.Err()
			case <-time.After(rand.N(50 * time.Millisecond)):
			}
		}
	}
}

// storm is what many writers do at once.
type storm struct {
	*bed
	kinds sync.Map // what was done: *atomic.Int64 by name

	mu       sync.Mutex
	prepared []string
}

func (s *storm) count(kind string) {
	n, _ := s.kinds.LoadOrStore(kind, new(atomic.Int64))
	n.(*atomic.Int64).Add(1)
}

func (s *storm) counts() map[string]int64 {
	counts := map[string]int64{}
	s.kinds.Range(func(kind, n any) bool {
		counts[kind.(string)] = n.(*atomic.Int64).Load()
		return true
	})
	return counts
}

const (
	recordOne  = `select custody.record_audit_event('account.login')`
	recordMany = `insert into custody_data.audit_logs (tenant_id, log_entry_id, occurred_at, actor_id, action)
		select custody.current_tenant(), custody_data.new_entry_id(), clock_timestamp(), custody.current_actor_id(), 'account.login' from generate_series(1, 40)`
	recordLate = `insert into custody_data.audit_logs (tenant_id, log_entry_id, occurred_at, actor_id, action, import_id)
		select 'acme', gen_random_uuid(), now() - n * interval '1 hour', gen_random_uuid(), 'account.login', gen_random_uuid() from generate_series(1, 20) n`
)

// write is one transaction of a random kind.
func (s *storm) write(ctx context.Context, conn *pgx.Conn) error {
	type step = string
	begin := step(`begin; select custody.set_context('acme', 'clerk')`)
	id := uuid.New()
	kinds := map[string][]step{
		"committed":          {begin, recordOne, "commit"},
		"rolled back":        {begin, recordOne, recordMany, "rollback"},
		"many rows":          {begin, recordMany, recordOne, "commit"},
		"imported":           {begin, recordLate, "commit"},
		"savepoint undone":   {begin, recordOne, "savepoint a", recordMany, "savepoint b", recordOne, "rollback to a", recordOne, "commit"},
		"savepoint released": {begin, "savepoint a", recordOne, "savepoint b", recordMany, "release b", "release a", "commit"},
		"only a savepoint":   {begin, "savepoint a", recordOne, "rollback to a", "commit"},
		"subtransactions": {begin, `do $$ begin
			perform custody.record_audit_event('account.login');
			for n in 1 .. 70 loop -- more than a backend shows to others
			  begin
			    perform custody.record_audit_event('account.login');
			    if n % 3 = 0 then raise exception 'undone'; end if;
			  exception when raise_exception then perform custody.record_audit_event('account.logout');
			  end;
			end loop; end $$`, "commit"},
		"two tenants, one id": {begin, fmt.Sprintf(`select custody.record_audit_event('account.login', p_log_entry_id => '%s')`, id),
			`select custody.set_context('other', 'clerk')`, fmt.Sprintf(`select custody.record_audit_event('account.login', p_log_entry_id => '%s')`, id), "commit"},
		"long":     {begin, recordOne, `select pg_sleep(0.1)`, recordOne, `select pg_sleep(0.2)`, recordMany, "commit"},
		"prepared": {begin, recordOne, "savepoint a", recordMany, "rollback to a", recordOne, "prepare transaction '" + id.String() + "'"},
	}
	names := make([]string, 0, len(kinds))
	for name := range maps.Keys(kinds) {
		names = append(names, name)
	}
	kind := names[rand.IntN(len(names))]
	if kind == "prepared" {
		s.mu.Lock()
		full := len(s.prepared) >= 20
		s.mu.Unlock()
		if full {
			return nil
		}
	}
	for _, step := range kinds[kind] {
		if _, err := conn.PgConn().Exec(ctx, step).ReadAll(); err != nil {
			return fmt.Errorf("%s: %s: %w", kind, step, err)
		}
	}
	s.count(kind)
	if kind == "prepared" {
		s.mu.Lock()
		s.prepared = append(s.prepared, id.String())
		s.mu.Unlock()
	}
	return nil
}

// broken tells whether an error is that of a server that went down or ended a session.
func broken(err error) bool {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		return strings.HasPrefix(pgErr.Code, "57P")
	}
	return err != nil
}

// until calls a function with a connection, a new one whenever the server ended it.
func (s *storm) until(ctx context.Context, url string, do func(context.Context, *pgx.Conn) error) error {
	for ctx.Err() == nil {
		conn, err := pgx.Connect(ctx, url)
		for err == nil && ctx.Err() == nil {
			err = do(ctx, conn)
		}
		if conn != nil {
			conn.Close(context.WithoutCancel(ctx))
		}
		if err != nil && ctx.Err() == nil {
			if !broken(err) {
				return err
			}
			s.count("sessions ended")
			time.Sleep(20 * time.Millisecond)
		}
	}
	return nil
}

// endPrepared commits or rolls back one prepared transaction after some time.
func (s *storm) endPrepared(ctx context.Context, conn *pgx.Conn) error {
	s.mu.Lock()
	var gid string
	if len(s.prepared) > 0 {
		n := rand.IntN(len(s.prepared))
		gid = s.prepared[n]
		s.prepared = append(s.prepared[:n], s.prepared[n+1:]...)
	}
	s.mu.Unlock()
	time.Sleep(rand.N(60 * time.Millisecond))
	if gid == "" {
		return nil
	}
	how := []string{"commit", "rollback"}[rand.IntN(2)]
	_, err := conn.Exec(ctx, fmt.Sprintf("%s prepared '%s'", how, gid))
	if err == nil {
		s.count(how + " prepared")
	}
	return err
}

// copyIn is a COPY by a superuser: row-level security leaves it to no other role.
func (s *storm) copyIn(ctx context.Context, conn *pgx.Conn) error {
	time.Sleep(20 * time.Millisecond)
	var rows [][]any
	for range 1 + rand.IntN(100) {
		rows = append(rows, []any{"acme", uuid.New(), time.Now(), uuid.New(), "account.login"})
	}
	_, err := conn.CopyFrom(ctx, pgx.Identifier{"custody_data", "audit_logs"}, []string{"tenant_id", "log_entry_id", "occurred_at", "actor_id", "action"}, pgx.CopyFromRows(rows))
	if err == nil {
		s.count("copy")
	}
	return err
}

// Whatever transactions do, and wherever a sealer is killed, every committed event gets
// exactly one leaf and nothing else does.
func TestEveryEventHasOneLeaf(t *testing.T) {
	t.Parallel()
	cluster := newCluster(t)
	migrate(t, cluster, stack.Database)
	s := &storm{bed: bedOf(t, cluster, stack.Database)}
	s.session(t, runner).run(t, "system", `select custody.register_tenant('acme', 'Acme'), custody.register_tenant('other', 'Other'), custody.ensure_audit_partitions(now() - interval '2 days', now() + interval '1 month')`)
	for _, in := range []string{tenant, "other"} { // the actor is known before somebody inserts rows of its own
		s.session(t, runner).run(t, in, `select custody.set_context(custody.current_tenant(), 'clerk'), custody.record_audit_event('account.login')`)
	}

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var wg sync.WaitGroup
	goes := func(name, url string, do func(context.Context, *pgx.Conn) error) {
		wg.Go(func() {
			if err := s.until(ctx, url, do); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
	for range 12 {
		goes("writer", s.URLs[runner], s.write)
	}
	goes("prepared", s.URLs[stack.Superuser], s.endPrepared)
	goes("copy", s.URLs[stack.Superuser], s.copyIn)
	// One transaction outlives several sealings.
	goes("longest", s.URLs[runner], func(ctx context.Context, conn *pgx.Conn) error {
		for _, step := range []string{`begin; select custody.set_context('acme', 'clerk')`, recordOne, `select pg_sleep(1)`, recordOne, "commit"} {
			if _, err := conn.PgConn().Exec(ctx, step).ReadAll(); err != nil {
				return err
			}
		}
		s.count("longest")
		return nil
	})

	// Sealers within this process, whose sessions are ended…
	for range 3 {
		wg.Go(func() {
			for ctx.Err() == nil {
				busy, err := sealUntil(ctx, s.URLs[runner])
				for range busy {
					s.count("busy")
				}
				if ctx.Err() == nil && !broken(err) {
					t.Errorf("sealer: %v", err)
					return
				}
				s.count("sealer ended")
				time.Sleep(10 * time.Millisecond)
			}
		})
	}
	goes("terminate", s.URLs[stack.Superuser], func(ctx context.Context, conn *pgx.Conn) error {
		time.Sleep(50*time.Millisecond + rand.N(150*time.Millisecond))
		// In the middle of its work, if one is.
		_, err := conn.Exec(ctx, `select pg_terminate_backend(a.pid) from pg_stat_activity a where a.application_name = 'sealer' order by a.state = 'active' desc, random() limit 1`)
		return err
	})
	// … and one that is a process, which is killed.
	wg.Go(func() {
		for ctx.Err() == nil {
			command := exec.Command(os.Args[0])
			command.Env = append(os.Environ(), sealEnv+"="+s.URLs[runner])
			if err := command.Start(); err != nil {
				t.Errorf("sealing process: %v", err)
				return
			}
			time.Sleep(100*time.Millisecond + rand.N(300*time.Millisecond))
			_ = command.Process.Kill()
			_ = command.Wait()
			s.count("process killed")
		}
	})
	// Once the server's own process for a sealer is killed: the server recovers from its log.
	time.Sleep(2 * time.Second)
	for killed := false; !killed && ctx.Err() == nil; {
		var pid int
		err := s.admin.QueryRow(ctx, `select coalesce((select a.pid from pg_stat_activity a where a.application_name = 'sealer' and a.state = 'active' and a.query like '%seal_audit_log%' limit 1), 0)`).Scan(&pid)
		require.NoError(t, err)
		if killed = pid != 0; killed {
			require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
		}
	}
	time.Sleep(3 * time.Second)
	// A busy machine takes longer until everything has come about.
	for _, kind := range []string{"committed", "rolled back", "many rows", "imported", "savepoint undone", "savepoint released", "only a savepoint", "subtransactions",
		"two tenants, one id", "long", "prepared", "commit prepared", "rollback prepared", "copy", "longest", "busy", "sealer ended", "process killed", "sessions ended"} {
		for s.counts()[kind] == 0 {
			require.NoError(t, ctx.Err(), "%s never came about", kind)
			time.Sleep(10 * time.Millisecond)
		}
	}
	cancel()
	wg.Wait()

	b := &storm{bed: s.again(t)}
	require.Eventually(t, func() bool {
		return ask[int](t, b.bed, `select count(*) from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()`) == 0
	}, time.Minute, 10*time.Millisecond, "what was cancelled has ended")
	for _, gid := range collect[struct{ GID string }](t, b.admin, `select gid from pg_prepared_xacts`) {
		_, err := b.admin.Exec(t.Context(), fmt.Sprintf("commit prepared '%s'", gid.GID))
		require.NoError(t, err)
	}
	b.settle(t)
	sealer := b.session(t, runner)
	sealAll(t, sealer.Conn)
	l := requireLedger(t, b.admin, 0, 0)
	require.Equal(t, []string{"sealed"}, l.kinds())
	require.Equal(t, 1, ask[int](t, b.bed, `select count(*) from custody_data.incarnations`), "the server was started again in the same life")
	t.Logf("%d leaves; %v", l.size, s.counts())

	t.Run("nobody waits for a sealer", b.nobodyWaits)
	t.Run("who holds it back", b.whoHolds)
	t.Run("under other settings", b.sealsAlike)
	t.Run("who ends while a life is opened", b.endsInOpening)
}

// nobodyWaits leaves a sealer's transaction open.
func (s *storm) nobodyWaits(t *testing.T) {
	sealer, other, app := s.session(t, runner), s.session(t, runner), s.session(t, app)
	app.run(t, tenant, recordOne)
	require.NoError(t, sealer.tryBegin(t.Context(), "", "system", ""))
	require.Contains(t, sealer.must(t, `select custody.seal_audit_log()`), `"busy": false`)

	for _, waits := range []*session{other, app} {
		waits.must(t, `set lock_timeout = '100ms'`)
	}
	app.run(t, tenant, recordOne)
	app.run(t, tenant, recordMany)
	other.run(t, tenant, recordLate)
	second, err := sealOnce(t.Context(), other.Conn, 10000)
	require.NoError(t, err)
	require.Equal(t, sealed{Busy: true}, second)
	other.run(t, "system", `select custody.sealing_status(), custody.ledger_head()`)
	app.refused(t, "0A000", tenant, `copy custody_data.audit_logs (tenant_id, log_entry_id, occurred_at, actor_id, action) from stdin`)

	sealer.rollback(t)
	sealAll(t, other.Conn)
	requireLedger(t, s.again(t).admin, 0, 0)
}

// whoHolds asks which transaction delays sealing.
func (s *storm) whoHolds(t *testing.T) {
	sealer, app := s.session(t, runner), s.session(t, app)
	type status struct {
		Unsealed int64
		Lags     bool
		XID      uint64
		Kind     string
		Holder   string
		Database string
	}
	read := func() (now status) {
		t.Helper()
		require.NoError(t, pgx.BeginFunc(t.Context(), sealer.Conn, func(tx pgx.Tx) error {
			return tx.QueryRow(t.Context(), `select s.unsealed_events, coalesce(s.age > '0' and s.age < '1 minute' and s.oldest_recorded_at <= clock_timestamp(), false), s.horizon::text::bigint,
				coalesce(s.holder_kind, ''), coalesce(s.holder, ''), coalesce(s.holder_database, '')
				from custody.set_context('system', 'tester'), custody.sealing_status() s`).Scan(&now.Unsealed, &now.Lags, &now.XID, &now.Kind, &now.Holder, &now.Database)
		}))
		return now
	}
	other := s.session(t, runner)
	other.run(t, tenant, recordOne)
	sealAll(t, sealer.Conn)
	idle := read()
	require.Equal(t, status{XID: idle.XID}, idle, "nothing waits and nobody is waited for")

	app.begin(t, "")
	app.must(t, recordOne)
	held := uint64(value[int64](t, app.Conn, `select pg_current_xact_id()::text::bigint`))
	other.run(t, tenant, recordMany)
	sealed, err := sealOnce(t.Context(), sealer.Conn, 10000)
	require.NoError(t, err)
	require.Zero(t, sealed.Sealed)
	require.Equal(t, status{40, true, held, "session", fmt.Sprint(app.pid), stack.Database}, read())

	app.must(t, `prepare transaction 'held'`)
	require.Equal(t, status{40, true, held, "prepared", "held", stack.Database}, read())
	sealed, err = sealOnce(t.Context(), sealer.Conn, 10000)
	require.NoError(t, err)
	require.Zero(t, sealed.Sealed)

	app.must(t, `commit prepared 'held'`)
	now := read()
	require.Equal(t, status{41, true, now.XID, "", "", ""}, now)
	require.EqualValues(t, 41, sealAll(t, sealer.Conn).Sealed)
	now = read()
	require.Equal(t, status{XID: now.XID}, now)
}

// sealsAlike seals in sessions whose settings change plans and literals.
func (s *storm) sealsAlike(t *testing.T) {
	sealer, writer := s.session(t, runner), s.session(t, runner)
	for _, settings := range []string{
		"standard_conforming_strings = off; set escape_string_warning = off", "bytea_output = escape", "search_path = ''", "search_path = pg_temp, custody_data", "timezone = 'Asia/Kathmandu'; set datestyle = 'German'",
		"enable_indexscan = off; set enable_indexonlyscan = off", "enable_hashagg = off; set enable_hashjoin = off", "enable_mergejoin = off; set enable_nestloop = off; set enable_material = off",
		"enable_sort = off; set enable_incremental_sort = off", "enable_partition_pruning = off; set enable_partitionwise_join = on; set enable_partitionwise_aggregate = on", "work_mem = '64kB'", "jit = on; set jit_above_cost = 0",
		"force_parallel_mode = on; set parallel_setup_cost = 0; set parallel_tuple_cost = 0; set min_parallel_table_scan_size = 0", "plan_cache_mode = force_generic_plan",
	} {
		for _, setting := range strings.Split("set "+settings, "; ") {
			if _, err := sealer.Exec(t.Context(), setting); codeOf(err) == "42704" && strings.Contains(setting, "force_parallel_mode") {
				sealer.must(t, "set debug_parallel_query = on") // its name from Postgres 16 on
			} else {
				require.NoError(t, err, setting)
			}
		}
		for range 8 {
			writer.run(t, tenant, recordMany)
		}
		total := int64(0)
		for {
			batch, err := sealOnce(t.Context(), sealer.Conn, 100+rand.IntN(100))
			require.NoError(t, err, settings)
			if total += batch.Sealed; !batch.More {
				break
			}
		}
		require.EqualValues(t, 320, total, settings)
		sealer.must(t, "reset all")
	}
	requireLedger(t, s.again(t).admin, 0, 0)
	// What would have to be seen by no policy is refused, not left out.
	sealer.must(t, "set row_security = off")
	_, err := sealOnce(t.Context(), sealer.Conn, 100)
	requireCode(t, err, "42501")
}

// endsInOpening has the oldest transaction end while a sealer opens another life: what
// is sealed from there on is decided afterwards.
func (s *storm) endsInOpening(t *testing.T) {
	sealer, oldest := s.session(t, runner), s.session(t, runner)
	sealAll(t, sealer.Conn)
	_, err := s.again(t).admin.Exec(t.Context(), `insert into custody_data.incarnations (system_identifier, timeline, opened_at) values (1, 1, clock_timestamp())`)
	require.NoError(t, err)
	oldest.begin(t, "")
	oldest.must(t, recordOne)
	oldest.must(t, `select pg_advisory_xact_lock(hashtextextended('pgcustody.incarnation', 0))`)
	require.NoError(t, sealer.tryBegin(t.Context(), "", "system", ""))
	opening := sealer.send(t.Context(), `select custody.seal_audit_log()`)
	s.again(t).requireWaiting(t, opening, oldest)
	oldest.commit(t)
	out, err := opening.settle(t)
	require.NoError(t, err)
	require.Contains(t, out, `"opened": true`)
	sealAll(t, sealer.Conn)
	l := requireLedger(t, s.again(t).admin, 0, 0)
	require.Equal(t, []string{"sealed", "swept"}, l.kinds())
}
