package verify

import (
	"crypto/sha256"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
)

// Lines of a segment follow one another in the tree, but for jumps; a line that is no
// leaf keeps none after it from being found.
func TestFinderJumps(t *testing.T) {
	leaves, err := newSpool(hashWidth)
	require.NoError(t, err)
	defer leaves.close()
	const size = 50_000
	hash := func(i int) *Hash { h := sha256.Sum256([]byte(strconv.Itoa(i))); return &h }
	for i := range size {
		require.NoError(t, leaves.append(hash(i)[:]))
	}
	require.NoError(t, leaves.done())

	f := &finder{leaves: leaves, size: size}
	look := func(i int) int64 {
		index, err := f.find(hash(i))
		require.NoError(t, err)
		return index
	}
	for _, i := range []int{0, 1, 4000, 4001, 40_000, 40_001, 7, 8, 49_999, 9} {
		require.EqualValues(t, i, look(i), "near, ahead, and back")
	}
	for n := range 1000 {
		require.EqualValues(t, -1, look(size+n), "what is no leaf")
		require.EqualValues(t, 10+n, look(10+n), "and what comes after it")
	}
	// After so many lines in a row that are none it may take as many to come back.
	for n := range 100 {
		require.EqualValues(t, -1, look(2*size+n))
	}
	found := 0
	for n := range 1000 {
		if look(20_000+n) >= 0 {
			found++
		}
	}
	require.Greater(t, found, 700)
}
