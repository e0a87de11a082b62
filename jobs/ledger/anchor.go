package ledger

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sort"
	"strings"
	"time"

	"github.com/google/uuid"
	"golang.org/x/mod/sumdb/tlog"
	"golang.org/x/sync/errgroup"

	"pgcustody/jobs/store"
)

// Head is the tree in the database and who the database is.
type Head struct {
	Size int64
	Root tlog.Hash // as the database says; the anchor computes its own

	SystemIdentifier string
	Timeline         int64
	IncarnationID    uuid.UUID

	SealedTo     string
	WaitingSince *time.Time
	// NextXID is the first transaction that was not begun.
	NextXID string

	// RetainUntil is until when an object must be locked that is written now.
	RetainUntil time.Time
}

// Database is what the anchor needs of the ledger in Postgres.
type Database interface {
	Tiles
	Head(ctx context.Context) (Head, error)
	// LastCheckpoint is the highest number on record, 0 where there is none.
	LastCheckpoint(ctx context.Context) (int64, error)
	// Checkpoint is the signed note on record of a number that is.
	Checkpoint(ctx context.Context, number int64) ([]byte, error)
	// RecordCheckpoint puts a copy of an anchored checkpoint on record. One that is on
	// record already is left as it is.
	RecordCheckpoint(ctx context.Context, record Record) error
	// TakeOver sets the tree back to its first prefix leaves and goes on with the given
	// ones, which are anchored.
	TakeOver(ctx context.Context, prefix int64, leaves []byte, observed json.RawMessage) error
}

// Record is a checkpoint as the bucket has it.
type Record struct {
	Checkpoint
	Note        []byte
	Key         string
	RetainUntil time.Time
	AnchoredAt  time.Time
}

// Anchor puts checkpoints of one database's ledger, and the tiles under them, where
// a superuser of the database does not reach.
//
// Each step may be the last: a run that finds what one left that was killed goes on
// from there, and of two runs under one origin, wherever they are, one puts the
// checkpoint of a number. Nothing that is in the bucket is contradicted: what the
// newest checkpoint there covers is the beginning of the tree that the next one
// covers, or there is no next one.
type Anchor struct {
	Database Database
	Store    store.Store
	Signer   *Signer
	// Lease is how long the newest checkpoint keeps another database from anchoring
	// that is, by its cluster's identifier, a copy of the one that made it. Default 3
	// hours.
	Lease time.Duration
	// Heartbeat is how long at most a checkpoint is the newest although the tree has
	// not grown. Default 1 hour.
	Heartbeat time.Duration
	// Keep is how long at least objects are locked, whatever the database says: a
	// superuser there could shorten what it asks for. Default 7 years.
	Keep time.Duration
	// Wait is how long a run waits for another that uses the same signer; 0 as long as
	// its context lasts.
	Wait time.Duration

	now  func() time.Time
	step func(string) error // tells tests where a run is; an error ends it there
}

// Result is what a run of the anchor found and did.
type Result struct {
	// Newest is the newest checkpoint in the bucket, nil where there is none.
	Newest *Checkpoint `json:"-"`
	Number int64       `json:"number"`
	Size   int64       `json:"tree_size"`
	Root   tlog.Hash   `json:"root"`
	Time   time.Time   `json:"time"`
	Key    string      `json:"object"`
	// Anchored tells whether this run put it there.
	Anchored bool `json:"anchored"`
	// Tiles is how many were put, or found there.
	Tiles int64 `json:"tiles"`
	// TakenOver is set where the tree in the database was set to the anchored one.
	TakenOver *TakeOver `json:"taken_over,omitempty"`
	// Strange are objects that are not what their names say, and that were passed over.
	Strange []string `json:"strange,omitempty"`
}

// TakeOver tells how the database's tree was set to the anchored one.
type TakeOver struct {
	Prefix int64 `json:"common_leaves"`
	Leaves int64 `json:"leaves_taken_over"`
	// Replaced is how many leaves the database had beyond the common ones.
	Replaced int64 `json:"leaves_replaced"`
}

// maxSkew is how far clocks of machines that anchor may be apart.
const maxSkew = 5 * time.Minute

