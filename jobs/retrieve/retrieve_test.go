package retrieve

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"pgcustody/cmd/devstack/stack/stacktest"
	"pgcustody/jobs/segment"
	"pgcustody/jobs/store"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("net/http.(*persistConn).readLoop"), goleak.IgnoreAnyFunction("net/http.(*persistConn).writeLoop"))
}

// log is an archive and its tree, kept by the test.
type log struct {
	t        testing.TB
	store    store.Store
	identity *age.X25519Identity
	leaves   [][]byte // lines, by leaf
	record   []Segment
}

func newLog(t testing.TB) *log {
	t.Helper()
	bucket := stacktest.Bucket(t)
	for name, value := range stacktest.Shared(t).Env() {
		if strings.HasPrefix(name, "AWS_") {
			require.NoError(t, os.Setenv(name, value)) //nolint:usetesting // tests run side by side, and all have the same store
		}
	}
	s, err := store.OpenURL(t.Context(), "s3://"+bucket)
	require.NoError(t, err)
	identity, err := age.GenerateX25519Identity()
	require.NoError(t, err)
	return &log{t: t, store: s, identity: identity}
}

var (
	theDay = time.Date(2026, 3, 9, 0, 0, 0, 0, time.UTC)
	ada    = uuid.MustParse("01a1fd93-0000-4000-8000-00000000ada0")
	bob    = uuid.MustParse("01a1fd93-0000-4000-8000-00000000b0b0")
)

// entry is a line of the archive.
func entry(n int, at time.Time, tenant string, actor, subject uuid.UUID, action string) []byte {
	about := ""
	if subject != uuid.Nil {
		about = `,"subject_id":"` + subject.String() + `"`
	}
	return fmt.Appendf(nil, `{"v":1,"log_entry_id":"01a1fd93-0000-7000-8000-%012x","occurred_at":"%s","recorded_at":"%[2]s","tenant_id":"%s","actor_id":"%s"%s,"action":"%s",`+
		`"resource_type":"document","resource_id":"file %[1]d of \"many\"","result":"success","purpose":"care","metadata":{"count": %[1]d, "source": "test"},"personal":"AQAA","db_role":"app","xid":"%[1]d"}`,
		n, at.Format("2006-01-02T15:04:05.000000Z"), tenant, actor, about, action)
}

// seal gives a line the next leaf.
func (l *log) seal(line []byte) (leaf int64) {
	l.leaves = append(l.leaves, line)
	return int64(len(l.leaves)) - 1
}

// runs of leaves.
func runs(leaves []int64) (r segment.Runs) {
	for _, leaf := range leaves {
		if n := len(r); n > 0 && r[n-1].End() == leaf {
			r[n-1].Count++
		} else {
			r = append(r, segment.Run{First: leaf, Count: 1})
		}
	}
	return r
}

