package verify_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"iter"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"pgcustody/cmd/devstack/stack/stacktest"
	"pgcustody/db"
	"pgcustody/jobs"
	"pgcustody/jobs/ledger"
	"pgcustody/jobs/segment"
	"pgcustody/jobs/store"
	"pgcustody/jobs/verify"
)

const origin = "example.com/custody"

// event is a leaf of the fixture's tree and whose it is.
type event struct {
	leaf     int64
	xid      uint64
	id       uuid.UUID
	occurred time.Time
	tenant   string
}

// fixture is a database that is sealed and anchored, and partly archived, with its
// bucket and its signer.
type fixture struct {
	testing.TB
	name   string
	conn   *pgx.Conn // as superuser, triggers off
	store  store.Store
	signer note.Signer
	vkey   string

	events   []event // by leaf
	unlocked string  // object that only writes without a lock
	anchors  []ledger.Checkpoint
	notes    []string
}

// newSigner makes a key of the log's.
func newSigner(t testing.TB) (note.Signer, string) {
	t.Helper()
	private, public, err := note.GenerateKey(rand.Reader, origin)
	require.NoError(t, err)
	signer, err := note.NewSigner(private)
	require.NoError(t, err)
	return signer, public
}

var setAWS sync.Once

func newStore(t testing.TB) store.Store {
	t.Helper()
	bucket := stacktest.Bucket(t)
	setAWS.Do(func() {
		for name, value := range stacktest.Shared(t).Env() {
			if strings.HasPrefix(name, "AWS_") {
				require.NoError(t, os.Setenv(name, value)) //nolint:usetesting // for all tests, which run in parallel
			}
		}
	})
	s, err := store.OpenURL(t.Context(), "s3://"+bucket)
	require.NoError(t, err)
	return s
}

func (f *fixture) exec(query string, args ...any) {
	f.Helper()
	tag, err := f.conn.Exec(f.Context(), query, args...)
	require.NoError(f, err, query)
	if verb := strings.Fields(query)[0]; verb == "update" || verb == "delete" {
		require.NotZero(f, tag.RowsAffected(), "nothing was tampered with: %s", query)
	}
}

func (f *fixture) connect() {
	f.Helper()
	conn, err := pgx.Connect(f.Context(), stacktest.Shared(f.TB).SuperURL(f.name))
	require.NoError(f, err)
	f.conn = conn
	f.Cleanup(func() { _ = conn.Close(context.Background()) })
	f.exec("set session_replication_role = replica")
	f.exec("set search_path = ''")
}

// inSystem runs work as the runner in the context of tenant system.
func (f *fixture) inSystem(work func(tx pgx.Tx) error) {
	f.Helper()
	conn, err := pgx.Connect(f.Context(), stacktest.Shared(f.TB).URL("custody_runner", f.name))
	require.NoError(f, err)
	defer conn.Close(context.Background())
	require.NoError(f, jobs.InContext(f.Context(), conn, jobs.Scope{Tenant: "system", Actor: "tester", Purpose: "test"}, work))
}

// insert writes events that happened, and were recorded, from a time on, moments
// apart, in transactions of seven.
func (f *fixture) insert(n int, from time.Time) {
	f.Helper()
	for done := 0; done < n; done += 7 {
		f.exec(`insert into custody_data.audit_logs (tenant_id, log_entry_id, occurred_at, recorded_at, actor_id, subject_id, action, resource_type,
				resource_id, result, purpose, metadata, personal)
			select case when n % 3 = 0 then 'globex' else 'acme' end, gen_random_uuid(), $1::timestamptz + n * interval '10 ms', $1::timestamptz + n * interval '15 ms',
				gen_random_uuid(), gen_random_uuid(), 'phi.access', 'chart', 'chart-' || n, 'success', 'care',
				jsonb_build_object('n', n, 'ü', E'\n"'), '\x01'::bytea || sha256(n::text::bytea) || sha256(n::text::bytea) || '\x0102030405060708'
			from generate_series($2::int, $3::int) n`, from, done, min(done+7, n)-1)
	}
}

// seal waits until everything is sealed, but for what says that it is of transactions
// yet to come.
func (f *fixture) seal() {
	f.Helper()
	require.Eventually(f, func() bool {
		f.inSystem(func(tx pgx.Tx) error {
			_, err := tx.Exec(f.Context(), "select custody.seal_audit_log(1000)")
			return err
		})
		var left int64
		require.NoError(f, f.conn.QueryRow(f.Context(), `select count(*) from custody_data.audit_logs a, custody_data.ledger_heads h
			where a.xid >= h.sealed_to and (a.xid > h.sealed_to or h.sealed_to_entry_id is null or a.log_entry_id > h.sealed_to_entry_id) and a.xid < '900000000000'`).Scan(&left))
		return left == 0
	}, 5*time.Minute, 20*time.Millisecond, "events stay unsealed")
}

