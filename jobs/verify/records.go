package verify

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/google/uuid"

	"pgcustody/jobs/ledger"
	"pgcustody/jobs/segment"
)

// compareRecords holds the records of what was done to the trail against the
// bucket, the signed checkpoints and the sealed events.
func (c *check) compareRecords(ctx context.Context, d *database) error {
	compared := []func(context.Context, *database) error{c.compareSegments, c.compareDrops, c.compareIncarnations}
	if c.Since != nil {
		compared = compared[2:] // the events that tell of the others are not read again
	}
	for _, compare := range compared {
		if err := compare(ctx, d); err != nil {
			return err
		}
	}
	return nil
}

func (c *check) compareSegments(ctx context.Context, d *database) error {
	recorded := map[string]bool{}
	err := d.copyTo(ctx, 14, `select pg_catalog.to_char(s.day, 'YYYY-MM-DD') || '.' || s.part::text, s.object_key, s.manifest_key, s.events, s.plain_bytes,
			s.compressed_bytes, s.stored_bytes, s.plain_sha256, s.compressed_sha256, s.stored_sha256, s.manifest_sha256, s.root_hash, s.leaves::text,
			case when s.expired_at is not null then 1 else 0 end::bigint
		from custody_data.archive_segments s where s.recorded_at is not null order by s.day, s.part`, func(f [][]byte) error {
		name := string(f[0])
		recorded[name] = true
		wrong := func(detail string) {
			c.find(Finding{Kind: ArchiveRecordFalse, Object: "archive_segments " + name, Detail: detail})
		}
		stored, ok := c.archive.byKey[string(f[2])]
		digest := sum256(f[12])
		if micros(f[13]) == 1 && !c.expired[name][digest] {
			wrong("it says that the segment has expired, and no event nor signed index says so")
			return nil
		}
		if !ok {
			said, sealed := c.segmentEvents[name]
			switch {
			case micros(f[13]) == 1: // and was deleted
			case sealed && said.rows == micros(f[3]) && said.stored == micros(f[6]):
				c.find(Finding{Kind: ObjectChanged, Object: string(f[2]), Detail: "the segment was recorded, and its manifest is not there or does not count"})
			default:
				wrong("the bucket has no manifest of that name that counts")
			}
			return nil
		}
		m := stored.manifest
		switch manifest := c.archive.digests[string(f[2])]; {
		case !bytes.Equal(f[10], manifest[:]):
			wrong("its manifest is not the one in the bucket")
		case string(f[1]) != m.ObjectKey || micros(f[3]) != m.Rows || micros(f[4]) != m.PlainBytes || micros(f[5]) != m.CompressedBytes ||
			micros(f[6]) != m.StoredBytes || !bytes.Equal(f[7], m.PlainSHA256[:]) || !bytes.Equal(f[8], m.CompressedSHA256[:]) ||
			!bytes.Equal(f[9], m.StoredSHA256[:]) || !bytes.Equal(f[11], m.Root[:]) || string(f[12]) != m.Leaves.Text() || m.Name().String() != name:
			wrong("object, leaves, counts or digests are not those of the manifest in the bucket")
		}
		return nil
	})
	if err != nil {
		return err
	}
	for name, said := range c.segmentEvents {
		if !recorded[name] {
			c.find(Finding{Kind: ArchiveRecordFalse, Object: "archive_segments " + name,
				Detail: fmt.Sprintf("an event says that %d events were archived in it, and its record is missing", said.rows)})
		}
	}
	return nil
}

// takeExpired takes down the leaves of segments whose objects were deleted at the end
// of their retention: those that an event says to have expired, or an index that the
// log's signer signed, by the digest of their runs.
func (c *check) takeExpired(ctx context.Context, d *database) error {
	type expired struct {
		name, key string
		leaves    []byte
	}
	var list []expired
	err := d.copyTo(ctx, 3, `select pg_catalog.to_char(s.day, 'YYYY-MM-DD') || '.' || s.part::text, s.manifest_key, s.leaves::text
		from custody_data.archive_segments s where s.expired_at is not null`, func(f [][]byte) error {
		list = append(list, expired{string(f[0]), string(f[1]), bytes.Clone(f[2])})
		return nil
	})
	if err != nil || len(list) == 0 {
		return err
	}
	indexed := map[string]Hash{} // by the manifest's key
	if slices.ContainsFunc(list, func(e expired) bool { return !c.expired[e.name][sum256(e.leaves)] }) {
		if indexed, err = c.indexedExpiries(ctx); err != nil {
			return err
		}
	}
	for _, e := range list {
		digest := sum256(e.leaves)
		if said, ok := indexed[e.key]; ok && said == digest {
			c.expire(e.name, digest)
		}
		runs, err := segment.ParseRuns(string(e.leaves))
		if err != nil || !c.expired[e.name][digest] || runs[len(runs)-1].End() > c.tree.total {
			continue // what has no row is then missing, and the record is false
		}
		for leaf := range runs.All() {
			c.rows.archived.set(leaf)
		}
		c.report.Expired += runs.Count()
	}
	return nil
}

// indexLimit is more than an index of the archive can need.
const indexLimit = 1 << 20