// run is one run of the anchor.
type run struct {
	*Anchor
	bucket bucket
	state  State
	// adopted tells whether an operator has this database go on with the log.
	adopted bool
	newest  *anchored // nil where the bucket has none
	head    Head
	tree    tlog.Tree
	tiles   *tileReader // of the database
	result  Result
}

// Run anchors the tree where it grew or the heartbeat is due, and ends what a run
// left undone that was killed.
func (a *Anchor) Run(ctx context.Context) (Result, error) {
	unlock, err := a.lock(ctx)
	if err != nil {
		return Result{}, err
	}
	defer unlock()
	if err := a.Signer.reload(); err != nil {
		return Result{}, err
	}
	r := &run{Anchor: a, bucket: bucket{a.Store, a.Signer.Origin(), a.Signer.VerifierKeys()}}
	err = r.run(ctx)
	return r.result, err
}

func (a *Anchor) lock(ctx context.Context) (unlock func(), err error) {
	if a.Wait > 0 {
		waiting, cancel := context.WithTimeout(ctx, a.Wait)
		defer cancel()
		ctx = waiting
	}
	return a.Signer.lock(ctx)
}

func (r *run) run(ctx context.Context) (err error) {
	if r.state, err = r.Signer.State(); err != nil {
		return err
	}
	if r.newest, r.result.Strange, err = r.bucket.newest(ctx, r.state.Finished); err != nil {
		return err
	}
	r.found()
	if err := r.checkState(); err != nil {
		return err
	}
	if err := r.readHead(ctx); err != nil {
		return err
	}
	if err := r.goOn(ctx); err != nil {
		return err
	}
	if err := r.at("before finishing"); err != nil {
		return err
	}
	if r.newest != nil {
		if err := r.finish(ctx); err != nil {
			return err
		}
	}
	if !r.due() {
		return nil
	}
	return r.anchor(ctx)
}

func (r *run) at(step string) error {
	if r.step == nil {
		return nil
	}
	return r.step(step)
}

func (r *run) clock() time.Time {
	if r.now != nil {
		return r.now().UTC()
	}
	return time.Now().UTC()
}

// found takes the newest checkpoint into the result.
func (r *run) found() {
	if r.newest == nil {
		return
	}
	c := r.newest.Checkpoint
	r.result.Newest, r.result.Number, r.result.Size, r.result.Root, r.result.Time = &c, c.Number, c.Size, c.Root, c.Time
	r.result.Key = CheckpointKey(c.Origin, c.Number)
}

// checkState compares the bucket with what the signer remembers: the bucket may be
// one checkpoint behind, which was signed and not put, and ahead by what others put
// who have the key.
func (r *run) checkState() error {
	number := int64(0)
	if r.newest != nil {
		number = r.newest.Number
	}
	wrong := func(why string) error {
		return &Error{Op: "anchor", Object: CheckpointPrefix(r.bucket.origin), Kind: ErrAltered, Err: errorString(why),
			Hint: "find out who changed the bucket, or whether this is the bucket that the signer knows"}
	}
	switch {
	case r.newest != nil && signedElsewhere(r.newest.signed, r.bucket.origin, r.bucket.keys):
		// The next checkpoint would be signed by a key that has ended.
		return &Error{Op: "anchor", Object: CheckpointKey(r.bucket.origin, number), Kind: ErrUnsigned,
			Err: errorString("it is also signed by a key that is not in this folder"), Hint: "the key was rotated in a copy of the signer's folder: copy it from there"}
	case r.state.Number > number+1:
		return wrong(fmt.Sprintf("the newest checkpoint is %d, and %d was signed", number, r.state.Number))
	case r.newest != nil && r.state.Number == number && (r.state.Size != r.newest.Size || r.state.Root != r.newest.Root):
		return wrong(fmt.Sprintf("checkpoint %d is not the one that was signed here", number))
	case r.newest != nil && r.newest.Time.After(r.clock().Add(maxSkew)):
		return &Error{Op: "anchor", Object: CheckpointKey(r.bucket.origin, number), Kind: ErrClock,
			Err:  fmt.Errorf("the newest checkpoint is of %s", r.newest.Time.Format(time.RFC3339)),
			Hint: "set this machine's clock right"}
	}
	return nil
}