// leaves reads the hashes of level 0.
func (f *fixture) leaves() (hashes []tlog.Hash) {
	f.Helper()
	rows, err := f.conn.Query(f.Context(), "select hashes from custody_data.ledger_tiles where level = 0 order by tile_index")
	require.NoError(f, err)
	var tile []byte
	_, err = pgx.ForEachRow(rows, []any{&tile}, func() error {
		for len(tile) > 0 {
			hashes = append(hashes, tlog.Hash(tile[:32]))
			tile = tile[32:]
		}
		return nil
	})
	require.NoError(f, err)
	return hashes
}

// levels are the hashes of all levels of tiles.
func levels(leaves []tlog.Hash) [][]tlog.Hash {
	all := [][]tlog.Hash{leaves}
	for len(leaves) >= 256 {
		var above []tlog.Hash
		for ; len(leaves) >= 256; leaves = leaves[256:] {
			above = append(above, rootOf(leaves[:256]))
		}
		all = append(all, above)
		leaves = above
	}
	return all
}

func rootOf(hashes []tlog.Hash) tlog.Hash {
	switch len(hashes) {
	case 0:
		root, _ := tlog.TreeHash(0, nil)
		return root
	case 1:
		return hashes[0]
	}
	split := 1
	for split*2 < len(hashes) {
		split *= 2
	}
	return tlog.NodeHash(rootOf(hashes[:split]), rootOf(hashes[split:]))
}

func flat(hashes []tlog.Hash) []byte {
	var b []byte
	for _, h := range hashes {
		b = append(b, h[:]...)
	}
	return b
}

func (f *fixture) put(key string, content []byte) {
	f.Helper()
	_, err := f.store.Put(f.Context(), key, bytes.NewReader(content), store.PutOptions{RetainUntil: time.Now().Add(24 * time.Hour)})
	require.NoError(f, err)
}

// head of the ledger as the database says it.
func (f *fixture) head() (size int64, incarnation uuid.UUID, sealedTo, system string, timeline int64) {
	f.Helper()
	require.NoError(f, f.conn.QueryRow(f.Context(), `select h.tree_size, h.incarnation_id, h.sealed_to::text, i.system_identifier::text, i.timeline
		from custody_data.ledger_heads h join custody_data.incarnations i using (incarnation_id)`).Scan(&size, &incarnation, &sealedTo, &system, &timeline))
	return size, incarnation, sealedTo, system, timeline
}

func (f *fixture) checkpoint(number, size int64, root tlog.Hash) ledger.Checkpoint {
	f.Helper()
	_, incarnation, sealedTo, system, timeline := f.head()
	var next string
	require.NoError(f, f.conn.QueryRow(f.Context(), "select pg_snapshot_xmax(pg_current_snapshot())::text").Scan(&next))
	return ledger.Checkpoint{Origin: origin, Size: size, Root: root, Anchored: ledger.Anchored{
		Number: number, Time: time.Now().UTC().Truncate(time.Second), SystemIdentifier: system, Timeline: timeline, IncarnationID: incarnation, SealedTo: sealedTo, NextXID: next,
	}}
}

func sign(t testing.TB, signer note.Signer, c ledger.Checkpoint) string {
	t.Helper()
	text, err := c.Text()
	require.NoError(t, err)
	signed, err := note.Sign(&note.Note{Text: text}, signer)
	require.NoError(t, err)
	return string(signed)
}

func (f *fixture) putTiles(leaves []tlog.Hash) {
	f.Helper()
	for level, hashes := range levels(leaves) {
		for index := int64(0); len(hashes) > 0; index++ {
			width := min(len(hashes), 256)
			key := ledger.TileKey(origin, level, index, width)
			if _, err := f.store.Head(f.Context(), key, ""); err != nil {
				f.put(key, flat(hashes[:width]))
			}
			hashes = hashes[width:]
		}
	}
}

// anchor puts tiles and a checkpoint of the whole tree into the bucket, and its
// record into the database.
func (f *fixture) anchor() {
	f.Helper()
	leaves := f.leaves()
	f.putTiles(leaves)
	c := f.checkpoint(int64(len(f.anchors))+1, int64(len(leaves)), rootOf(leaves))
	signed := sign(f.TB, f.signer, c)
	f.put(ledger.CheckpointKey(origin, c.Number), []byte(signed))
	f.put(ledger.NewestKey(origin), []byte(signed))
	f.anchors, f.notes = append(f.anchors, c), append(f.notes, signed)
	f.record(c, signed)
}

