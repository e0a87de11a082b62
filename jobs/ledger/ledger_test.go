package ledger

import (
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"pgcustody/jobs/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestCheckOrigin(t *testing.T) {
	for _, origin := range []string{"a", "example.com/custody", "x_1/y-2/z.3", strings.Repeat("a", maxOrigin)} {
		require.NoError(t, CheckOrigin(origin), origin)
	}
	for _, origin := range []string{
		"", "/a", "a/", "a//b", "a/../b", "..", ".", "a/./b", "a b", "a+b", "ä", "a\nb", "a%2fb", `a\b`, strings.Repeat("a", maxOrigin+1),
		"a/tile", "a/checkpoint", "checkpoints/b",
	} {
		require.ErrorIs(t, CheckOrigin(origin), ErrOrigin, origin)
	}
}

func TestLayout(t *testing.T) {
	for _, tile := range []struct {
		level int
		index int64
		width int
		key   string
	}{
		{0, 0, 256, "log/a/b/tile/0/000"},
		{0, 0, 1, "log/a/b/tile/0/000.p/1"},
		{1, 1234067, 256, "log/a/b/tile/1/x001/x234/067"},
		{2, 999, 255, "log/a/b/tile/2/999.p/255"},
		{3, 1000, 8, "log/a/b/tile/3/x001/000.p/8"},
	} {
		require.Equal(t, tile.key, TileKey("a/b", tile.level, tile.index, tile.width))
		level, index, width, ok := ParseTileKey("a/b", tile.key)
		require.True(t, ok, tile.key)
		require.Equal(t, []any{tile.level, tile.index, tile.width}, []any{level, index, width})
	}
	for _, key := range []string{
		"log/a/tile/0/000", "log/a/b/tile/0/00", "log/a/b/tile/0/000.p/0", "log/a/b/tile/0/000.p/256", "log/a/b/tile/00/000",
		"log/a/b/tile/data/000", "log/a/b/tile/-1/000", "log/a/b/tile/0/x000/001", "log/a/b/tile/8/0/000", "log/a/b/checkpoint",
	} {
		_, _, _, ok := ParseTileKey("a/b", key)
		require.False(t, ok, key)
	}

	require.Equal(t, "log/a/b/checkpoints/000000000042", CheckpointKey("a/b", 42))
	number, ok := ParseCheckpointKey("a/b", "log/a/b/checkpoints/000000000042")
	require.True(t, ok)
	require.EqualValues(t, 42, number)
	for _, key := range []string{"log/a/b/checkpoints/42", "log/a/b/checkpoints/000000000000", "log/a/b/checkpoints/00000000042x", "log/a/checkpoints/000000000042", "log/a/b/checkpoints/-00000000042"} {
		_, ok := ParseCheckpointKey("a/b", key)
		require.False(t, ok, key)
	}
	require.Equal(t, "log/a/b/checkpoint", NewestKey("a/b"))
}

// deleteCurrent puts a delete marker over an object, as whoever may delete but not
// break a lock.
func deleteCurrent(t testing.TB, client *s3.Client, s store.Store, key string) {
	t.Helper()
	bucket := strings.TrimPrefix(s.URL(), "s3://")
	_, err := client.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &bucket, Key: &key})
	require.NoError(t, err)
	_, err = s.Head(t.Context(), key, "")
	require.ErrorIs(t, err, store.ErrNotFound)
}
