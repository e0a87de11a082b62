package retrieve

import (
	"bytes"
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/google/uuid"

	"pgcustody/jobs/ledger"
	"pgcustody/jobs/segment"
	"pgcustody/jobs/store"
)

// Objects is the catalog for whoever has no database: the manifests that are in the
// bucket. What they say is not believed, each line must be the leaf that they name; but
// one that is missing hides its events.
type Objects struct{ Store store.Store }

// Segments reads the manifests of the query's months.
func (o Objects) Segments(ctx context.Context, q Query) ([]Segment, error) {
	first, last := q.Days()
	var found []Segment
	for month := first.AddDate(0, 0, 1-first.Day()); !month.After(last); month = month.AddDate(0, 1, 0) {
		done := ""
		for info, err := range o.Store.Versions(ctx, segment.Prefix+month.Format("2006/01/")) {
			if err != nil {
				return nil, err
			}
			name, err := segment.ParseKey(info.Key)
			// Of several versions the first that is a manifest: what was put over it is not the archive's.
			if err != nil || info.Key != name.ManifestKey() || info.Key == done || name.Day.Before(first) || name.Day.After(last) {
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
				found = append(found, Segment{ObjectKey: name.ObjectKey(), ManifestKey: info.Key, ManifestVersion: info.Version})
			}
		}
	}
	// Listed by key, the tenth part comes before the second.
	slices.SortStableFunc(found, func(a, b Segment) int {
		x, _ := segment.ParseKey(a.ManifestKey) // all are keys
		y, _ := segment.ParseKey(b.ManifestKey)
		return cmp.Or(x.Day.Compare(y.Day), cmp.Compare(x.Part, y.Part))
	})
	return found, nil
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