func (f *fixture) record(c ledger.Checkpoint, signed string) {
	f.exec(`insert into custody_data.ledger_checkpoints (number, tree_size, root_hash, note, object_key, anchored_at) values ($1, $2, $3, $4, $5, $6)`,
		c.Number, c.Size, c.Root[:], signed, ledger.CheckpointKey(origin, c.Number), c.Time)
}

// opens the archive of every fixture.
var opens = func() *age.X25519Identity {
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		panic(err)
	}
	return identity
}()

// archive puts the closed days into the bucket and on record.
func (f *fixture) archive() {
	f.Helper()
	type open struct {
		day    time.Time
		part   int
		leaves string
		until  time.Time
	}
	var segments []open
	f.inSystem(func(tx pgx.Tx) error {
		rows, err := tx.Query(f.Context(), "select day, part, leaves::text, retain_until from custody.open_segments()")
		if err != nil {
			return err
		}
		segments, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (s open, err error) {
			return s, row.Scan(&s.day, &s.part, &s.leaves, &s.until)
		})
		return err
	})
	for _, s := range segments {
		leaves, err := segment.ParseRuns(s.leaves)
		require.NoError(f, err)
		f.archiveSegment(segment.NewName(s.day, s.part), leaves, s.until)
	}
}

// archiveSegment archives leaves, whose order is that of (xid, id) here.
func (f *fixture) archiveSegment(name segment.Name, leaves segment.Runs, until time.Time) {
	f.Helper()
	rows, err := f.conn.Query(f.Context(), `select custody.audit_entry(a) from custody_data.audit_logs a
		where a.occurred_at >= $1 and a.occurred_at < $1::timestamptz + interval '1 day' order by a.xid, a.log_entry_id`, name.Day)
	require.NoError(f, err)
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(f, err)
	require.EqualValues(f, len(lines), leaves.Count())
	document := f.putSegment(name, leaves, lines, until)
	digest := sum(document)
	manifest, err := segment.DecodeManifest(bytes.NewReader(document))
	require.NoError(f, err)
	f.inSystem(func(tx pgx.Tx) error {
		_, err = tx.Exec(f.Context(), "select custody.record_segment($1, $2, $3, $4, $5, $6, $7, $8)",
			name.Day, name.Part, name.ObjectKey(), name.ManifestKey(), string(document), digest, until, manifest.People)
		return err
	})
}

func sum(content []byte) []byte {
	digest := sha256.Sum256(content)
	return digest[:]
}

// putSegment puts events and their manifest into the bucket.
func (f *fixture) putSegment(name segment.Name, leaves segment.Runs, lines []string, until time.Time) []byte {
	f.Helper()
	var object bytes.Buffer
	writer, err := segment.NewWriter(&object, []age.Recipient{opens.Recipient()})
	require.NoError(f, err)
	m := segment.Manifest{Version: segment.ManifestVersion, EntryVersion: 1, SchemaVersion: 12, SoftwareVersion: "test", Day: segment.Date(name.Day), Part: name.Part,
		Leaves: leaves, ObjectKey: name.ObjectKey(), Compression: "zstd", Encryption: "age", Recipients: []string{opens.Recipient().String()},
		RetainUntil: until.UTC(), ArchivedAt: time.Now().UTC()}
	root, hasher, people := segment.NewRoot(), segment.NewHasher(), segment.NewPeople(int64(len(lines)))
	for _, line := range lines {
		require.NoError(f, writer.WriteEntry([]byte(line)))
		e, ok := segment.ParseEntry([]byte(line))
		require.True(f, ok, line)
		if m.FirstOccurredAt.IsZero() || e.OccurredAt.Before(m.FirstOccurredAt) {
			m.FirstOccurredAt = e.OccurredAt
		}
		if e.OccurredAt.After(m.LastOccurredAt) {
			m.LastOccurredAt = e.OccurredAt
		}
		root.Append(hasher.Leaf([]byte(line)))
		people.Add(segment.NewMembers().Append(nil, &e)...)
	}
	sums, err := writer.Close()
	require.NoError(f, err)
	m.Root, m.People, m.Rows = root.Sum(), people.Bytes(), sums.Rows
	m.PlainBytes, m.PlainSHA256, m.CompressedBytes, m.CompressedSHA256 = sums.PlainBytes, sums.PlainSHA256, sums.CompressedBytes, sums.CompressedSHA256
	m.StoredBytes, m.StoredSHA256 = sums.StoredBytes, sums.StoredSHA256
	put, err := f.store.Put(f.Context(), name.ObjectKey(), &object, store.PutOptions{RetainUntil: until, IfNoneMatch: true})
	require.NoError(f, err)
	m.ObjectVersion = put.Version
	document, err := m.Encode()
	require.NoError(f, err)
	_, err = f.store.Put(f.Context(), name.ManifestKey(), bytes.NewReader(document), store.PutOptions{RetainUntil: until, IfNoneMatch: true})
	require.NoError(f, err)
	return document
}

