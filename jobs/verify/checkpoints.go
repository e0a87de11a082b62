package verify

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"pgcustody/jobs/ledger"
	"pgcustody/jobs/store"
)

// checkpoint is what is kept of one that a configured key signed.
type checkpoint struct {
	number, size int64
	root, note   Hash // note: SHA-256 of the signed bytes
	time         int64
	sealedTo     uint64
	next         uint64 // first transaction that was not begun; 0 where it does not say
	incarnation  uuid.UUID
	timeline     int64
	system       string
}

const (
	// noteLimit is more than a checkpoint can need.
	noteLimit = 16 << 10
	// fetchAtOnce is how many objects are asked for at a time.
	fetchAtOnce = 16
	// checkpointsAtOnce is how many are read before they are looked at in order.
	checkpointsAtOnce = 512
	// settling is how long an anchor may take from one object to the next.
	settling = 2 * time.Minute
)

// stored is an object under one key: its versions from the oldest, and whether a
// delete marker lies over one of them.
type stored struct {
	key      string
	versions []store.Info
	marker   bool
}

// histories calls each with every object whose key starts with prefix.
func histories(ctx context.Context, s store.Store, prefix string, each func(stored) error) error {
	var object stored
	for info, err := range s.History(ctx, prefix) {
		if err != nil {
			return err
		}
		if info.Key != object.key {
			if object.key != "" {
				if err := each(object); err != nil {
					return err
				}
			}
			object = stored{key: info.Key}
		}
		if info.DeleteMarker {
			object.marker = true
		} else {
			object.versions = append(object.versions, info)
		}
	}
	if object.key == "" {
		return nil
	}
	return each(object)
}

// get reads a small object.
func get(ctx context.Context, s store.Store, key, version string, limit int64) ([]byte, store.Info, error) {
	object, err := s.Get(ctx, key, version)
	if err != nil {
		return nil, store.Info{}, err
	}
	defer object.Close()
	content, err := io.ReadAll(io.LimitReader(object, limit+1))
	return content, object.Info, err
}

// candidate is an object that should be a checkpoint, and what was read of it.
type candidate struct {
	stored
	number   int64
	contents [][]byte // of each version
	locked   bool     // the version that counts
}

// readCheckpoints reads every version of every numbered checkpoint.
func (c *check) readCheckpoints(ctx context.Context) error {
	var batch []*candidate
	read := int64(0)
	flush := func() error {
		group, groupCtx := errgroup.WithContext(ctx)
		group.SetLimit(fetchAtOnce)
		for _, candidate := range batch {
			group.Go(func() error { return c.fetch(groupCtx, candidate) })
		}
		if err := group.Wait(); err != nil {
			return err
		}
		for _, candidate := range batch {
			c.judge(candidate)
		}
		read += int64(len(batch))
		c.Show("checkpoints", read, 0)
		batch = batch[:0]
		return nil
	}
	prefix := ledger.CheckpointPrefix(c.Origin)
	err := histories(ctx, c.Store, prefix, func(object stored) error {
		number, ok := ledger.ParseCheckpointKey(c.Origin, object.key)
		if !ok {
			c.find(Finding{Kind: CheckpointChanged, Object: object.key, Detail: "not the name of a checkpoint"})
			return nil
		}
		batch = append(batch, &candidate{stored: object, number: number})
		if len(batch) == checkpointsAtOnce {
			return flush()
		}
		return nil
	})
	if err == nil {
		err = flush()
	}
	if err != nil {
		return err
	}
	if len(c.checkpoints) == 0 {
		if len(c.report.Findings) > 0 {
			return nil
		}
		return fmt.Errorf("%w under %s%s: check the origin and the store, or anchor first", ErrNothingAnchored, c.Store.URL()+"/", prefix)
	}
	c.newest = c.checkpoints[len(c.checkpoints)-1]
	if c.Since != nil && c.newest.number < c.Since.Checkpoint {
		c.find(Finding{Kind: CheckpointMissing, Checkpoint: &c.Since.Checkpoint, Object: ledger.CheckpointKey(c.Origin, c.Since.Checkpoint),
			Detail: fmt.Sprintf("it was there on %s, and the newest one is %d", c.Since.VerifiedAt.Format(time.RFC3339), c.newest.number)})
	}
	c.report.Checkpoint, c.report.Anchored, c.report.AnchoredAt = c.newest.number, c.newest.size, time.Unix(c.newest.time, 0).UTC()
	if age := c.Now().Sub(time.Unix(c.newest.time, 0)); age > c.MaxAge {
		c.find(Finding{Kind: StaleAnchor, Checkpoint: &c.newest.number,
			Detail: fmt.Sprintf("the newest checkpoint is %s old, more than %s: what came since can be altered unseen", age.Round(time.Second), c.MaxAge)})
	}
	return c.readNewest(ctx)
}

