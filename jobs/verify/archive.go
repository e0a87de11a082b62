package verify

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"sort"
	"strconv"
	"sync"
	"time"

	"github.com/google/uuid"

	"pgcustody/jobs/segment"
)

// archived is a segment as the bucket holds it.
type archived struct {
	name     segment.Name
	manifest *segment.Manifest
}

// strayLine is a line of the archive whose leaf was not where it should be.
type strayLine struct {
	object string
	line   int64
	known  bool // of a segment that the database has on record
	key    key
	at     time.Time // of the event
	// archived is when the manifest says that it was.
	archived time.Time
}

// archive is what the bucket holds of it.
type archive struct {
	segments []archived
	byKey    map[string]*segment.Manifest // by the manifest's key
	strays   map[Hash]strayLine
	more     int64 // strays that there was no room for
	// gone are archived events without a row, by the partition that they were in.
	gone map[string]*missingMonth
	// entries of leaves that a stray row may have been.
	entries map[int64][]byte
	bytes   int
}

type missingMonth struct {
	count  int64
	leaves []leaf
}

const strayLines = 50_000

// listArchive reads the manifests, and looks at the locks of what they vouch for.
func (c *check) listArchive(ctx context.Context) error {
	c.archive = archive{byKey: map[string]*segment.Manifest{}, strays: map[Hash]strayLine{}, gone: map[string]*missingMonth{}, entries: map[int64][]byte{}}
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
		c.Show("manifests", int64(i), int64(len(manifests)))
		if err := c.takeManifest(ctx, object, objects); err != nil {
			return err
		}
	}
	return nil
}

func (c *check) takeManifest(ctx context.Context, object stored, objects map[string]stored) error {
	changed := func(key, detail string) error {
		c.find(Finding{Kind: ObjectChanged, Object: key, Detail: detail})
		return nil
	}
	hidden := func(object stored) {
		if object.marker || len(object.versions) > 1 {
			c.find(Finding{Kind: ObjectHidden, Object: object.key,
				Detail: fmt.Sprintf("there are %d versions of it, and a delete marker: %t; the first counts", len(object.versions), object.marker)})
		}
	}
	if len(object.versions) == 0 {
		return changed(object.key, "a delete marker is all that is left of it")
	}
	hidden(object)
	version := object.versions[0].Version
	content, _, err := get(ctx, c.Store, object.key, version, 64<<10)
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
	hidden(events)
	for _, part := range []struct{ key, version string }{{object.key, version}, {manifest.ObjectKey, manifest.ObjectVersion}} {
		info, err := c.Store.Head(ctx, part.key, part.version)
		if err != nil {
			return err
		}
		if manifest.RetainUntil.After(c.Now()) && !info.LockedUntil(manifest.RetainUntil) {
			return changed(part.key, "it is under no COMPLIANCE lock until "+manifest.RetainUntil.UTC().Format(time.RFC3339))
		}
	}
	c.archive.segments = append(c.archive.segments, archived{manifest.Name(), manifest})
	c.archive.byKey[object.key] = manifest
	return nil
}

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
	stretches := c.stretchesOf(d)
	for i, s := range c.archive.segments {
		c.Show("archived days", int64(i), int64(len(c.archive.segments)))
		if err := c.readSegment(ctx, s, recorded[s.name.ManifestKey()], stretches, suspects); err != nil {
			return err
		}
	}
	return nil
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