// pack is what the archive puts into an object and its manifest.
func (l *log) pack(day time.Time, part int, leaves []int64) (*segment.Manifest, []byte) {
	l.t.Helper()
	var out bytes.Buffer
	w, err := segment.NewWriter(&out, []age.Recipient{l.identity.Recipient()})
	require.NoError(l.t, err)
	people, root, hasher := segment.NewPeople(int64(len(leaves))), segment.NewRoot(), segment.NewHasher()
	name := segment.NewName(day, part)
	m := &segment.Manifest{
		Version: segment.ManifestVersion, EntryVersion: 1, SchemaVersion: 13, SoftwareVersion: "test", Day: segment.Date(name.Day), Part: part,
		Leaves: runs(leaves), ObjectKey: name.ObjectKey(), ObjectVersion: "none", SupersededVersions: []string{},
		Compression: "zstd", Encryption: "age", Recipients: []string{l.identity.Recipient().String()},
		RetainUntil: time.Now().Add(time.Hour).UTC(), ArchivedAt: time.Now().UTC(),
	}
	for _, leaf := range leaves {
		line := l.leaves[leaf]
		require.NoError(l.t, w.WriteEntry(line))
		e, ok := segment.ParseEntry(line)
		require.True(l.t, ok, "%s", line)
		people.Add(segment.NewMembers().Append(nil, &e)...)
		root.Append(hasher.Leaf(line))
		if m.FirstOccurredAt.IsZero() || e.OccurredAt.Before(m.FirstOccurredAt) {
			m.FirstOccurredAt = e.OccurredAt
		}
		if e.OccurredAt.After(m.LastOccurredAt) {
			m.LastOccurredAt = e.OccurredAt
		}
	}
	sums, err := w.Close()
	require.NoError(l.t, err)
	m.Root, m.Rows, m.People = root.Sum(), sums.Rows, people.Bytes()
	m.PlainBytes, m.CompressedBytes, m.StoredBytes = sums.PlainBytes, sums.CompressedBytes, sums.StoredBytes
	m.PlainSHA256, m.CompressedSHA256, m.StoredSHA256 = sums.PlainSHA256, sums.CompressedSHA256, sums.StoredSHA256
	return m, out.Bytes()
}

func (l *log) put(key string, content []byte) (version string) {
	l.t.Helper()
	put, err := l.store.Put(context.Background(), key, bytes.NewReader(content), store.PutOptions{})
	require.NoError(l.t, err)
	return put.Version
}

// archive stores a segment and puts it on record.
func (l *log) archive(day time.Time, part int, leaves []int64) *segment.Manifest {
	l.t.Helper()
	m, object := l.pack(day, part, leaves)
	m.ObjectVersion = l.put(m.ObjectKey, object)
	l.putManifest(m)
	return m
}

func (l *log) putManifest(m *segment.Manifest) {
	l.t.Helper()
	text, err := m.Encode()
	require.NoError(l.t, err)
	l.put(m.Name().ManifestKey(), text)
	of := Segment{ObjectKey: m.ObjectKey, ManifestKey: m.Name().ManifestKey(), ManifestSHA256: sha256.Sum256(text), Leaves: m.Leaves}
	for i, s := range l.record {
		if s.ManifestKey == of.ManifestKey {
			l.record[i] = of
			return
		}
	}
	l.record = append(l.record, of)
}

// Segments is the record's answer: by day, and not by person.
func (l *log) Segments(_ context.Context, q Query) (found []Segment, _ error) {
	first, last := q.Days()
	for _, s := range l.record {
		name, err := segment.ParseKey(s.ManifestKey)
		if err != nil {
			return nil, err
		}
		if !name.Day.Before(first) && !name.Day.After(last) {
			found = append(found, s)
		}
	}
	return found, nil
}

func (l *log) Tiles(_ context.Context, indexes []int64) ([][]byte, error) {
	hasher := segment.NewHasher()
	tiles := make([][]byte, len(indexes))
	for i, index := range indexes {
		for leaf := index * tileWidth; leaf < min((index+1)*tileWidth, int64(len(l.leaves))); leaf++ {
			hash := hasher.Leaf(l.leaves[leaf])
			tiles[i] = append(tiles[i], hash[:]...)
		}
	}
	return tiles, nil
}

func (l *log) options(q Query) Options {
	return Options{Store: l.store, Catalog: l, Tree: l, Identities: []age.Identity{l.identity}, Query: q}
}

// get gives all that a retrieval hands out, as lines.
func get(o Options) (lines []string, leaves []int64, r Result, err error) {
	r, err = Run(context.Background(), o, func(e *Event) error {
		lines = append(lines, string(e.Line))
		leaves = append(leaves, e.Leaf)
		return nil
	})
	return lines, leaves, r, err
}