func (c *check) fetch(ctx context.Context, to *candidate) error {
	if c.Since != nil && to.number < c.Since.Checkpoint && len(to.versions) == 1 {
		return nil
	}
	for i, version := range to.versions {
		content, info, err := get(ctx, c.Store, to.key, version.Version, noteLimit)
		if err != nil {
			return err
		}
		to.contents = append(to.contents, content)
		if i > 0 {
			continue
		}
		if info.RetainMode == "" {
			if info, err = c.Store.Head(ctx, to.key, version.Version); err != nil {
				return err
			}
		}
		to.locked = info.LockedUntil(c.Now())
	}
	return nil
}

// judge takes the next candidate, in the order of numbers.
func (c *check) judge(candidate *candidate) {
	number := candidate.number
	for missing := c.listed + 1; missing < number; missing++ {
		c.find(Finding{Kind: CheckpointMissing, Checkpoint: &missing, Object: ledger.CheckpointKey(c.Origin, missing),
			Detail: "numbers are without gaps, and this one is not there"})
		if c.report.Counts[CheckpointMissing] > findingsOfAKind {
			break
		}
	}
	c.listed = number
	if len(candidate.versions) == 0 {
		c.find(Finding{Kind: CheckpointMissing, Checkpoint: &number, Object: candidate.key, Detail: "a delete marker is all that is left of it"})
		return
	}
	if candidate.marker {
		c.find(Finding{Kind: CheckpointHidden, Checkpoint: &number, Object: candidate.key, Detail: "a delete marker lies over it; the version below is there"})
	}

	// The oldest counts that a key signed: an anchor writes where nothing is.
	var counts *checkpoint
	for i, content := range candidate.contents {
		parsed, err := c.open(content, number)
		version := candidate.versions[i].Version
		switch {
		case err != nil:
			c.find(Finding{Kind: CheckpointChanged, Checkpoint: &number, Object: candidate.key, Detail: fmt.Sprintf("version %s: %s", version, reason(err))})
		case counts == nil:
			counts = &parsed
			if i == 0 && !candidate.locked {
				c.find(Finding{Kind: CheckpointUnlocked, Checkpoint: &number, Object: candidate.key, Detail: "it is under no COMPLIANCE lock that lasts"})
			}
		case parsed.size != counts.size || parsed.root != counts.root:
			c.find(Finding{Kind: CheckpointForked, Checkpoint: &number, Object: candidate.key,
				Detail: fmt.Sprintf("version %s lies over it, signed by a configured key, with another tree: %d leaves where there were %d", version, parsed.size, counts.size)})
		default:
			c.find(Finding{Kind: CheckpointHidden, Checkpoint: &number, Object: candidate.key, Detail: fmt.Sprintf("version %s lies over it", version)})
		}
	}
	if counts == nil {
		return
	}
	if c.Since != nil && number == c.Since.Checkpoint && (counts.size != c.Since.Size || counts.root != Hash(c.Since.Root)) {
		c.find(Finding{Kind: CheckpointForked, Checkpoint: &number, Object: candidate.key,
			Detail: fmt.Sprintf("it is over another tree than on %s, when it was last verified", c.Since.VerifiedAt.Format(time.RFC3339))})
		return
	}
	c.checkpoints = append(c.checkpoints, *counts)
}