// indexedExpiries reads the archive's indexes.
func (c *check) indexedExpiries(ctx context.Context) (map[string]Hash, error) {
	said := map[string]Hash{}
	err := histories(ctx, c.Store, ledger.ArchiveIndexPrefix, func(object stored) error {
		if len(object.versions) == 0 {
			return nil
		}
		content, _, err := get(ctx, c.Store, object.key, object.versions[0].Version, indexLimit)
		if err != nil {
			return err
		}
		index := c.openIndex(content, object.key)
		if index == nil {
			c.find(Finding{Kind: ObjectChanged, Object: object.key, Detail: "it is no index that a key of the log signed"})
			return nil
		}
		for _, line := range index.Lines {
			if fields := strings.Fields(line); fields[0] == "expired" {
				if digest, err := hex.DecodeString(fields[2]); err == nil && len(digest) == hashWidth {
					said[fields[1]] = Hash(digest)
				}
			}
		}
		return nil
	})
	return said, err
}

// openIndex is nil where the content is no index of that name that a key signed.
func (c *check) openIndex(content []byte, key string) *ledger.ArchiveIndex {
	index, err := ledger.OpenArchiveIndex(content, c.Origin, c.Keys)
	if err != nil || ledger.ArchiveIndexKey(index.Number) != key {
		return nil
	}
	return &index
}

// expire takes down what was said with good reason.
func (c *check) expire(name string, leaves Hash) {
	if c.expired[name] == nil {
		c.expired[name] = map[Hash]bool{}
	}
	c.expired[name][leaves] = true
}

func (c *check) compareDrops(ctx context.Context, d *database) error {
	recorded := map[string]bool{}
	err := d.copyTo(ctx, 1, "select p.partition_name from custody_data.partition_drops p order by p.dropped_at, p.partition_name", func(f [][]byte) error {
		name := string(f[0])
		if recorded[name] = true; !c.drops[name] {
			c.find(Finding{Kind: DropRecordFalse, Object: "partition_drops " + name, Detail: "no event says that the partition was dropped"})
		}
		return nil
	})
	if err != nil {
		return err
	}
	for name := range c.drops {
		if !recorded[name] {
			c.find(Finding{Kind: DropRecordFalse, Object: "partition_drops " + name, Detail: "an event says that the partition was dropped, and its record is missing"})
		}
	}
	return nil
}

// takeDrops takes the word of records, where the archive could not be read, for drops
// whose own event has left Postgres by now. What such a month held has a locked
// manifest or is missing, whatever the record says.
func (c *check) takeDrops(ctx context.Context, d *database) error {
	if !c.archive.unread {
		return nil
	}
	type drop struct{ name, in string }
	var list []drop
	err := d.copyTo(ctx, 2, `select p.partition_name, 'audit_logs_' || pg_catalog.to_char(p.dropped_at at time zone 'UTC', 'YYYY_MM')
		from custody_data.partition_drops p order by p.dropped_at desc, p.partition_name`, func(f [][]byte) error {
		list = append(list, drop{string(f[0]), string(f[1])})
		return nil
	})
	if err != nil {
		return err
	}
	taken := 0
	for _, p := range list { // the latest first: its event is there, or nothing is
		if !c.drops[p.name] && c.drops[p.in] && p.in != p.name {
			c.drops[p.name] = true
			taken++
		}
	}
	if taken > 0 {
		c.note("%d drops of months were taken from the database's record: the events that tell of them are in the archive, which no identity opened", taken)
	}
	return nil
}

func (c *check) compareIncarnations(ctx context.Context, d *database) error {
	// What was set back may have lost the incarnation in which the later checkpoints were signed.
	if c.tree.short {
		return nil
	}
	type signed struct {
		system   string
		timeline int64
	}
	known := map[uuid.UUID]signed{}
	first := map[uuid.UUID]int64{} // size of the first tree that was signed in it
	for i := range c.checkpoints {
		k := &c.checkpoints[i]
		if _, ok := known[k.incarnation]; !ok {
			first[k.incarnation] = k.size
		}
		known[k.incarnation] = signed{k.system, k.timeline}
	}
	wrong := func(id uuid.UUID, detail string) {
		c.find(Finding{Kind: IncarnationRecordFalse, Object: "incarnations " + id.String(), Detail: detail})
	}
	err := d.copyTo(ctx, 4, `select i.incarnation_id, i.system_identifier::text, i.timeline::bigint,
			'audit_logs_' || pg_catalog.to_char(i.opened_at at time zone 'UTC', 'YYYY_MM')
		from custody_data.incarnations i`, func(f [][]byte) error {
		id, err := uuid.FromBytes(f[0])
		if err != nil {
			return err
		}
		said, ok := known[id]
		switch {
		case ok && said.system != string(f[1]):
			wrong(id, "its system_identifier is not the one that was signed")
		case ok && said.timeline != micros(f[2]):
			wrong(id, "its timeline is not the one that was signed")
		case c.archive.unread && c.drops[string(f[3])]:
			// The event is in the archive, which no identity opened.
		case !ok && c.Since == nil && !c.incarnationEvents[id.String()]:
			wrong(id, "no checkpoint was signed in it, and no event says that it was opened")
		}
		delete(known, id)
		return nil
	})
	for id := range known {
		if !c.lostWith(d, first[id], id) {
			wrong(id, "checkpoints were signed in it, and its record is missing")
		}
	}
	return err
}
