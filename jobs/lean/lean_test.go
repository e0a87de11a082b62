package lean

import (
	"runtime/debug"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTheLastOnePutsItBack(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(70))
	now := func() int {
		is := debug.SetGCPercent(100)
		debug.SetGCPercent(is)
		return is
	}
	first := Heap()
	second := Heap()
	require.Equal(t, percent, now())
	first()
	require.Equal(t, percent, now(), "somebody is still at work")
	second()
	require.Equal(t, 70, now())
}
