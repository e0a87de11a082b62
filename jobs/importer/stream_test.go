package importer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"
)

// readStream reads a file through a stream and returns the numbers of the lines that made rows.
func readStream(t testing.TB, source io.Reader, parsers int, reject func(badLine) error) ([]int64, *stream, error) {
	t.Helper()
	list := make([]*rowParser, parsers)
	for i := range list {
		list[i] = testParser("user_preferences")
	}
	s := newStream(context.Background(), source, list, reject, nil)
	defer s.close()
	data, err := io.ReadAll(s)
	if err != nil {
		return nil, s, err
	}
	require.True(t, bytes.HasPrefix(data, []byte(copyHeader)))
	require.True(t, bytes.HasSuffix(data, []byte(copyTrailer)))
	data = data[len(copyHeader) : len(data)-len(copyTrailer)]
	var numbers []int64
	for len(data) > 0 {
		require.Equal(t, uint16(3), binary.BigEndian.Uint16(data))
		data = data[2:]
		for column := range 3 {
			size := int(binary.BigEndian.Uint32(data))
			if column == 0 {
				numbers = append(numbers, int64(binary.BigEndian.Uint64(data[4:])))
			}
			data = data[4+size:]
		}
	}
	return numbers, s, nil
}

// TestStreamKeepsOrder: whatever the sizes of lines and reads, every line makes its row, in the order of the file,
// and the digest is that of the file.
func TestStreamKeepsOrder(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	for round := range 6 {
		var file bytes.Buffer
		var want []int64
		for line := int64(1); line <= 3000; line++ {
			switch random.IntN(12) {
			case 0:
				file.WriteString([]string{"", "  ", "\r", "\t"}[random.IntN(4)])
			default:
				fmt.Fprintf(&file, `{"user_id":"u%d","preferences":{"x":"%s"}}`, line, strings.Repeat("y", random.IntN(2000)))
				if random.IntN(2) == 0 {
					file.WriteString("\r")
				}
				want = append(want, line)
			}
			if line < 3000 || round%2 == 0 {
				file.WriteString("\n")
			}
		}
		sum := sha256.Sum256(file.Bytes())
		size := int64(file.Len())
		source := io.Reader(&file)
		if round%3 == 1 {
			source = iotest.HalfReader(source)
		}
		got, s, err := readStream(t, source, 1+round%4, nil)
		require.NoError(t, err)
		require.Equal(t, want, got)
		require.Equal(t, sum[:], s.digest.Sum(nil))
		require.Equal(t, size, s.bytes)
		require.Equal(t, int64(len(want)), s.read)
	}
}

func TestStreamOfNothing(t *testing.T) {
	for _, file := range []string{"", "\n", "\n\n \n", "\ufeff"} {
		got, _, err := readStream(t, strings.NewReader(file), 2, nil)
		require.NoError(t, err)
		require.Empty(t, got)
	}
}

func TestStreamMark(t *testing.T) {
	got, _, err := readStream(t, strings.NewReader("\ufeff"+lineOf(t, "user_preferences", nil)+"\r\n"+lineOf(t, "user_preferences", nil)), 2, nil)
	require.NoError(t, err)
	require.Equal(t, []int64{1, 2}, got)
	// Only at the beginning of the file.
	_, _, err = readStream(t, strings.NewReader(lineOf(t, "user_preferences", nil)+"\n\ufeff"+lineOf(t, "user_preferences", nil)), 2, nil)
	require.Error(t, err)
}

// TestStreamNamesTheFirstBadLine, though a later block may have been parsed before it.
func TestStreamNamesTheFirstBadLine(t *testing.T) {
	good := lineOf(t, "user_preferences", map[string]any{"preferences": map[string]any{"x": strings.Repeat("y", 5000)}}) + "\n"
	for _, bad := range []int{1, 2, 700, 1500, 2000} {
		var file strings.Builder
		for line := 1; line <= 2000; line++ {
			if line == bad || line == 2000 || line > bad && line%97 == 0 {
				file.WriteString("{}\n")
			} else {
				file.WriteString(good)
			}
		}
		_, s, err := readStream(t, strings.NewReader(file.String()), 4, nil)
		var failure *errBadLine
		require.ErrorAs(t, err, &failure)
		require.Equal(t, int64(bad), failure.line)
		require.Equal(t, "user_id", failure.field)
		require.Equal(t, "is missing", failure.problem.text)
		require.ErrorIs(t, s.failed(), err)
	}
}