// entryOf reads the members of a canonical entry that place it.
func entryOf(line []byte) (k key, occurred time.Time, ok bool) {
	const before, between = `{"v":1,"log_entry_id":"`, `","occurred_at":"`
	const idAt, timeAt, timeForm = len(before), len(before) + 36 + len(between), "2006-01-02T15:04:05.000000Z"
	if len(line) < timeAt+len(timeForm) || string(line[:idAt]) != before || string(line[idAt+36:timeAt]) != between {
		return k, occurred, false
	}
	var err error
	if k.id, err = uuid.ParseBytes(line[idAt : idAt+36]); err != nil {
		return k, occurred, false
	}
	if occurred, err = time.Parse(timeForm, string(line[timeAt:timeAt+len(timeForm)])); err != nil {
		return k, occurred, false
	}
	_, digits, found := bytes.Cut(line[bytes.LastIndexByte(line, ',')+1:], []byte(`"xid":"`))
	if digits, ok = bytes.CutSuffix(digits, []byte(`"}`)); !ok || !found {
		return k, occurred, false
	}
	k.xid, err = strconv.ParseUint(string(digits), 10, 64)
	return k, occurred, err == nil
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

// readSegment holds the lines of a segment against the leaves.
func (c *check) readSegment(ctx context.Context, s archived, recorded bool, stretches []stretch, suspects suspects) error {
	var m *merge
	a, r, t := &c.archive, &c.rows, &c.tree
	number := int64(0)
	var buffer []byte
	read := func(line []byte) error {
		number++
		buffer = append(append(buffer[:0], 0), line...)
		hash := sha256.Sum256(buffer)
		k, occurred, ok := entryOf(line)
		if m == nil {
			m = t.mergeFrom(stretches, k)
		}
		match := found{leaf: leaf{index: -1}}
		if ok {
			var err error
			if match, err = m.find(k, &hash); err != nil {
				return err
			}
		}
		if match.index < 0 {
			if len(a.strays) < strayLines {
				a.strays[hash] = strayLine{object: s.manifest.ObjectKey, line: number, known: recorded, key: k, at: occurred}
			} else {
				a.more++
			}
			return nil
		}
		r.archived.set(match.index)
		c.report.Archived++
		c.lineClaims(line)
		if tile := match.index / tileWidth; tile < int64(len(r.times)) {
			r.times[tile][0], r.times[tile][1] = min(r.times[tile][0], micros2000(occurred)), max(r.times[tile][1], micros2000(occurred))
		}
		if r.seen.has(match.index) {
			return nil
		}
		if (suspects.ids[k.id] || suspects.xids[k.xid]) && a.bytes+len(line) <= strayBytes {
			a.bytes += len(line)
			a.entries[match.index] = bytes.Clone(line)
		}
		a.miss(match.leaf, occurred)
		return nil
	}
	return c.readObject(ctx, s, read, &sync.Mutex{})
}

// readObject streams a segment and holds its sums against the manifest.
func (c *check) readObject(ctx context.Context, s archived, line func([]byte) error, mu *sync.Mutex) error {
	object, err := c.Store.Get(ctx, s.manifest.ObjectKey, s.manifest.ObjectVersion)
	if err != nil {
		return err
	}
	defer object.Close()
	sums, err := segment.Read(object, line)
	changed := func(detail string) error {
		mu.Lock()
		defer mu.Unlock()
		c.find(Finding{Kind: ObjectChanged, Object: s.manifest.ObjectKey, Detail: detail})
		return nil
	}
	switch {
	case errors.Is(err, segment.ErrDamaged):
		return changed(err.Error())
	case err != nil:
		return err
	case sums.StoredSHA256 != s.manifest.StoredSHA256 || sums.PlainSHA256 != s.manifest.PlainSHA256 || sums.Rows != s.manifest.Rows:
		return changed("its digests or its number of lines are not those of its manifest")
	}
	return nil
}

var actionMember = []byte(`,"action":"`)

func (c *check) lineClaims(line []byte) {
	_, action, ok := bytes.Cut(line, actionMember)
	if !ok {
		return
	}
	for _, name := range [][]byte{actionDrop, actionSegment, actionIncarnation} {
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
	err := d.copyTo(ctx, 1, "select s.manifest_key from custody_data.archive_segments s where s.recorded_at is not null",
		func(f [][]byte) error {
			keys[string(f[0])] = true
			return nil
		})
	return keys, err
}
