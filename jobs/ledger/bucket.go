package ledger

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"pgcustody/jobs/store"
)

// maxCheckpoint and maxTile are more than objects of the log have.
const (
	maxCheckpoint = 64 << 10
	maxTile       = TileWidth * HashSize
)

// bucket is what is anchored of one log.
type bucket struct {
	store  store.Store
	origin string
	keys   []VerifierKey
}

// anchored is a checkpoint in the bucket, as it was read and found signed.
type anchored struct {
	Checkpoint
	signed  []byte
	version string
}

// blockDigits of a number's digits name a block of 1,000, which is one page of a
// listing: years of checkpoints cannot be listed each minute.
const (
	blockDigits = numberDigits - 3
	blockSize   = 1000
)

// newest reads the last numbered checkpoint, nil where there is none. It looks from
// the block of the number known, which is known to have been anchored, on: there
// must be no gap, and of no number two that are signed. What is not signed, and
// stands beside what is, is put down in strange and changes nothing.
func (b bucket) newest(ctx context.Context, known int64) (_ *anchored, strange []string, err error) {
	altered := func(key, why string) error {
		return &Error{Op: "read", Object: key, Kind: ErrAltered, Err: errorString(why), Hint: "find out who changed the bucket: pgcustody verify"}
	}
	var newest *anchored
	var last int64 // the number of versions
	var versions []string
	look := func() error {
		if len(versions) == 0 {
			return nil
		}
		read, odd, err := b.versions(ctx, last, versions)
		newest, strange = read, append(strange, odd...)
		return err
	}
	for block := known / blockSize; ; block++ {
		expected := max(block*blockSize, 1)
		full := (block + 1) * blockSize
		prefix := fmt.Sprintf("%s%0*d", CheckpointPrefix(b.origin), blockDigits, block)
		for info, err := range b.store.Versions(ctx, prefix) {
			if err != nil {
				return nil, strange, err
			}
			number, ok := ParseCheckpointKey(b.origin, info.Key)
			switch {
			case !ok:
				strange = append(strange, info.Key)
			case number == last && len(versions) > 0:
				versions = append(versions, info.Version)
			case number != expected:
				return nil, strange, altered(CheckpointKey(b.origin, expected), "it is missing, and a later one is there")
			default:
				if len(versions) > 1 {
					if err := look(); err != nil {
						return nil, strange, err
					}
				}
				last, versions, expected = number, []string{info.Version}, expected+1
			}
		}
		if expected < full {
			break
		}
	}
	if last < known {
		return nil, strange, altered(CheckpointKey(b.origin, known), "it is missing, and was anchored")
	}
	if err := look(); err != nil {
		return nil, strange, err
	}
	return newest, strange, nil
}

// versions reads all versions of a numbered checkpoint and returns the one that is
// signed.
func (b bucket) versions(ctx context.Context, number int64, versions []string) (_ *anchored, strange []string, err error) {
	key := CheckpointKey(b.origin, number)
	var found *anchored
	var unsigned error
	for _, version := range versions {
		signed, err := b.get(ctx, key, version, maxCheckpoint)
		if err != nil {
			return nil, strange, err
		}
		c, err := Open(signed, b.origin, b.keys)
		switch {
		case err != nil:
			unsigned = err
			strange = append(strange, key+" version "+version)
		case c.Number != number:
			unsigned = &Error{Op: "read", Object: key, Kind: ErrAltered, Err: fmt.Errorf("it is checkpoint %d", c.Number), Hint: "find out who changed the bucket: pgcustody verify"}
			strange = append(strange, key+" version "+version)
		case found != nil && !sameText(found.signed, signed):
			return nil, strange, &Error{Op: "read", Object: key, Kind: ErrFork,
				Err:  fmt.Errorf("two checkpoints of this number are signed: of sizes %d and %d", found.Size, c.Size),
				Hint: "somebody else has the signing key, or a database with this one's signer was copied; pgcustody verify tells what each covers"}
		default:
			found = &anchored{c, signed, version}
		}
	}
	if found == nil {
		return nil, strange, fmt.Errorf("read %s: %w", key, unsigned)
	}
	return found, strange, nil
}

// sameText tells whether two notes say the same: their signatures may be written in
// more than one way, and anybody may add some.
func sameText(a, b []byte) bool {
	textA, _, _ := bytes.Cut(a, []byte(sigSplit))
	textB, _, _ := bytes.Cut(b, []byte(sigSplit))
	return bytes.Equal(textA, textB)
}

// numbered reads one checkpoint.
func (b bucket) numbered(ctx context.Context, number int64) (*anchored, error) {
	key := CheckpointKey(b.origin, number)
	var versions []string
	for info, err := range b.store.Versions(ctx, key) {
		if err != nil {
			return nil, err
		}
		if info.Key == key {
			versions = append(versions, info.Version)
		}
	}
	if len(versions) == 0 {
		return nil, &Error{Op: "read", Object: key, Kind: ErrAltered, Err: errorString("it is missing, and a later one is there"), Hint: "find out who changed the bucket: pgcustody verify"}
	}
	found, _, err := b.versions(ctx, number, versions)
	return found, err
}

// get reads an object that is small.
func (b bucket) get(ctx context.Context, key, version string, most int64) ([]byte, error) {
	object, err := b.store.Get(ctx, key, version)
	if err != nil {
		return nil, err
	}
	defer object.Close()
	content, err := io.ReadAll(io.LimitReader(object, most+1))
	if err != nil {
		return nil, err
	}
	if int64(len(content)) > most {
		return nil, &Error{Op: "read", Object: key, Kind: ErrAltered, Err: errorString("it is too large"), Hint: "find out who changed the bucket: pgcustody verify"}
	}
	return content, nil
}

// tiles reads those of the tree of a checkpoint.
func (b bucket) tiles(ctx context.Context) *tileReader {
	return newTileReader(ctx, func(ctx context.Context, tile tlog.Tile) ([]byte, error) {
		key := TileKey(b.origin, tile.L, tile.N, tile.W)
		content, err := b.get(ctx, key, "", maxTile)
		if errors.Is(err, store.ErrNotFound) {
			return nil, &Error{Op: "read", Object: key, Kind: ErrAltered, Err: errorString("it is missing, and was anchored"), Hint: "find out who changed the bucket: pgcustody verify"}
		}
		return content, err
	})
}

// putLocked writes an object that may be there already, written by a run that was
// killed. What is there must be the same: else the error is errOther.
func (b bucket) putLocked(ctx context.Context, key, contentType string, content []byte, until time.Time) (version string, err error) {
	put, err := b.store.Put(ctx, key, bytes.NewReader(content), store.PutOptions{RetainUntil: until, ContentType: contentType, IfNoneMatch: true})
	if !errors.Is(err, store.ErrExists) {
		return put.Version, err
	}
	there, err := b.store.Get(ctx, key, "")
	if err != nil {
		return "", err
	}
	defer there.Close()
	found, err := io.ReadAll(io.LimitReader(there, int64(len(content))+1))
	if err != nil {
		return "", err
	}
	if !bytes.Equal(found, content) {
		return "", errOther
	}
	return there.Info.Version, nil
}

// errOther says that an object is there with another content.
var errOther = errors.New("another content is there")