// readEvents remembers which leaf is whose.
func (f *fixture) readEvents() {
	f.Helper()
	rows, err := f.conn.Query(f.Context(), "select xids, entry_ids from custody_data.ledger_entries order by tile_index")
	require.NoError(f, err)
	f.events = nil
	var xids, ids []byte
	_, err = pgx.ForEachRow(rows, []any{&xids, &ids}, func() error {
		for ; len(xids) > 0; xids, ids = xids[8:], ids[16:] {
			f.events = append(f.events, event{leaf: int64(len(f.events)), xid: binary.BigEndian.Uint64(xids), id: uuid.UUID(ids[:16])})
		}
		return nil
	})
	require.NoError(f, err)
	at := map[uuid.UUID]int{}
	for i := range f.events {
		at[f.events[i].id] = i
	}
	rows, err = f.conn.Query(f.Context(), "select log_entry_id, occurred_at, tenant_id from custody_data.audit_logs")
	require.NoError(f, err)
	var e event
	_, err = pgx.ForEachRow(rows, []any{&e.id, &e.occurred, &e.tenant}, func() error {
		if i, ok := at[e.id]; ok {
			f.events[i].occurred, f.events[i].tenant = e.occurred, e.tenant
		}
		return nil
	})
	require.NoError(f, err)
}

// empty makes a migrated database with two tenants, a bucket and a signer.
func empty(t testing.TB) *fixture {
	t.Helper()
	f := &fixture{TB: t, name: "verify_" + strings.ToLower(rand.Text()[:16]), store: newStore(t)}
	s := stacktest.Shared(t)
	require.NoError(t, s.CreateDatabase(t.Context(), f.name, stacktest.DB(t).Name))
	f.connect()
	f.signer, f.vkey = newSigner(t)
	f.inSystem(func(tx pgx.Tx) error {
		for _, tenant := range []string{"acme", "globex"} {
			if _, err := tx.Exec(t.Context(), "select custody.register_tenant($1, $1)", tenant); err != nil {
				return err
			}
		}
		return nil
	})
	return f
}

// build makes a fixture with events of three months, some of them archived.
func build(t testing.TB) *fixture {
	t.Helper()
	f := empty(t)
	today := time.Now().UTC().Truncate(24 * time.Hour)
	earlier, before := today.AddDate(0, 0, -70), today.AddDate(0, 0, -2)
	f.inSystem(func(tx pgx.Tx) error {
		_, err := tx.Exec(t.Context(), "select custody.ensure_audit_partitions($1, $2)", earlier, today)
		return err
	})
	f.insert(150, earlier.Add(8*time.Hour))
	f.insert(120, before.Add(8*time.Hour))
	f.seal()
	f.anchor()
	f.archive()
	f.insert(330, time.Now().Add(-time.Minute))
	f.seal()
	f.anchor()
	f.insert(150, time.Now().Add(-time.Minute))
	f.seal()
	f.anchor()
	f.insert(5, time.Now().Add(-time.Second)) // waits to be sealed
	f.readEvents()
	return f
}

// template is a fixture that others are copies of. Its bucket is read only.
var template = struct {
	sync.Once
	*fixture
}{}

// copyOf makes a database like the template's, on the same bucket.
func copyOf(t testing.TB) *fixture {
	t.Helper()
	template.Do(func() {
		f := build(t)
		// Guards are ENABLE ALWAYS: session_replication_role does not pass them, a superuser does.
		f.exec(`do $$ declare r record; begin
			for r in select c.oid::regclass as name from pg_catalog.pg_class c where c.relnamespace = 'custody_data'::regnamespace and c.relkind in ('r', 'p') loop
				execute format('alter table %s disable trigger all', r.name);
			end loop; end $$`)
		require.NoError(t, f.conn.Close(t.Context()))
		template.fixture = f
	})
	require.NotNil(t, template.fixture, "the template could not be made")
	f := *template.fixture
	f.TB, f.name = t, "verify_"+strings.ToLower(rand.Text()[:16])
	s := stacktest.Shared(t)
	require.NoError(t, s.CreateDatabase(t.Context(), f.name, template.name))
	t.Cleanup(func() { _ = s.DropDatabase(context.Background(), f.name) })
	f.events = slices.Clone(f.events)
	f.anchors, f.notes = slices.Clone(f.anchors), slices.Clone(f.notes)
	f.connect()
	return &f
}