// foundCheckpoint tells whether a finding about a number was made already.
func (c *check) foundCheckpoint(number int64) bool {
	for _, f := range c.report.Findings {
		if f.Checkpoint != nil && *f.Checkpoint == number {
			return true
		}
	}
	return false
}

// open reads a signed checkpoint; number 0 takes any.
func (c *check) open(signed []byte, number int64) (checkpoint, error) {
	opened, err := ledger.Open(signed, c.Origin, c.Keys)
	if err != nil {
		return checkpoint{}, err
	}
	if number != 0 && opened.Number != number {
		return checkpoint{}, fmt.Errorf("it says that it is number %d", opened.Number)
	}
	sealedTo, err := strconv.ParseUint(opened.SealedTo, 10, 64)
	if err != nil {
		return checkpoint{}, errors.New("it does not say up to which transaction all is sealed")
	}
	parsed := checkpoint{
		number: opened.Number, size: opened.Size, root: opened.Root, note: sha256.Sum256(signed), time: opened.Time.Unix(),
		sealedTo: sealedTo, incarnation: opened.IncarnationID, timeline: opened.Timeline, system: opened.SystemIdentifier,
	}
	if opened.NextXID != "" {
		if parsed.next, err = strconv.ParseUint(opened.NextXID, 10, 64); err != nil {
			return checkpoint{}, errors.New("it does not say which transaction was to be the next")
		}
	}
	return parsed, nil
}

// reason is an error without the object that it names.
func reason(err error) string {
	var known *ledger.Error
	if errors.As(err, &known) && known.Err != nil {
		return known.Err.Error()
	}
	return err.Error()
}

// readNewest holds the object that shows the newest checkpoint against the numbered
// ones.
func (c *check) readNewest(ctx context.Context) error {
	key := ledger.NewestKey(c.Origin)
	hidden := func(detail string) error {
		c.find(Finding{Kind: CheckpointHidden, Checkpoint: &c.newest.number, Object: key, Detail: detail})
		return nil
	}
	// An anchor may be between its two objects.
	fresh := c.Now().Sub(time.Unix(c.newest.time, 0)) < settling
	content, _, err := get(ctx, c.Store, key, "", noteLimit)
	switch {
	case errors.Is(err, store.ErrNotFound):
		if fresh && c.newest.number == 1 {
			return nil
		}
		return hidden("it is not there, or a delete marker lies over it")
	case err != nil:
		return err
	}
	shown, err := c.open(content, 0)
	if err != nil {
		c.find(Finding{Kind: CheckpointChanged, Object: key, Detail: reason(err)})
		return nil
	}
	if shown.number > c.newest.number {
		// Anchored since the numbered ones were listed.
		numbered, _, err := get(ctx, c.Store, ledger.CheckpointKey(c.Origin, shown.number), "", noteLimit)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		if !bytes.Equal(numbered, content) {
			c.find(Finding{Kind: CheckpointForked, Checkpoint: &shown.number, Object: key, Detail: "it is no numbered checkpoint"})
		}
		return nil
	}
	numbered, ok := c.checkpoint(shown.number)
	switch {
	case !ok || numbered.note != shown.note:
		if ok && numbered.size == shown.size && numbered.root == shown.root {
			return nil // signed once more
		}
		c.find(Finding{Kind: CheckpointForked, Checkpoint: &shown.number, Object: key, Detail: "it is not the numbered checkpoint whose number it has"})
	case shown.number < c.newest.number-1 || shown.number < c.newest.number && !fresh:
		return hidden(fmt.Sprintf("it shows checkpoint %d", shown.number))
	}
	return nil
}

// checkpoint finds one that counts by its number.
func (c *check) checkpoint(number int64) (checkpoint, bool) {
	// Most logs have no gap.
	if i := number - 1; i >= 0 && i < int64(len(c.checkpoints)) && c.checkpoints[i].number == number {
		return c.checkpoints[i], true
	}
	for _, known := range c.checkpoints {
		if known.number == number {
			return known, true
		}
	}
	return checkpoint{}, false
}
