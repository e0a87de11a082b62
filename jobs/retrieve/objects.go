package retrieve

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"pgcustody/jobs/ledger"
	"pgcustody/jobs/segment"
	"pgcustody/jobs/store"
)

// Objects is the catalog for whoever has no database: the archive's signed index, and
// beside it the manifests that are there and that no index lists yet. What the latter
// say is not believed, each line must be the leaf that they name; but one that is
// missing and was never indexed hides its events.
type Objects struct {
	Store store.Store
	// Origin and Keys are of the log whose signer signs the index.
	Origin string
	Keys   []ledger.VerifierKey
}

// indexAtOnce is how many objects of the index are asked for at a time.
const indexAtOnce = 16

// Segments are those of the query's days.
func (o Objects) Segments(ctx context.Context, q Query) ([]Segment, error) {
	first, last := q.Days()
	wanted := func(key string) bool {
		name, err := segment.ParseKey(key)
		return err == nil && key == name.ManifestKey() && !name.Day.Before(first) && !name.Day.After(last)
	}
	listed, strange, err := o.index(ctx)
	if err != nil {
		return nil, err
	}
	var found []Segment
	for key, s := range listed {
		if !wanted(key) {
			continue
		}
		// One that is missing, or another than was signed, is for whoever reads it to tell.
		m, err := Manifest(ctx, o.Store, s)
		if finding := new(Finding); err != nil && !errors.As(err, &finding) {
			return nil, err
		}
		if err != nil || may(m, q) {
			found = append(found, s)
		}
	}
	for month := first.AddDate(0, 0, 1-first.Day()); !month.After(last); month = month.AddDate(0, 1, 0) {
		done := ""
		for info, err := range o.Store.Versions(ctx, segment.Prefix+month.Format("2006/01/")) {
			if err != nil {
				return nil, err
			}
			// Of several versions the first that is a manifest: what was put over it is not the archive's.
			if _, known := listed[info.Key]; known || info.Key == done || !wanted(info.Key) || strange[info.Key+" "+info.Version] {
				continue
			}
			text, err := read(ctx, o.Store, info.Key, info.Version)
			if err != nil {
				return nil, err
			}
			m, err := segment.DecodeManifest(bytes.NewReader(text))
			if err != nil {
				continue
			}
			done = info.Key
			if may(m, q) {
				found = append(found, Segment{ObjectKey: m.ObjectKey, ManifestKey: info.Key, ManifestVersion: info.Version})
			}
		}
	}
	// Listed by key, the tenth part comes before the second.
	slices.SortStableFunc(found, func(a, b Segment) int {
		x, _ := segment.ParseKey(a.ManifestKey) // all are keys
		y, _ := segment.ParseKey(b.ManifestKey)
		return cmp.Or(x.Day.Compare(y.Day), cmp.Compare(x.Part, y.Part), strings.Compare(x.Branch, y.Branch))
	})
	return found, nil
}

// index reads the signed index from its beginning: the segments by the keys of their
// manifests, and the versions of objects that are part of nothing.
func (o Objects) index(ctx context.Context) (listed map[string]Segment, orphans map[string]bool, err error) {
	var objects []store.Info
	for info, err := range o.Store.Versions(ctx, ledger.ArchiveIndexPrefix) {
		if err != nil {
			return nil, nil, err
		}
		// The first version of each: nothing is written over it by who signs.
		if n := len(objects); n == 0 || objects[n-1].Key != info.Key {
			objects = append(objects, info)
		}
	}
	contents := make([][]byte, len(objects))
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(indexAtOnce)
	for i, info := range objects {
		group.Go(func() (err error) {
			contents[i], err = read(groupCtx, o.Store, info.Key, info.Version)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, nil, err
	}
	listed, orphans = map[string]Segment{}, map[string]bool{}
	var before [sha256.Size]byte
	for i, content := range contents {
		index, err := ledger.OpenArchiveIndex(content, o.Origin, o.Keys)
		if err != nil {
			return nil, nil, err
		}
		if key := ledger.ArchiveIndexKey(int64(i) + 1); objects[i].Key != key || index.Number != int64(i)+1 || index.Previous != before {
			return nil, nil, &Finding{Object: key, What: "the archive's index does not go on from the one before it", Do: haveLookedAt}
		}
		before = sha256.Sum256(content)
		for _, line := range index.Lines {
			switch fields := strings.Fields(line); fields[0] {
			case "segment":
				name, err := segment.ParseKey(fields[1])
				digest, err2 := hex.DecodeString(fields[3])
				if err != nil || err2 != nil || len(digest) != sha256.Size {
					return nil, nil, &Finding{Object: objects[i].Key, What: "a line is none of an index", Do: haveLookedAt}
				}
				listed[fields[1]] = Segment{ObjectKey: name.ObjectKey(), ManifestKey: fields[1], ManifestVersion: fields[2], ManifestSHA256: segment.SHA256(digest)}
			case "expired":
				delete(listed, fields[1])
			case "orphan":
				orphans[fields[1]+" "+fields[2]] = true
			}
		}
	}
	return listed, orphans, nil
}

// may tells whether events of a query can be in a segment.
func may(m *segment.Manifest, q Query) bool {
	if m.LastOccurredAt.Before(q.From) || !m.FirstOccurredAt.Before(q.To) {
		return false
	}
	identity := ""
	if q.Identity != uuid.Nil {
		identity = q.Identity.String()
	}
	return q.Tenant == "" || segment.MayHold(m.People, q.Tenant, identity)
}

// AnchoredTree is the tree for whoever has no database.
type AnchoredTree struct{ *ledger.AnchoredTree }

// Tiles are proved to be those of the newest signed checkpoint.
func (t AnchoredTree) Tiles(ctx context.Context, indexes []int64) ([][]byte, error) {
	tiles := make([][]byte, len(indexes))
	for i, index := range indexes {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if index*tileWidth >= t.Size {
			continue // not anchored: next says of which leaf
		}
		var err error
		if tiles[i], err = t.LeafHashes(index); err != nil {
			return nil, err
		}
	}
	return tiles, nil
}

// Day is the query of a whole day of UTC.
func Day(day time.Time) Query {
	from := day.UTC().Truncate(24 * time.Hour)
	return Query{From: from, To: from.AddDate(0, 0, 1)}
}