// fill seals n events of a day in random order of times, of two tenants, some of which
// are on other days, and gives the leaves of the day.
func (l *log) fill(day time.Time, n int) (leaves []int64) {
	random := rand.New(rand.NewPCG(1, uint64(n))) //nolint:gosec // events of a test
	for i := range n {
		tenant, actor, subject := "acme", ada, uuid.Nil
		if random.IntN(3) == 0 {
			tenant = "other"
		}
		switch random.IntN(3) {
		case 0:
			actor, subject = bob, ada
		case 1:
			actor = bob
		}
		at := day.Add(time.Duration(random.Int64N(int64(24*time.Hour)/1000)) * 1000)
		if random.IntN(10) == 0 {
			l.seal(entry(i, at.AddDate(0, 0, 1), tenant, actor, subject, "account.login"))
			continue
		}
		action := "account.login"
		if random.IntN(2) == 0 {
			action = "phi.access"
		}
		leaves = append(leaves, l.seal(entry(i, at, tenant, actor, subject, action)))
	}
	return leaves
}

func TestEventsAreWhatWasSealed(t *testing.T) {
	t.Parallel()
	l := newLog(t)
	leaves := l.fill(theDay, 3000)
	late := l.fill(theDay, 200)
	l.archive(theDay, 1, leaves)
	l.archive(theDay, 2, late)
	all := append(append([]int64(nil), leaves...), late...)
	at := func(q Query) Query { q.From, q.To = theDay, theDay.AddDate(0, 0, 1); return q }
	some := l.leaves[leaves[7]]
	first, _ := segment.ParseEntry(some)

	for name, c := range map[string]struct {
		q    Query
		want func(e *segment.Entry) bool
	}{
		"a day":    {at(Query{}), func(*segment.Entry) bool { return true }},
		"a tenant": {at(Query{Tenant: "other"}), func(e *segment.Entry) bool { return string(e.Tenant) == "other" }},
		"a person": {at(Query{Tenant: "acme", Identity: ada}), func(e *segment.Entry) bool {
			return string(e.Tenant) == "acme" && (string(e.Actor) == ada.String() || string(e.Subject) == ada.String())
		}},
		"an entry":         {at(Query{Entry: first.ID}), func(e *segment.Entry) bool { return e.ID == first.ID }},
		"an action":        {at(Query{Action: "phi.access"}), func(e *segment.Entry) bool { return string(e.Action) == "phi.access" }},
		"an hour":          {Query{From: theDay.Add(time.Hour), To: theDay.Add(2 * time.Hour)}, func(e *segment.Entry) bool { return e.OccurredAt.Hour() == 1 }},
		"an unknown one":   {at(Query{Action: `x"y`}), func(*segment.Entry) bool { return false }},
		"bounds as stated": {Query{From: first.OccurredAt, To: first.OccurredAt.Add(time.Microsecond)}, func(e *segment.Entry) bool { return e.OccurredAt.Equal(first.OccurredAt) }},
	} {
		t.Run(name, func(t *testing.T) {
			var want []string
			var wantLeaves []int64
			for _, leaf := range all {
				e, ok := segment.ParseEntry(l.leaves[leaf])
				require.True(t, ok)
				if c.want(&e) {
					want, wantLeaves = append(want, string(l.leaves[leaf])), append(wantLeaves, leaf)
				}
			}
			lines, got, r, err := get(l.options(c.q))
			require.NoError(t, err)
			require.Equal(t, want, lines)
			require.Equal(t, wantLeaves, got)
			require.Equal(t, Result{Segments: 2, Lines: int64(len(all)), Rows: int64(len(want)), Bytes: r.Bytes}, r)
			require.Positive(t, r.Bytes)
		})
	}

	t.Run("from objects alone", func(t *testing.T) {
		o := l.options(at(Query{Tenant: "acme"}))
		want, _, _, err := get(o)
		require.NoError(t, err)
		o.Catalog = Objects{Store: l.store}
		lines, _, _, err := get(o)
		require.NoError(t, err)
		require.Equal(t, want, lines)
		o.Query.Tenant = "nobody's"
		_, _, _, err = get(o)
		require.ErrorIs(t, err, ErrNothing, "the filters of people tell")
	})
	t.Run("manifests are found by month", func(t *testing.T) {
		o := l.options(Query{From: theDay.AddDate(0, -2, 0), To: theDay.AddDate(0, 1, 0)})
		found, err := Objects{Store: l.store}.Segments(t.Context(), o.Query)
		require.NoError(t, err)
		require.Len(t, found, 2)
		require.Contains(t, found[1].ManifestKey, ".2.manifest.json")
	})
	t.Run("whoever takes them may stop", func(t *testing.T) {
		enough := errors.New("enough")
		n := 0
		_, err := Run(t.Context(), l.options(at(Query{})), func(*Event) error {
			if n++; n == 3 {
				return enough
			}
			return nil
		})
		require.ErrorIs(t, err, enough)
		require.Equal(t, 3, n)
	})
	t.Run("a time without data", func(t *testing.T) {
		_, _, _, err := get(l.options(Day(theDay.AddDate(0, 0, 5))))
		require.ErrorIs(t, err, ErrNothing)
		_, _, _, err = get(l.options(Query{From: theDay, To: theDay}))
		require.ErrorContains(t, err, "ends before it begins")
	})
}

