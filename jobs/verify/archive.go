package verify

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strconv"
	"time"

	"github.com/google/uuid"

	"pgcustody/jobs/segment"
	"pgcustody/jobs/store"
)

// archived is a segment as the bucket holds it.
type archived struct {
	name     segment.Name
	manifest *segment.Manifest
}

// archive is what the bucket holds of it.
type archive struct {
	segments []archived
	byKey    map[string]archived // by the manifest's key
	digests  map[string]Hash     // of the manifests, by their keys
	// gone are archived events without a row, by the partition that they were in.
	gone map[string]*missingMonth
	// keys of leaves without a row of which the map does not say whose they are.
	keys map[int64]key
	// entries of leaves that a stray row may have been.
	entries map[int64][]byte
	bytes   int
	// unread says that lines could not be read for want of an identity.
	unread bool
}

type missingMonth struct {
	count  int64
	leaves []leaf
}

// listArchive reads the manifests, and looks at the locks of what they vouch for.
func (c *check) listArchive(ctx context.Context) error {
	c.archive = archive{byKey: map[string]archived{}, digests: map[string]Hash{}, gone: map[string]*missingMonth{}, keys: map[int64]key{}, entries: map[int64][]byte{}}
	objects := map[string]stored{}
	var manifests []stored
	err := histories(ctx, c.Store, segment.Prefix, func(object stored) error {
		if name, err := segment.ParseKey(object.key); err == nil && object.key == name.ManifestKey() {
			manifests = append(manifests, object)
		} else {
			objects[object.key] = object
		}
		return nil
	})
	if err != nil {
		return err
	}
	for i, object := range manifests {
		c.showArchive("manifests", i, len(manifests))
		if err := c.takeManifest(ctx, object, objects); err != nil {
			return err
		}
	}
	return nil
}

// showArchive is silent as long as there are tiles to tell of.
func (c *check) showArchive(stage string, done, total int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.Database != nil || c.tiled {
		c.Show(stage, int64(done), int64(total))
	}
}

func (c *check) takeManifest(ctx context.Context, object stored, objects map[string]stored) error {
	changed := func(key, detail string) error {
		c.find(Finding{Kind: ObjectChanged, Object: key, Detail: detail})
		return nil
	}
	hidden := func(object stored, known ...string) {
		unknown := slices.ContainsFunc(object.versions, func(v store.Info) bool { return !slices.Contains(known, v.Version) })
		if object.marker || unknown {
			c.find(Finding{Kind: ObjectHidden, Object: object.key,
				Detail: fmt.Sprintf("there are %d versions of it, and a delete marker: %t; the one that counts is whole", len(object.versions), object.marker)})
		}
	}
	if len(object.versions) == 0 {
		return changed(object.key, "a delete marker is all that is left of it")
	}
	version := object.versions[0].Version
	hidden(object, version)
	content, _, err := get(ctx, c.Store, object.key, version, manifestLimit)
	if err != nil {
		return err
	}
	manifest := decoded(content)
	if manifest == nil || manifest.Name().ManifestKey() != object.key {
		return changed(object.key, "it is no manifest of the segment that it is named for")
	}
	events, ok := objects[manifest.ObjectKey]
	if ok {
		ok = false
		for _, version := range events.versions {
			ok = ok || version.Version == manifest.ObjectVersion
		}
	}
	if !ok {
		return changed(manifest.ObjectKey, "it is missing, and its manifest is there")
	}
	hidden(events, append(manifest.SupersededVersions, manifest.ObjectVersion)...)
	for _, part := range []struct{ key, version string }{{object.key, version}, {manifest.ObjectKey, manifest.ObjectVersion}} {
		info, err := c.Store.Head(ctx, part.key, part.version)
		if err != nil {
			return err
		}
		if manifest.RetainUntil.After(c.Now()) && !info.LockedUntil(manifest.RetainUntil) {
			return changed(part.key, "it is under no COMPLIANCE lock until "+manifest.RetainUntil.UTC().Format(time.RFC3339))
		}
	}
	s := archived{manifest.Name(), manifest}
	c.archive.segments = append(c.archive.segments, s)
	c.archive.byKey[object.key], c.archive.digests[object.key] = s, sum256(content)
	return nil
}

// manifestLimit is that of segment.DecodeManifest.
const manifestLimit = 64 << 20

// decoded is nil where the content is no manifest.
func decoded(content []byte) *segment.Manifest {
	manifest, err := segment.DecodeManifest(bytes.NewReader(content))
	if err != nil {
		return nil
	}
	return manifest
}

