package segment

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"hash"
	"iter"
	"math/bits"
	"sort"
	"strconv"
	"strings"
)

// Run is a run of leaves that follow one another in the ledger's tree. It is
// written as [first, count].
type Run struct{ First, Count int64 }

// End is the leaf behind the run.
func (r Run) End() int64 { return r.First + r.Count }

// MarshalJSON writes the pair.
func (r Run) MarshalJSON() ([]byte, error) {
	out := strconv.AppendInt([]byte{'['}, r.First, 10)
	out = strconv.AppendInt(append(out, ','), r.Count, 10)
	return append(out, ']'), nil
}

// UnmarshalJSON reads the pair.
func (r *Run) UnmarshalJSON(text []byte) error {
	var pair []int64
	if err := json.Unmarshal(text, &pair); err != nil || len(pair) != 2 {
		return fmt.Errorf("leaves: a run is not [first, count]")
	}
	r.First, r.Count = pair[0], pair[1]
	return nil
}

// Runs are the leaves of a segment, in the order of its lines: ascending, and no
// run follows on another.
type Runs []Run

// MaxRuns is how many a segment may have.
const MaxRuns = 1_000_000

// ParseRuns reads them as Postgres writes an int8multirange: {[0,256),[300,312)}.
func ParseRuns(text string) (Runs, error) {
	bad := func() (Runs, error) { return nil, fmt.Errorf("leaves are no multirange") }
	inner, ok := strings.CutPrefix(text, "{")
	inner, end := strings.CutSuffix(inner, "}")
	if !ok || !end {
		return bad()
	}
	var runs Runs
	for inner != "" {
		var one string
		if one, inner, ok = strings.Cut(inner, ")"); !ok {
			return bad()
		}
		one, opened := strings.CutPrefix(one, "[")
		first, last, comma := strings.Cut(one, ",")
		from, err := strconv.ParseInt(first, 10, 64)
		to, err2 := strconv.ParseInt(last, 10, 64)
		if !opened || !comma || err != nil || err2 != nil {
			return bad()
		}
		runs = append(runs, Run{First: from, Count: to - from})
		if inner, ok = strings.CutPrefix(inner, ","); !ok && inner != "" || ok && inner == "" {
			return bad()
		}
	}
	if !runs.valid() {
		return bad()
	}
	return runs, nil
}

// Text writes them as Postgres does.
func (r Runs) Text() string {
	out := []byte{'{'}
	for i, run := range r {
		if i > 0 {
			out = append(out, ',')
		}
		out = strconv.AppendInt(append(out, '['), run.First, 10)
		out = strconv.AppendInt(append(out, ','), run.End(), 10)
		out = append(out, ')')
	}
	return string(append(out, '}'))
}

func (r Runs) valid() bool {
	before := int64(-1)
	for _, run := range r {
		// 2^53: JSON readers lose digits beyond it.
		if run.First <= before || run.Count < 1 || run.First > 1<<53 || run.Count > 1<<53 {
			return false
		}
		before = run.End()
	}
	return len(r) > 0 && len(r) <= MaxRuns
}

// Count is the number of leaves.
func (r Runs) Count() (n int64) {
	for _, run := range r {
		n += run.Count
	}
	return n
}

// Hold tells whether a leaf is among them.
func (r Runs) Hold(leaf int64) bool {
	i := sort.Search(len(r), func(i int) bool { return r[i].End() > leaf })
	return i < len(r) && r[i].First <= leaf
}

// All gives every leaf, in the order of the lines.
func (r Runs) All() iter.Seq[int64] {
	return func(yield func(int64) bool) {
		for _, run := range r {
			for leaf := run.First; leaf < run.End(); leaf++ {
				if !yield(leaf) {
					return
				}
			}
		}
	}
}

// Hasher makes leaf hashes, SHA-256 of a zero byte and the line (RFC 6962), without
// allocating for each. It is for one goroutine.
type Hasher struct{ sum hash.Hash }

// NewHasher returns one.
func NewHasher() *Hasher { return &Hasher{sum: sha256.New()} }

var leafPrefix = []byte{0}

// Leaf is the leaf hash of a line without its line feed.
func (h *Hasher) Leaf(line []byte) (leaf SHA256) {
	h.sum.Reset()
	h.sum.Write(leafPrefix)
	h.sum.Write(line)
	h.sum.Sum(leaf[:0])
	return leaf
}

// Root makes the root of a tree (RFC 6962) of leaf hashes given in order, in memory
// that grows with the logarithm of their number.
type Root struct {
	leaves uint64
	// full are the roots of the full subtrees that the leaves make: of 2^i where bit i
	// of their number is set.
	full [64]SHA256
}

// NewRoot begins a tree.
func NewRoot() *Root { return &Root{} }

// Append adds the next leaf hash.
func (r *Root) Append(hash SHA256) {
	i := 0
	for ; r.leaves>>i&1 == 1; i++ {
		hash = node(&r.full[i], &hash)
	}
	r.full[i] = hash
	r.leaves++
}

// Sum is the root of what was appended.
func (r *Root) Sum() (root SHA256) {
	if r.leaves == 0 {
		return sha256.Sum256(nil)
	}
	i := bits.TrailingZeros64(r.leaves)
	root = r.full[i]
	for i++; r.leaves>>i != 0; i++ {
		if r.leaves>>i&1 == 1 {
			root = node(&r.full[i], &root)
		}
	}
	return root
}

func node(left, right *SHA256) SHA256 {
	var text [65]byte
	text[0] = 1
	copy(text[1:], left[:])
	copy(text[33:], right[:])
	return sha256.Sum256(text[:])
}