// TestWhatIsWrongIsSaid alters the archive in every way that somebody could and looks
// for what is said, and that no line that was not sealed is handed out.
func TestWhatIsWrongIsSaid(t *testing.T) {
	t.Parallel()
	other, err := age.GenerateX25519Identity()
	require.NoError(t, err)
	day := Day(theDay)

	for name, c := range map[string]struct {
		alter func(t *testing.T, l *log, m *segment.Manifest, o *Options)
		says  string
		// all are handed out before it is noticed
		all bool
	}{
		"nothing": {alter: func(*testing.T, *log, *segment.Manifest, *Options) {}, all: true},
		"another identity": {says: "none of the identities given opens it: it is encrypted to age1",
			alter: func(_ *testing.T, _ *log, _ *segment.Manifest, o *Options) { o.Identities = []age.Identity{other} }},
		"no identity": {says: "none of the identities given opens it",
			alter: func(_ *testing.T, _ *log, _ *segment.Manifest, o *Options) { o.Identities = nil }},
		"an object changed": {says: "segment is damaged",
			alter: func(t *testing.T, l *log, m *segment.Manifest, _ *Options) {
				content := l.content(m)
				content[len(content)/2] ^= 1
				l.exchange(m, content)
			}},
		"an object cut short": {says: "segment is damaged",
			alter: func(t *testing.T, l *log, m *segment.Manifest, _ *Options) {
				content := l.content(m)
				l.exchange(m, content[:len(content)-100])
			}},
		"an empty object": {says: "segment is damaged",
			alter: func(_ *testing.T, l *log, m *segment.Manifest, _ *Options) { l.exchange(m, nil) }},
		"an object swapped with another": {says: "line 1 is not what was sealed as leaf 0",
			alter: func(_ *testing.T, l *log, m *segment.Manifest, _ *Options) {
				_, content := l.pack(theDay, 9, l.fill(theDay, 500))
				l.exchange(m, content)
			}},
		"a line altered and all packed anew": {says: "line 300 is not what was sealed as leaf 299",
			alter: func(t *testing.T, l *log, m *segment.Manifest, _ *Options) {
				was := l.leaves[299]
				l.leaves[299] = bytes.Replace(was, []byte("success"), []byte("denied"), 1)
				packed, content := l.pack(theDay, 1, leavesOf(m))
				l.leaves[299] = was
				packed.ObjectVersion = l.put(packed.ObjectKey, content)
				l.putManifest(packed) // on record too
			}},
		"a line left out": {says: "line 10 is not what was sealed as leaf 9",
			alter: func(t *testing.T, l *log, m *segment.Manifest, _ *Options) {
				leaves := leavesOf(m)
				_, content := l.pack(theDay, 1, append(append([]int64(nil), leaves[:9]...), leaves[10:]...))
				l.exchange(m, content)
			}},
		"the last line left out": {says: "rows is 599, the manifest says 600",
			alter: func(t *testing.T, l *log, m *segment.Manifest, _ *Options) {
				_, content := l.pack(theDay, 1, leavesOf(m)[:599])
				l.exchange(m, content)
			}},
		"a line too many": {says: "object has more lines than the 600 of its manifest", all: true,
			alter: func(t *testing.T, l *log, m *segment.Manifest, _ *Options) {
				_, content := l.pack(theDay, 1, append(leavesOf(m), l.fill(theDay, 1)...))
				l.exchange(m, content)
			}},
		"packed anew, the same lines": {says: "stored_sha256 is", all: true,
			alter: func(t *testing.T, l *log, m *segment.Manifest, _ *Options) {
				_, content := l.pack(theDay, 1, leavesOf(m))
				l.exchange(m, content)
			}},
		"a leaf that the ledger has not": {says: "the ledger has no leaf",
			alter: func(_ *testing.T, l *log, m *segment.Manifest, o *Options) {
				short := *l
				short.leaves = l.leaves[:100]
				o.Tree = &short
			}},
		"a missing object": {says: m0ObjectKey() + ": object is missing",
			alter: func(t *testing.T, l *log, m *segment.Manifest, _ *Options) {
				_, err := l.store.Delete(t.Context(), m.ObjectKey)
				require.NoError(t, err)
			}},
		"a missing manifest": {says: "audit-logs-2026-03-09.manifest.json: manifest is missing",
			alter: func(t *testing.T, l *log, m *segment.Manifest, _ *Options) {
				_, err := l.store.Delete(t.Context(), m.Name().ManifestKey())
				require.NoError(t, err)
			}},
		"another manifest": {says: "manifest is not the one on record",
			alter: func(t *testing.T, l *log, m *segment.Manifest, _ *Options) {
				key := m.Name().ManifestKey()
				_, err := l.store.Delete(t.Context(), key)
				require.NoError(t, err)
				changed := *m
				changed.SoftwareVersion = "another"
				text, err := changed.Encode()
				require.NoError(t, err)
				l.put(key, text)
			}},
		"another manifest over it": {all: true, alter: func(_ *testing.T, l *log, m *segment.Manifest, _ *Options) {
			l.put(m.Name().ManifestKey(), []byte("{}"))
		}},
		"another object over it": {all: true, alter: func(_ *testing.T, l *log, m *segment.Manifest, _ *Options) {
			l.put(m.ObjectKey, []byte("{}"))
		}},
		"a manifest that is none, on record": {says: "manifest cannot be read",
			alter: func(_ *testing.T, l *log, m *segment.Manifest, _ *Options) {
				l.put(m.Name().ManifestKey(), []byte("{}"))
				l.record[0].ManifestSHA256 = sha256.Sum256([]byte("{}"))
			}},
		"a manifest of other leaves than on record": {says: "manifest does not fit",
			alter: func(_ *testing.T, l *log, _ *segment.Manifest, _ *Options) {
				l.record[0].Leaves = segment.Runs{{First: 1, Count: 600}}
			}},
		"a frozen object": {says: "object is frozen",
			alter: func(_ *testing.T, l *log, _ *segment.Manifest, o *Options) { o.Store = frozen{l.store} }},
		"a store that ends early": {says: "object ended early",
			alter: func(_ *testing.T, l *log, _ *segment.Manifest, o *Options) { o.Store = breaking{l.store} }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLog(t)
			var leaves []int64
			for i := range 600 {
				leaves = append(leaves, l.seal(entry(i, theDay.Add(time.Duration(i)*time.Second), "acme", ada, uuid.Nil, "account.login")))
			}
			m := l.archive(theDay, 1, leaves)
			o := l.options(day)
			c.alter(t, l, m, &o)
			lines, got, _, err := get(o)
			if c.says == "" {
				require.NoError(t, err)
			} else {
				require.ErrorContains(t, err, c.says)
				require.NotContains(t, err.Error(), "account.login", "nothing of a line is said")
			}
			for i, line := range lines {
				require.Equal(t, string(l.leaves[got[i]]), line)
			}
			if c.all {
				require.Len(t, lines, 600)
			}
		})
	}
}