func TestStreamKeepsRejects(t *testing.T) {
	var file strings.Builder
	var want []int64
	for line := int64(1); line <= 5000; line++ {
		if line%7 == 0 {
			fmt.Fprintf(&file, `{"user_id":"bad-%d"}`+"\n", line)
			want = append(want, line)
		} else {
			file.WriteString(lineOf(t, "user_preferences", nil) + "\n")
		}
	}
	var got []int64
	rows, s, err := readStream(t, strings.NewReader(file.String()), 3, func(b badLine) error {
		got = append(got, b.line)
		require.Equal(t, fmt.Sprintf(`{"user_id":"bad-%d"}`, b.line), string(b.text))
		return nil
	})
	require.NoError(t, err)
	require.Equal(t, want, got)
	require.Equal(t, int64(5000), s.read)
	require.Equal(t, int64(len(want)), s.rejected)
	require.Len(t, rows, 5000-len(want))

	full := errors.New("disk full")
	_, _, err = readStream(t, strings.NewReader(file.String()), 3, func(badLine) error { return full })
	require.ErrorIs(t, err, full)
}

// TestStreamLongLines: a line at the limit is parsed, one beyond is a bad line that takes no more memory.
func TestStreamLongLines(t *testing.T) {
	frame := lineOf(t, "user_preferences", map[string]any{"preferences": map[string]any{"x": ""}})
	padded := func(size int) io.Reader {
		before, after, _ := strings.Cut(frame, `""`)
		return io.MultiReader(strings.NewReader(before+`"`), io.LimitReader(letters{}, int64(size-len(frame))), strings.NewReader(`"`+after+"\n"))
	}
	good := lineOf(t, "user_preferences", nil) + "\n"

	got, _, err := readStream(t, io.MultiReader(padded(maxLine), strings.NewReader(good)), 2, nil)
	require.NoError(t, err)
	require.Equal(t, []int64{1, 2}, got)

	for _, size := range []int{maxLine + 1, maxLine + 2, 3*maxLine + 5} {
		var bad []badLine
		source := io.MultiReader(strings.NewReader(good), padded(size), strings.NewReader(good))
		got, s, err := readStream(t, source, 2, func(b badLine) error {
			bad = append(bad, badLine{b.problem, bytes.Clone(b.text)})
			return nil
		})
		require.NoError(t, err)
		require.Equal(t, []int64{1, 3}, got)
		require.Len(t, bad, 1)
		require.Equal(t, int64(2), bad[0].line)
		require.Contains(t, bad[0].problem.text, "16 MiB")
		require.Len(t, bad[0].text, maxLine+1)
		require.Equal(t, int64(size+1+2*len(good)), s.bytes)
	}
}

type letters struct{}

func (letters) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
	}
	return len(p), nil
}

func TestStreamReadError(t *testing.T) {
	broken := errors.New("broken disk")
	_, s, err := readStream(t, io.MultiReader(strings.NewReader(lineOf(t, "user_preferences", nil)+"\n"), iotest.ErrReader(broken)), 2, nil)
	require.ErrorIs(t, err, broken)
	require.ErrorIs(t, s.failed(), broken)
}

// TestStreamIsCancelled: also in the middle of a line without end.
func TestStreamIsCancelled(t *testing.T) {
	for _, lines := range []int{100_000, 20_000} {
		ctx, cancel := context.WithCancel(t.Context())
		s := newStream(ctx, io.MultiReader(strings.NewReader(strings.Repeat(lineOf(t, "user_preferences", nil)+"\n", lines)), letters{}),
			[]*rowParser{testParser("user_preferences")}, nil, func(int64) { cancel() })
		_, err := io.Copy(io.Discard, s)
		require.ErrorIs(t, err, context.Canceled)
		s.close()
	}
}

func BenchmarkParse(b *testing.B) {
	for _, table := range Tables() {
		b.Run(table, func(b *testing.B) {
			line := []byte(lineOf(b, table, nil))
			p := testParser(table, "source_ip")
			b.SetBytes(int64(len(line)))
			b.ReportAllocs()
			var row []byte
			for b.Loop() {
				var prob *problem
				if row, prob = p.appendRow(row[:0], line, 1); prob != nil {
					b.Fatal(prob)
				}
			}
		})
	}
}