func (r *run) readHead(ctx context.Context) (err error) {
	if r.head, err = r.Database.Head(ctx); err != nil {
		return err
	}
	r.tiles = databaseTiles(ctx, r.Database)
	root, err := tlog.TreeHash(r.head.Size, r.tiles)
	if err != nil {
		return err
	}
	if root != r.head.Root {
		return &Error{Op: "anchor", Object: fmt.Sprintf("tree of size %d in the database", r.head.Size), Kind: ErrAltered,
			Err: errorString("its tiles do not give the root that the database tells"), Hint: "pgcustody verify tells what was changed"}
	}
	r.tree = tlog.Tree{N: r.head.Size, Hash: root}
	return nil
}

// goOn tells whether this database may go on with the log, and makes its tree one
// that does, where it may and does not.
func (r *run) goOn(ctx context.Context) error {
	if r.newest == nil {
		return nil
	}
	last := r.newest.Anchored
	r.adopted = r.state.Adopted != nil && r.state.Adopted.SystemIdentifier == r.head.SystemIdentifier && r.state.Adopted.After == last.Number
	mine := last.IncarnationID == r.head.IncarnationID && last.SystemIdentifier == r.head.SystemIdentifier && last.Timeline == r.head.Timeline
	if !mine && !r.adopted {
		leased := &Error{Op: "anchor", Object: CheckpointKey(r.bucket.origin, last.Number), Kind: ErrLease,
			Err: fmt.Errorf("cluster %s on timeline %d anchored at %s; this is cluster %s on timeline %d", last.SystemIdentifier, last.Timeline,
				last.Time.Format(time.RFC3339), r.head.SystemIdentifier, r.head.Timeline)}
		until := last.Time.Add(cmp.Or(r.Lease, 3*time.Hour))
		switch {
		case last.SystemIdentifier != r.head.SystemIdentifier:
			leased.Hint = "if this database is to go on with the log, and the other no longer anchors: pgcustody signer adopt"
			return leased
		case !r.clock().After(until):
			leased.Hint = "this database goes on with the log at " + until.Format(time.RFC3339) + ", if the other has not anchored until then; pgcustody signer adopt has it go on now"
			return leased
		}
	}
	ok, err := extends(r.newest.Tree(), r.tree, r.tiles.checked(r.tree))
	if err != nil || ok {
		return err
	}
	anchoredTiles := r.bucket.tiles(ctx).checked(r.newest.Tree())
	if mine && !r.adopted {
		return r.setBack(anchoredTiles)
	}
	return r.takeOver(ctx, anchoredTiles)
}

// setBack tells a database that lost its last leaves from one whose leaves are
// others.
func (r *run) setBack(anchoredTiles tlog.HashReader) error {
	object := fmt.Sprintf("tree of size %d in the database", r.tree.N)
	prefix, err := r.commonPrefix(anchoredTiles)
	if err != nil {
		return err
	}
	if prefix == r.tree.N {
		return &Error{Op: "anchor", Object: object, Kind: ErrBehind,
			Err:  fmt.Errorf("set back to %d of %d anchored leaves", r.tree.N, r.newest.Size),
			Hint: "put back what was lost, or have the log go on without: pgcustody signer adopt, then the lost leaves are taken over from the bucket"}
	}
	return &Error{Op: "anchor", Object: object, Kind: ErrFork,
		Err:  fmt.Errorf("it agrees with the %d anchored leaves only on the first %d", r.newest.Size, prefix),
		Hint: "pgcustody verify tells what was changed; pgcustody signer adopt has the log go on from what is anchored"}
}

// commonPrefix is how many leaves the tree in the database and the anchored one
// begin with in common.
func (r *run) commonPrefix(anchoredTiles tlog.HashReader) (int64, error) {
	own := r.tiles.checked(r.tree)
	var failed error
	n := sort.Search(int(min(r.tree.N, r.newest.Size)), func(i int) bool {
		if failed != nil {
			return true
		}
		a, err := tlog.TreeHash(int64(i)+1, own)
		b, err2 := tlog.TreeHash(int64(i)+1, anchoredTiles)
		failed = errors.Join(err, err2)
		return a != b
	})
	return int64(n), failed
}