func m0ObjectKey() string { return segment.NewName(theDay, 1).ObjectKey() }

func leavesOf(m *segment.Manifest) (leaves []int64) {
	for leaf := range m.Leaves.All() {
		leaves = append(leaves, leaf)
	}
	return leaves
}

func (l *log) content(m *segment.Manifest) []byte {
	l.t.Helper()
	object, err := l.store.Get(context.Background(), m.ObjectKey, m.ObjectVersion)
	require.NoError(l.t, err)
	defer object.Close()
	content, err := io.ReadAll(object)
	require.NoError(l.t, err)
	return content
}

// exchange puts another content where the version is that the manifest names, as
// somebody does who has the disks of the store: the record says the new version, and
// nothing else that is new.
func (l *log) exchange(m *segment.Manifest, content []byte) {
	l.t.Helper()
	changed := *m
	changed.ObjectVersion = l.put(m.ObjectKey, content)
	l.putManifest(&changed)
}

// frozen is a store whose objects are in a class that must be thawed, which no server
// here has.
type frozen struct{ store.Store }

func (f frozen) Get(ctx context.Context, key, version string) (*store.Object, error) {
	if strings.HasSuffix(key, ".age") {
		return nil, &store.Error{Op: "get", Object: key, Kind: store.ErrFrozen, Hint: "a thaw was asked for"}
	}
	return f.Store.Get(ctx, key, version)
}