// ownLog gives the fixture a bucket of its own for the log; the archive stays where
// it is, since manifests name versions.
func (f *fixture) ownLog() {
	f.Helper()
	f.only(func(_ string, content []byte) []byte { return content })
}

// split keeps the log in one bucket and the rest in another.
type split struct {
	store.Store
	log store.Store
}

func (s split) of(key string) store.Store {
	if strings.HasPrefix(key, "log/") {
		return s.log
	}
	return s.Store
}

func (s split) Put(ctx context.Context, key string, body io.Reader, o store.PutOptions) (store.PutResult, error) {
	return s.of(key).Put(ctx, key, body, o)
}
func (s split) Get(ctx context.Context, key, version string) (*store.Object, error) {
	return s.of(key).Get(ctx, key, version)
}
func (s split) Head(ctx context.Context, key, version string) (store.Info, error) {
	return s.of(key).Head(ctx, key, version)
}
func (s split) History(ctx context.Context, prefix string) iter.Seq2[store.Info, error] {
	return s.of(prefix).History(ctx, prefix)
}

// verify runs a verification as the superuser, or as another login.
func (f *fixture) verify(change ...func(*verify.Options)) *verify.Report {
	f.Helper()
	o := verify.Options{Database: f.conn, Store: f.store, Origin: origin, Identities: []age.Identity{opens}}
	key, err := ledger.ParseVerifierKey(f.vkey)
	require.NoError(f, err)
	o.Keys = []ledger.VerifierKey{key}
	for _, c := range change {
		c(&o)
	}
	report, err := verify.Run(f.Context(), o)
	require.NoError(f, err)
	return report
}

// told writes findings as the cases of the test do.
func told(findings []verify.Finding) []string {
	list := []string{}
	for _, x := range findings {
		s := string(x.Kind)
		if x.Leaf != nil {
			s += fmt.Sprintf(" %d", *x.Leaf)
			if x.Last != nil {
				s += fmt.Sprintf("-%d", *x.Last)
			}
		}
		if x.Event != nil {
			s += " " + x.Event.String()
		}
		if len(x.Fields) > 0 {
			s += " " + strings.Join(x.Fields, ",")
		}
		if x.Checkpoint != nil {
			s += fmt.Sprintf(" #%d", *x.Checkpoint)
		} else if x.Leaf == nil && x.Object != "" {
			s += " " + x.Object
		}
		list = append(list, s)
	}
	slices.Sort(list)
	return list
}

func deleteOf(bucket, key string) *s3.DeleteObjectInput {
	return &s3.DeleteObjectInput{Bucket: &bucket, Key: &key}
}

func forkRoot() []byte {
	root := tlog.RecordHash([]byte("another tree"))
	return root[:]
}

// only gives the fixture a log of its own, in which change has made something else
// of the objects, or left them out.
func (f *fixture) only(change func(key string, content []byte) []byte) {
	f.Helper()
	mine := newStore(f.TB)
	for info, err := range f.store.List(f.Context(), "log/") {
		require.NoError(f, err)
		object, err := f.store.Get(f.Context(), info.Key, "")
		require.NoError(f, err)
		content, err := io.ReadAll(object)
		require.NoError(f, err)
		require.NoError(f, object.Close())
		if content = change(info.Key, content); content == nil {
			continue
		}
		o := store.PutOptions{RetainUntil: time.Now().Add(24 * time.Hour)}
		if info.Key == f.unlocked {
			o = store.PutOptions{}
		}
		_, err = mine.Put(f.Context(), info.Key, bytes.NewReader(content), o)
		require.NoError(f, err)
	}
	f.store = split{Store: f.store, log: mine}
}

// login connects another login.
func (f *fixture) login(name string) *pgx.Conn {
	f.Helper()
	conn, err := pgx.Connect(f.Context(), stacktest.Shared(f.TB).URL(name, f.name))
	require.NoError(f, err)
	f.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func inSystemContext(ctx context.Context, tx pgx.Tx) error {
	purpose := "verify"
	return db.New().SetContext(ctx, tx, db.SetContextParams{Tenant: "system", Actor: "verifier", Purpose: &purpose})
}