// takeOver sets the tree in the database to the anchored one.
func (r *run) takeOver(ctx context.Context, anchoredTiles tlog.HashReader) error {
	prefix, err := r.commonPrefix(anchoredTiles)
	if err != nil {
		return err
	}
	leaves := make([]byte, 0, (r.newest.Size-prefix)*HashSize)
	for at := prefix; at < r.newest.Size; {
		tile := tlog.Tile{H: tileHeight, L: 0, N: at / TileWidth}
		tile.W = int(min(r.newest.Size-tile.N*TileWidth, TileWidth))
		hashes, err := tlog.ReadTileData(tile, anchoredTiles)
		if err != nil {
			return err
		}
		leaves = append(leaves, hashes[(at-tile.N*TileWidth)*HashSize:]...)
		at = tile.N*TileWidth + int64(tile.W)
	}
	observed, err := json.Marshal(map[string]any{
		"common_leaves": prefix,
		"anchored": map[string]any{"number": r.newest.Number, "tree_size": r.newest.Size, "root": r.newest.Root, "time": r.newest.Time,
			"system_identifier": r.newest.SystemIdentifier, "timeline": r.newest.Timeline, "incarnation_id": r.newest.IncarnationID},
		"database": map[string]any{"tree_size": r.tree.N, "root": r.tree.Hash,
			"system_identifier": r.head.SystemIdentifier, "timeline": r.head.Timeline, "incarnation_id": r.head.IncarnationID},
	})
	if err != nil {
		return err
	}
	if err := r.at("before taking over"); err != nil {
		return err
	}
	replaced := r.tree.N - prefix
	if err := r.Database.TakeOver(ctx, prefix, leaves, observed); err != nil {
		return err
	}
	r.result.TakenOver = &TakeOver{Prefix: prefix, Leaves: int64(len(leaves) / HashSize), Replaced: replaced}
	if err := r.at("after taking over"); err != nil {
		return err
	}
	if err := r.readHead(ctx); err != nil {
		return err
	}
	ok, err := extends(r.newest.Tree(), r.tree, r.tiles.checked(r.tree))
	if err == nil && !ok {
		return r.setBack(anchoredTiles)
	}
	return err
}

// finish does what comes after a checkpoint was put: the name under which the newest
// is found, the record in the database, the end of a rotation.
func (r *run) finish(ctx context.Context) error {
	last, err := r.Database.LastCheckpoint(ctx)
	if err != nil {
		return err
	}
	if r.state.Finished >= r.newest.Number && last >= r.newest.Number {
		return nil
	}
	if r.state.Finished < r.newest.Number {
		_, err := r.Store.Put(ctx, NewestKey(r.bucket.origin), bytes.NewReader(r.newest.signed), store.PutOptions{ContentType: checkpointType})
		if err != nil {
			return err
		}
		if err := r.at("after newest"); err != nil {
			return err
		}
	}
	// A database that was set back lacks more than one.
	for number := last + 1; number <= r.newest.Number; number++ {
		c := r.newest
		if number < r.newest.Number {
			if c, err = r.bucket.numbered(ctx, number); err != nil {
				return err
			}
		}
		if err := r.record(ctx, c); err != nil {
			return err
		}
	}
	if err := r.at("after record"); err != nil {
		return err
	}
	if r.state.Finished < r.newest.Number {
		return r.Signer.finish(r.newest.Checkpoint, r.newest.signed)
	}
	return nil
}

func (r *run) record(ctx context.Context, c *anchored) error {
	key := CheckpointKey(r.bucket.origin, c.Number)
	info, err := r.Store.Head(ctx, key, c.version)
	if err != nil {
		return err
	}
	return r.Database.RecordCheckpoint(ctx, Record{Checkpoint: c.Checkpoint, Note: c.signed, Key: key, RetainUntil: info.RetainUntil, AnchoredAt: info.Modified})
}

// due tells whether there is something to anchor.
func (r *run) due() bool {
	switch {
	case r.newest == nil, r.tree.N > r.newest.Size, r.result.TakenOver != nil:
		return true
	case r.newest.IncarnationID != r.head.IncarnationID || r.newest.Timeline != r.head.Timeline || r.newest.SystemIdentifier != r.head.SystemIdentifier:
		return true // the lease is to be this database's
	}
	return r.clock().Sub(r.newest.Time) >= cmp.Or(r.Heartbeat, time.Hour)
}

