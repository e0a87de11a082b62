// Package ledger is what the audit ledger has outside of the database: signed
// checkpoints, the key that signs them, the objects under which they and the tiles
// are anchored, and proofs that are checked offline.
//
// The formats are not ours: leaves and nodes are those of RFC 6962, tiles and
// their names C2SP tlog-tiles, checkpoints C2SP tlog-checkpoint, signed as notes
// (golang.org/x/mod/sumdb/note), and proofs of inclusion C2SP tlog-proof. Ours is
// one signed line of a checkpoint (see [Anchored]) and the file of a consistency
// proof (see [ConsistencyProof]).
//
// Under the store's prefix, for the origin example.com/custody:
//
//	log/example.com/custody/checkpoint                  the newest, written over
//	log/example.com/custody/checkpoints/000000000001    each, locked, without gaps
//	log/example.com/custody/tile/0/x001/234             256 hashes, locked
//	log/example.com/custody/tile/0/x001/235.p/17        17 hashes, of a tree of that size
//
// so that a static file server over the bucket serves a log at …/log/ORIGIN/.
package ledger

import (
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/tlog"
)

// HashSize is the length of a SHA-256, tileHeight and TileWidth those of a tile:
// 2^8 hashes.
const (
	HashSize   = tlog.HashSize
	TileWidth  = 1 << tileHeight
	tileHeight = 8
)

// maxOrigin leaves room for the rest of an object's name, of which stores take
// 1,024 bytes.
const maxOrigin = 200

// CheckOrigin tells what is wrong with the name of a log. It is also the name of
// its keys and part of its objects' names, so it is narrower than C2SP asks for.
func CheckOrigin(origin string) error {
	wrong := func(why string) error {
		return &Error{Op: "check", Object: "origin " + strconv.Quote(origin), Kind: ErrOrigin, Err: errorString(why),
			Hint: "write it as example.com/custody: letters, digits and . - _ in parts between slashes"}
	}
	switch {
	case origin == "":
		return wrong("it is empty")
	case len(origin) > maxOrigin:
		return wrong(fmt.Sprintf("it has more than %d characters", maxOrigin))
	}
	for part := range strings.SplitSeq(origin, "/") {
		switch {
		case part == "":
			return wrong("a part between slashes is empty")
		case part == "." || strings.Contains(part, ".."):
			return wrong("a part is a path to elsewhere")
		case part == "tile" || part == "checkpoint" || part == "checkpoints":
			return wrong(part + " is a name of the log's own objects")
		}
		for _, r := range part {
			if (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '.' && r != '-' && r != '_' {
				return wrong(fmt.Sprintf("it has the character %q", r))
			}
		}
	}
	return nil
}

// Prefix is what the names of all objects of a log begin with.
func Prefix(origin string) string { return "log/" + origin + "/" }

// NewestKey is the object of the newest checkpoint, which is written over.
func NewestKey(origin string) string { return Prefix(origin) + "checkpoint" }

// CheckpointPrefix is what the names of all numbered checkpoints begin with.
func CheckpointPrefix(origin string) string { return Prefix(origin) + "checkpoints/" }

// numberDigits is the length of a checkpoint's number in its name: one a second
// would last for 30,000 years.
const numberDigits = 12

// CheckpointKey is the object of one checkpoint, which is locked.
func CheckpointKey(origin string, number int64) string {
	return fmt.Sprintf("%s%0*d", CheckpointPrefix(origin), numberDigits, number)
}

// ParseCheckpointKey is the reverse of [CheckpointKey].
func ParseCheckpointKey(origin, key string) (number int64, ok bool) {
	digits, ok := strings.CutPrefix(key, CheckpointPrefix(origin))
	if !ok {
		return 0, false
	}
	number, err := strconv.ParseInt(digits, 10, 64)
	return number, err == nil && number > 0 && CheckpointKey(origin, number) == key
}

// TileKey is the object of a tile with width hashes.
func TileKey(origin string, level int, index int64, width int) string {
	return Prefix(origin) + TilePath(level, index, width)
}

// TilePath is a tile's path in the log, as C2SP tlog-tiles has it: that of
// [tlog.Tile.Path] without the height.
func TilePath(level int, index int64, width int) string {
	path := tlog.Tile{H: tileHeight, L: level, N: index, W: width}.Path()
	return "tile/" + strings.TrimPrefix(path, fmt.Sprintf("tile/%d/", tileHeight))
}

// ParseTileKey is the reverse of [TileKey].
func ParseTileKey(origin, key string) (level int, index int64, width int, ok bool) {
	path, ok := strings.CutPrefix(key, Prefix(origin)+"tile/")
	if !ok {
		return 0, 0, 0, false
	}
	tile, err := tlog.ParseTilePath(fmt.Sprintf("tile/%d/%s", tileHeight, path))
	return tile.L, tile.N, tile.W, err == nil && tile.L >= 0
}
