package importer

import (
	"bufio"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func readRejects(t testing.TB, path string) []rejectedLine {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	var lines []rejectedLine
	scanner := bufio.NewScanner(f)
	scanner.Buffer(nil, 64<<20)
	for scanner.Scan() {
		var line rejectedLine
		require.NoError(t, json.Unmarshal(scanner.Bytes(), &line))
		lines = append(lines, line)
	}
	require.NoError(t, scanner.Err())
	return lines
}

func TestRejectsFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "rejects.jsonl")
	f := file{path: "f.jsonl", table: tables["user_profiles"]}
	bad := func(line int64) badLine {
		return badLine{problem{line: line, code: "PC028", text: "x"}, []byte("original")}
	}

	r, err := CreateRejects(path)
	require.NoError(t, err)
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o600), info.Mode().Perm())

	require.NoError(t, r.add(f, bad(1)))
	require.NoError(t, r.sync())
	mark := r.mark()
	for line := int64(2); line < 1000; line++ {
		require.NoError(t, r.add(f, bad(line)))
	}
	require.NoError(t, r.rollback(mark))
	require.NoError(t, r.add(f, bad(5000)))
	require.NoError(t, r.Close())
	require.Equal(t, int64(2), r.Lines())
	lines := readRejects(t, path)
	require.Len(t, lines, 2)
	require.Equal(t, int64(1), lines[0].Line)
	require.Equal(t, int64(5000), lines[1].Line)

	_, err = CreateRejects(path)
	var there *FileError
	require.ErrorAs(t, err, &there)

	empty := filepath.Join(t.TempDir(), "none.jsonl")
	r, err = CreateRejects(empty)
	require.NoError(t, err)
	require.NoError(t, r.Close())
	require.NoFileExists(t, empty)

	var none *Rejects
	require.NoError(t, none.Close())
	require.NoError(t, none.sync())
	require.NoError(t, none.rollback(none.mark()))
}