const (
	checkpointType = "text/plain; charset=utf-8"
	tileType       = "application/octet-stream"
	// putsAtOnce is how many tiles are on their way together.
	putsAtOnce = 8
)

func (r *run) anchor(ctx context.Context) error {
	until := r.until()
	old := int64(0)
	if r.newest != nil {
		old = r.newest.Size
	}
	if err := r.putTiles(ctx, old, r.tree, until); err != nil {
		return err
	}
	if err := r.at("after tiles"); err != nil {
		return err
	}
	c := Checkpoint{Origin: r.bucket.origin, Size: r.tree.N, Root: r.tree.Hash, Anchored: Anchored{
		Number: 1, Time: r.clock().Truncate(time.Second), SystemIdentifier: r.head.SystemIdentifier, Timeline: r.head.Timeline,
		IncarnationID: r.head.IncarnationID, SealedTo: r.head.SealedTo, NextXID: r.head.NextXID, WaitingSince: r.head.WaitingSince,
	}}
	if r.newest != nil {
		c.Number = r.newest.Number + 1
		if c.Time.Before(r.newest.Time) { // by maxSkew at most
			c.Time = r.newest.Time
		}
	}
	signed, err := r.Signer.Sign(c, r.tiles.checked(r.tree))
	if err != nil {
		return err
	}
	if err := r.at("after sign"); err != nil {
		return err
	}
	key := CheckpointKey(c.Origin, c.Number)
	version, err := r.bucket.putLocked(ctx, key, checkpointType, signed, until)
	if errors.Is(err, errOther) {
		return &Error{Op: "anchor", Object: key, Kind: ErrBusy, Err: errorString("somebody else put it just now"), Hint: "run it again: it looks at what is there"}
	}
	if err != nil {
		return err
	}
	if err := r.checkLock(ctx, key, version, until); err != nil {
		return err
	}
	r.newest, r.result.Anchored = &anchored{c, signed, version}, true
	r.found()
	if err := r.at("after checkpoint"); err != nil {
		return err
	}
	return r.finish(ctx)
}

// until is until when an object is locked that is written now.
func (r *run) until() time.Time {
	until := r.clock().Add(cmp.Or(r.Keep, 7*366*24*time.Hour)).Truncate(time.Second)
	if r.head.RetainUntil.After(until) {
		return r.head.RetainUntil
	}
	return until
}

// checkLock reads the lock of a checkpoint back: what could be deleted again is no
// anchor. Another run may have put the same one, and locked it until a moment less.
func (r *run) checkLock(ctx context.Context, key, version string, until time.Time) error {
	info, err := r.Store.Head(ctx, key, version)
	if err != nil || info.LockedUntil(until) {
		return err
	}
	if err := r.Store.Extend(ctx, key, version, until); err != nil {
		return err
	}
	if info, err = r.Store.Head(ctx, key, version); err != nil {
		return err
	}
	if !info.LockedUntil(until) {
		return &store.Error{Op: "put", Object: r.Store.URL() + "/" + key, Kind: store.ErrNotLocked, Hint: "use a store that honours Object Lock in COMPLIANCE mode"}
	}
	return nil
}

// putTiles puts the tiles that a checkpoint of a tree needs and one of the old size did
// not: each is checked against the root.
func (r *run) putTiles(ctx context.Context, old int64, tree tlog.Tree, until time.Time) error {
	list := tlog.NewTiles(tileHeight, old, tree.N)
	checked := r.tiles.checked(tree)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(putsAtOnce)
	for _, tile := range list {
		if ctx.Err() != nil {
			break
		}
		data, err := tlog.ReadTileData(tile, checked)
		if err != nil {
			_ = group.Wait()
			return err
		}
		group.Go(func() error { return r.putTile(ctx, TileKey(r.bucket.origin, tile.L, tile.N, tile.W), data, until) })
	}
	r.result.Tiles += int64(len(list))
	return group.Wait()
}