// readArchive looks up in the archive what has no row.
func (c *check) readArchive(ctx context.Context, d *database) error {
	t, r := &c.tree, &c.rows
	r.archived = newBitmap(t.total)
	needed := false
	for i := c.from(); i < t.total && !needed; i++ {
		if i&63 == 0 && i+64 <= t.total && r.seen[i>>6] == ^uint64(0) {
			i += 63
			continue
		}
		needed = !r.seen.has(i)
	}
	if !needed && c.Since != nil {
		return nil
	}
	if err := c.listArchive(ctx); err != nil || !needed {
		return err
	}
	recorded, err := c.recordedManifests(ctx, d)
	if err != nil {
		return err
	}
	suspects := c.suspects()
	for i, s := range c.archive.segments {
		c.showArchive("archived days", i, len(c.archive.segments))
		if err := c.readSegment(ctx, s, recorded[s.name.ManifestKey()], suspects); err != nil {
			return err
		}
	}
	if c.archive.unread {
		c.note("no identity opens the archive: what an archived event said, and what it said was done to the trail, is not known")
	}
	if err := c.takeDrops(ctx, d); err != nil {
		return err
	}
	return c.takeExpired(ctx, d)
}

// suspects are the ids and transactions of rows without a leaf: the archive may
// tell what they were.
type suspects struct {
	ids  map[uuid.UUID]bool
	xids map[uint64]bool
}

func (c *check) suspects() suspects {
	s := suspects{map[uuid.UUID]bool{}, map[uint64]bool{}}
	for _, list := range [][]stray{c.rows.behind, c.rows.beyond} {
		for i := range list {
			s.ids[list[i].key.id], s.xids[list[i].key.xid] = true, true
		}
	}
	return s
}

func partitionOf(occurred time.Time) string { return "audit_logs_" + occurred.Format("2006_01") }

// miss takes down an archived event that has no row.
func (a *archive) miss(l leaf, occurred time.Time) {
	month := a.gone[partitionOf(occurred)]
	if month == nil {
		month = &missingMonth{}
		a.gone[partitionOf(occurred)] = month
	}
	month.count++
	if len(month.leaves) < 10*findingsOfAKind {
		month.leaves = append(month.leaves, l)
	}
}

// covers tells whether the leaves that a manifest names are those of its root, as
// far as the tree has them all.
func (c *check) covers(m *segment.Manifest) (bool, error) {
	var f frontier
	for _, run := range m.Leaves {
		if run.End() > c.tree.total {
			return false, nil
		}
		err := c.tree.leaves.each(run.First, run.End(), func(_ int64, records []byte) error {
			for ; len(records) > 0; records = records[hashWidth:] {
				f.append(Hash(records[:hashWidth]))
			}
			return nil
		})
		if err != nil {
			return false, err
		}
	}
	return f.root() == m.Root, nil
}

// readSegment holds a segment against the leaves: its manifest by its root, and its
// lines, where an identity opens them, by the manifest. Lines are then the entries of
// those leaves, since nothing else makes the root.
func (c *check) readSegment(ctx context.Context, s archived, recorded bool, suspects suspects) error {
	if fits, err := c.fits(s, recorded); err != nil || !fits {
		return err
	}
	return c.judgeLines(s, c.readLines(ctx, s, c.eachLine(s, suspects)))
}

// fits holds the manifest of a segment against the leaves that it names.
func (c *check) fits(s archived, recorded bool) (bool, error) {
	holds, err := c.covers(s.manifest)
	switch key := s.name.ManifestKey(); {
	case err != nil:
		return false, err
	case holds:
		return true, c.cover(s)
	case c.tree.holes.in(s.manifest.Leaves):
		c.note("%s names leaves whose hashes nobody has", key)
	case s.manifest.Leaves[len(s.manifest.Leaves)-1].End() > c.tree.total && s.manifest.ArchivedAt.After(time.Unix(c.newest.time, 0).Add(-clockSlack)):
		c.note("%s names leaves that are younger than the newest checkpoint", key)
	case !recorded && c.Database != nil:
		c.note("%s does not fit its leaves; the database has no record of the segment, which a database may have written that was restored since", key)
	default:
		c.find(Finding{Kind: ObjectChanged, Object: s.manifest.ObjectKey, Detail: "its manifest's root is not that of the leaves that it names"})
	}
	return false, nil
}

