package jobs

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestPace(t *testing.T) {
	t.Parallel()
	p := newPace(RetentionConfig{Batch: 1000, MinBatch: 100, Calm: 2, Pause: 20 * time.Millisecond, Backoff: time.Second, MaxBackoff: 3 * time.Second})
	require.Equal(t, 1000, p.batch)
	require.Equal(t, 20*time.Millisecond, p.done(time.Second, false), "nobody felt it")
	require.Equal(t, 1000, p.batch)

	require.Equal(t, time.Second, p.done(time.Second, true), "somebody waited behind it: half of the time is theirs")
	require.Equal(t, 500, p.batch)
	require.Equal(t, 20*time.Millisecond, p.done(time.Millisecond, true))
	require.Equal(t, 250, p.batch)

	for i, want := range []time.Duration{time.Second, 2 * time.Second, 3 * time.Second, 3 * time.Second} {
		require.Equal(t, want, p.ended(), "end %d", i)
	}
	require.Equal(t, 100, p.batch, "never less than the least")
	require.EqualValues(t, 6, p.yields)

	for range 2 {
		require.Equal(t, 20*time.Millisecond, p.done(time.Second, false))
	}
	require.Equal(t, 200, p.batch, "calm lets it grow")
	require.Equal(t, time.Second, p.ended(), "and begins the waits anew")
	for range 20 {
		p.done(0, false)
	}
	require.Equal(t, 1000, p.batch, "up to the most")
	p.done(0, false)
	p.done(0, true)
	p.done(0, false)
	require.Equal(t, 500, p.batch, "calm is in a row")
}