// breaking loses the connection in the middle of an object.
type breaking struct{ store.Store }

func (b breaking) Get(ctx context.Context, key, version string) (*store.Object, error) {
	object, err := b.Store.Get(ctx, key, version)
	if err != nil || !strings.HasSuffix(key, ".age") {
		return object, err
	}
	object.ReadCloser = &broken{ReadCloser: object.ReadCloser, left: object.Info.Size / 2, key: key}
	return object, nil
}

type broken struct {
	io.ReadCloser
	left int64
	key  string
}

func (b *broken) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, &store.Error{Op: "get", Object: b.key, Kind: store.ErrTruncated}
	}
	n, err := b.ReadCloser.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}

// BenchmarkRetrieval reads a day back: rows a second, and how long the first takes.
func BenchmarkRetrieval(b *testing.B) {
	l := newLog(b)
	var leaves []int64
	for i := range 300_000 {
		leaves = append(leaves, l.seal(entry(i, theDay.Add(time.Duration(i)*time.Millisecond), "acme", ada, bob, "phi.access")))
	}
	l.archive(theDay, 1, leaves)
	var rows int64
	var first time.Duration
	var before, after syscall.Rusage
	require.NoError(b, syscall.Getrusage(syscall.RUSAGE_SELF, &before))
	for b.Loop() {
		started := time.Now()
		r, err := Run(b.Context(), l.options(Day(theDay)), func(*Event) error {
			if first == 0 {
				first = time.Since(started)
			}
			return nil
		})
		require.NoError(b, err)
		rows += r.Rows
	}
	require.NoError(b, syscall.Getrusage(syscall.RUSAGE_SELF, &after))
	b.ReportMetric(float64(rows)/b.Elapsed().Seconds(), "rows/s")
	b.ReportMetric(float64(after.Utime.Nano()-before.Utime.Nano()+after.Stime.Nano()-before.Stime.Nano())/float64(rows), "cpu-ns/row")
	b.ReportMetric(first.Seconds(), "s-to-first")
}
