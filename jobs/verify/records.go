package verify

import (
	"bytes"
	"context"
	"fmt"

	"github.com/google/uuid"
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
	err := d.copyTo(ctx, 9, `select pg_catalog.to_char(s.day, 'YYYY-MM-DD') || '.' || s.part::text, s.object_key, s.manifest_key, s.rows_archived, s.plain_bytes,
			s.stored_bytes, s.plain_sha256, s.stored_sha256, s.manifest::text
		from custody_data.archive_segments s where s.recorded_at is not null order by s.day, s.part`, func(f [][]byte) error {
		name := string(f[0])
		recorded[name] = true
		wrong := func(detail string) {
			c.find(Finding{Kind: ArchiveRecordFalse, Object: "archive_segments " + name, Detail: detail})
		}
		stored, ok := c.archive.byKey[string(f[2])]
		if !ok {
			if said, sealed := c.segmentEvents[name]; sealed && said.rows == micros(f[3]) && said.stored == micros(f[5]) {
				c.find(Finding{Kind: ObjectChanged, Object: string(f[2]), Detail: "the segment was recorded, and its manifest is not there or does not count"})
				return nil
			}
			wrong("the bucket has no manifest of that name that counts")
			return nil
		}
		manifest := decoded(f[8])
		switch {
		case manifest == nil || !manifest.Same(stored):
			wrong("its manifest is not the one in the bucket")
		case string(f[1]) != stored.ObjectKey || micros(f[3]) != stored.Rows || micros(f[4]) != stored.PlainBytes || micros(f[5]) != stored.StoredBytes ||
			!bytes.Equal(f[6], stored.PlainSHA256[:]) || !bytes.Equal(f[7], stored.StoredSHA256[:]) || stored.Name().String() != name:
			wrong("object, counts or digests are not those of the manifest in the bucket")
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
	err := d.copyTo(ctx, 3, "select i.incarnation_id, i.system_identifier::text, i.timeline::bigint from custody_data.incarnations i", func(f [][]byte) error {
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