// putTile puts a tile that no checkpoint in the bucket covers as a whole. One that is
// in its way was put by a database that was killed before it signed and has been
// left or set back since: nobody but an operator knows that, so it is written over,
// by a version more, under an adoption alone.
func (r *run) putTile(ctx context.Context, key string, data []byte, until time.Time) error {
	_, err := r.bucket.putLocked(ctx, key, tileType, data, until)
	if errors.Is(err, errOther) && r.adopted {
		_, err = r.Store.Put(ctx, key, bytes.NewReader(data), store.PutOptions{RetainUntil: until, ContentType: tileType})
	}
	if errors.Is(err, errOther) {
		return &Error{Op: "anchor", Object: key, Kind: ErrFork, Err: errOther,
			Hint: "another database was about to anchor under this origin, or this one was set back; if this one is to go on: pgcustody signer adopt"}
	}
	return err
}

// Adopt has the database go on with the log whose newest checkpoint is in the
// bucket, although that is of another cluster, or covers what the database has not.
// What the signer remembers becomes that checkpoint. The next run of the anchor
// takes over from the bucket what the database lacks.
//
// A bucket without any, after the old one was lost, gets those that the database has
// on record.
func (a *Anchor) Adopt(ctx context.Context) (newest *Checkpoint, state State, err error) {
	unlock, err := a.lock(ctx)
	if err != nil {
		return nil, State{}, err
	}
	defer unlock()
	if err := a.Signer.reload(); err != nil {
		return nil, State{}, err
	}
	r := &run{Anchor: a, bucket: bucket{a.Store, a.Signer.Origin(), a.Signer.VerifierKeys()}}
	// All of them: what the signer remembers does not count here.
	if r.newest, _, err = r.bucket.newest(ctx, 0); err != nil {
		return nil, State{}, err
	}
	if err := r.readHead(ctx); err != nil {
		return nil, State{}, err
	}
	if r.newest == nil {
		if err := r.replant(ctx); err != nil {
			return nil, State{}, err
		}
	}
	if r.newest != nil {
		newest = &r.newest.Checkpoint
	}
	state, err = a.Signer.adopt(newest, r.head.SystemIdentifier, r.clock())
	return newest, state, err
}

// replant puts the checkpoints on record, and their tiles, into a bucket that has
// none. They are what they were only if they are signed, and the tree goes on from each.
func (r *run) replant(ctx context.Context) error {
	last, err := r.Database.LastCheckpoint(ctx)
	if err != nil {
		return err
	}
	old := int64(0)
	for number := int64(1); number <= last; number++ {
		signed, err := r.Database.Checkpoint(ctx, number)
		if err != nil {
			return err
		}
		c, err := Open(signed, r.bucket.origin, r.bucket.keys)
		if err != nil {
			return err
		}
		ok, err := extends(c.Tree(), r.tree, r.tiles.checked(r.tree))
		if err != nil {
			return err
		}
		if !ok || c.Number != number || c.Size < old {
			return &Error{Op: "adopt", Object: fmt.Sprintf("checkpoint %d on record", number), Kind: ErrAltered,
				Err: errorString("the tree in the database does not go on from it"), Hint: "pgcustody verify tells what was changed"}
		}
		if err := r.putTiles(ctx, old, c.Tree(), r.until()); err != nil {
			return err
		}
		key := CheckpointKey(c.Origin, number)
		version, err := r.bucket.putLocked(ctx, key, checkpointType, signed, r.until())
		if err != nil {
			return err
		}
		r.newest, old = &anchored{c, signed, version}, c.Size
	}
	return nil
}

// Describe is a line about a result.
func (r Result) Describe() string {
	var out strings.Builder
	switch {
	case r.Newest == nil:
		return "nothing is anchored"
	case r.Anchored:
		fmt.Fprintf(&out, "checkpoint %d anchored: %d entries, root %s, %s", r.Number, r.Size, r.Root, r.Key)
	default:
		fmt.Fprintf(&out, "nothing new: checkpoint %d of %s covers all %d entries", r.Number, r.Time.Format(time.RFC3339), r.Size)
	}
	if t := r.TakenOver; t != nil {
		fmt.Fprintf(&out, "; the database agreed with %d anchored leaves, %d were taken over, %d replaced", t.Prefix, t.Leaves, t.Replaced)
	}
	return out.String()
}