// cover takes down that the archive has the leaves of a segment.
func (c *check) cover(s archived) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	raw := make([]byte, keyWidth)
	for index := range s.manifest.Leaves.All() {
		if c.rows.archived.has(index) {
			continue
		}
		c.rows.archived.set(index)
		c.report.Archived++
		if c.Database == nil || c.rows.seen.has(index) {
			continue
		}
		if _, err := c.tree.keys.read(raw, index); err != nil {
			return err
		}
		c.archive.miss(leaf{index: index, key: rawKey(raw)}, time.Time(s.manifest.Day))
	}
	return nil
}

// readLines reads a segment's object to its end, and holds it against its manifest.
func (c *check) readLines(ctx context.Context, s archived, each func([]byte, *segment.Entry) error) error {
	object, err := c.Store.Get(ctx, s.manifest.ObjectKey, s.manifest.ObjectVersion)
	if err != nil {
		return err
	}
	defer object.Close()
	return segment.Verify(object, c.Identities, s.manifest, each)
}

// judgeLines says what it means how a segment's lines were read, and returns what kept them
// from being read.
func (c *check) judgeLines(s archived, err error) error {
	switch {
	case errors.Is(err, segment.ErrIdentity):
		c.mu.Lock()
		defer c.mu.Unlock()
		c.archive.unread = true
		return nil
	case errors.Is(err, segment.ErrDamaged):
		c.find(Finding{Kind: ObjectChanged, Object: s.manifest.ObjectKey, Detail: err.Error()})
		return nil
	}
	return err
}

// eachLine takes down what a line of a segment says that the database does not.
func (c *check) eachLine(s archived, suspects suspects) func([]byte, *segment.Entry) error {
	a, r := &c.archive, &c.rows
	n, runs := int64(0), s.manifest.Leaves
	return func(line []byte, e *segment.Entry) error {
		if len(runs) == 0 {
			return nil
		}
		index := runs[0].First + n
		if n++; n == runs[0].Count {
			n, runs = 0, runs[1:]
		}
		c.lineClaims(line)
		if tile := index / tileWidth; tile < int64(len(r.times)) {
			at := micros2000(e.OccurredAt)
			r.times[tile][0], r.times[tile][1] = min(r.times[tile][0], at), max(r.times[tile][1], at)
		}
		if r.seen.has(index) {
			return nil
		}
		if len(a.keys) < 10*findingsOfAKind {
			a.keys[index] = key{xid: e.XID, id: e.ID}
		}
		if (suspects.ids[e.ID] || suspects.xids[e.XID]) && a.bytes+len(line) <= strayBytes {
			a.bytes += len(line)
			a.entries[index] = bytes.Clone(line)
		}
		return nil
	}
}

var actionMember = []byte(`,"action":"`)

func (c *check) lineClaims(line []byte) {
	_, action, ok := bytes.Cut(line, actionMember)
	if !ok {
		return
	}
	for _, name := range [][]byte{actionDrop, actionSegment, actionExpire, actionIncarnation} {
		if !bytes.HasPrefix(action, name) || action[len(name)] != '"' {
			continue
		}
		m := members(line)
		if string(m["tenant_id"]) == `"system"` {
			resource, _ := strconv.Unquote(string(m["resource_id"]))
			c.claim(name, resource, m["metadata"])
		}
	}
}

// mergeFrom begins in each stretch near the first leaf that may be an event of that
// key.
func (t *tree) mergeFrom(stretches []stretch, k key) *merge {
	m := t.merge(stretches)
	for _, c := range m.cursors {
		from, end := c.next, c.end
		at := sort.Search(int(end-from), func(i int) bool {
			var raw [keyWidth]byte
			if n, err := t.keys.read(raw[:], from+int64(i)); err != nil || n == 0 {
				return true
			}
			return rawKey(raw[:]).compare(k) >= 0
		})
		// A key that was altered misleads; a little room costs nothing.
		c.next = max(from, from+int64(at)-tileWidth)
	}
	return m
}

func rawKey(raw []byte) (k key) {
	k.xid = uint64(micros(raw[:8])) //nolint:gosec // as it was sent
	copy(k.id[:], raw[8:])
	return k
}

// recordedManifests are the keys of the manifests that the database has on record.
func (c *check) recordedManifests(ctx context.Context, d *database) (map[string]bool, error) {
	keys := map[string]bool{}
	err := d.copyTo(ctx, 1, "select s.manifest_key from custody_data.archive_segments s where s.recorded_at is not null and s.superseded_at is null",
		func(f [][]byte) error {
			keys[string(f[0])] = true
			return nil
		})
	return keys, err
}
