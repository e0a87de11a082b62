package verify

import (
	"crypto/sha256"
	"fmt"
	"strconv"
)

// tileWidth is the number of hashes in a full tile.
const tileWidth = 256

// frontier is the right edge of a growing tree: the roots of its perfect
// subtrees, largest first.
type frontier struct {
	size  int64
	stack []Hash
	// subtree, where it is not nil, is told the root of every perfect subtree of
	// 256, 65536, … leaves as it is complete: level 1, 2, …
	subtree func(level int, root Hash)
}

func nodeHash(left, right *Hash) Hash {
	var both [1 + 2*sha256.Size]byte
	both[0] = 1
	copy(both[1:], left[:])
	copy(both[1+sha256.Size:], right[:])
	return sha256.Sum256(both[:])
}

func (f *frontier) append(leaf Hash) {
	f.size++
	f.stack = append(f.stack, leaf)
	for height, n := 1, f.size; n&1 == 0; height, n = height+1, n>>1 {
		last := len(f.stack) - 1
		f.stack[last-1] = nodeHash(&f.stack[last-1], &f.stack[last])
		f.stack = f.stack[:last]
		if height%8 == 0 && f.subtree != nil {
			f.subtree(height/8, f.stack[last-1])
		}
	}
}

func (f *frontier) root() Hash {
	if f.size == 0 {
		return sha256.Sum256(nil)
	}
	last := len(f.stack) - 1
	root := f.stack[last]
	for i := last - 1; i >= 0; i-- {
		root = nodeHash(&f.stack[i], &root)
	}
	return root
}

// tilePath is the name of a tile in the layout of C2SP tlog-tiles; width 256 is a
// full one.
func tilePath(level int, index int64, width int) string {
	name := fmt.Sprintf("%03d", index%1000)
	for index >= 1000 {
		index /= 1000
		name = fmt.Sprintf("x%03d/%s", index%1000, name)
	}
	path := "tile/" + strconv.Itoa(level) + "/" + name
	if width < tileWidth {
		path += ".p/" + strconv.Itoa(width)
	}
	return path
}
