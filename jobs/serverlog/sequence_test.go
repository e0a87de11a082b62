package serverlog

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

type line struct {
	session string
	number  int64
	second  int // after the log began
	age     int // of the session, in seconds
}

func check(s *Sequence, lines ...line) (found []string) {
	began := time.Date(2026, 11, 21, 22, 0, 0, 0, time.UTC)
	for i, l := range lines {
		at := began.Add(time.Duration(l.second) * time.Second)
		const layout = "2006-01-02 15:04:05"
		for _, f := range s.Check(nil, &Record{
			SessionID: []byte(l.session), LineNum: l.number, Time: at, Start: int64(i),
			Timestamp:    []byte(at.Format(layout) + ".000 UTC"),
			SessionStart: []byte(at.Add(-time.Duration(l.age)*time.Second).Format(layout) + " UTC"),
		}) {
			found = append(found, fmt.Sprintf("%s %s %d-%d %s", f.Kind, f.SessionID, f.From, f.To, f.Back))
		}
	}
	return found
}

func TestSequence(t *testing.T) {
	for name, c := range map[string]struct {
		lines []line
		want  []string
	}{
		"in order":           {[]line{{"a", 1, 0, 0}, {"b", 1, 0, 0}, {"a", 2, 1, 1}, {"b", 2, 1, 1}}, nil},
		"gap":                {[]line{{"a", 1, 0, 0}, {"a", 4, 1, 1}, {"a", 5, 1, 1}}, []string{"gap a 2-3 0s"}},
		"repeat":             {[]line{{"a", 1, 0, 0}, {"a", 2, 0, 0}, {"a", 2, 1, 1}, {"a", 1, 1, 1}}, []string{"repeat a 2-2 0s", "repeat a 1-1 0s"}},
		"reordered":          {[]line{{"a", 1, 0, 0}, {"a", 5, 0, 0}, {"a", 3, 1, 1}, {"a", 2, 1, 1}, {"a", 4, 1, 1}, {"a", 4, 1, 1}, {"a", 6, 1, 1}}, []string{"gap a 2-4 0s", "reordered a 3-3 0s", "reordered a 2-2 0s", "reordered a 4-4 0s", "repeat a 4-4 0s"}},
		"two gaps":           {[]line{{"a", 1, 0, 0}, {"a", 5, 0, 0}, {"a", 7, 0, 0}, {"a", 3, 1, 1}, {"a", 6, 1, 1}}, []string{"gap a 2-4 0s", "gap a 6-6 0s", "reordered a 3-3 0s", "reordered a 6-6 0s"}},
		"older session":      {[]line{{"a", 1, 0, 0}, {"b", 70, 1, 60}, {"b", 72, 2, 61}}, []string{"gap b 71-71 0s"}},
		"first lines gone":   {[]line{{"a", 1, 0, 0}, {"b", 3, 9, 4}}, []string{"gap b 1-2 0s"}},
		"the log itself":     {[]line{{"a", 3, 0, 0}}, nil},
		"clock back":         {[]line{{"a", 1, 100, 0}, {"a", 2, 40, 0}, {"a", 3, 41, 0}, {"b", 1, 39, 0}}, []string{"clock set back  0-0 1m0s"}},
		"clock within limit": {[]line{{"a", 1, 100, 0}, {"b", 1, 98, 0}, {"a", 2, 100, 0}, {"b", 2, 99, 0}}, nil},
	} {
		require.Equal(t, c.want, check(NewSequence(SequenceOptions{}), c.lines...), name)
		// The same, by a new Sequence for each line.
		var found []string
		s := NewSequence(SequenceOptions{Since: time.Date(2026, 11, 21, 22, 0, 0, 0, time.UTC)})
		if name == "clock back" || name == "the log itself" {
			continue
		}
		for _, l := range c.lines {
			found = append(found, check(s, l)...)
			s = NewSequence(SequenceOptions{Since: s.since}, s.Places()...)
		}
		require.Equal(t, c.want, found, name)
	}
}

func TestSequenceForgets(t *testing.T) {
	s := NewSequence(SequenceOptions{Sessions: 2})
	check(s, line{"a", 1, 0, 0}, line{"b", 1, 0, 0}, line{"a", 2, 0, 0}, line{"c", 1, 0, 0})
	places := s.Places()
	require.Equal(t, []string{"a", "c"}, []string{places[0].SessionID, places[1].SessionID})
	s.Forget([]byte("a"))
	s.Forget([]byte("x"))
	require.Len(t, s.Places(), 1)
	// Gaps without end do not grow without end, nor change what was handed out.
	for i := range int64(200) {
		before := s.Places()
		kept := fmt.Sprint(before)
		check(s, line{"c", 10 + 5*i, 0, 0})
		require.Equal(t, kept, fmt.Sprint(before))
	}
	require.Len(t, s.Places()[0].Missing, missingKept)
}

func TestFilePlace(t *testing.T) {
	text := bytes.Repeat([]byte("0123456789abcde\n"), 1000)
	for _, offset := range []int64{0, 1, 100, placeBytes, placeBytes + 1, int64(len(text))} {
		place, err := MarkFile(bytes.NewReader(text), offset)
		require.NoError(t, err)
		is := func(now []byte) (kinds []FindingKind) {
			found, err := place.Check(bytes.NewReader(now), int64(len(now)))
			require.NoError(t, err)
			for _, f := range found {
				require.NotEmpty(t, f.String())
				kinds = append(kinds, f.Kind)
			}
			return kinds
		}
		require.Empty(t, is(text))
		require.Empty(t, is(append(text[:len(text):len(text)], "more"...)))
		if offset == 0 {
			continue
		}
		require.Equal(t, []FindingKind{Truncated}, is(text[:offset-1]))
		for _, at := range []int64{0, offset - 1} {
			other := bytes.Clone(text)
			other[at] ^= 1
			require.Equal(t, []FindingKind{Replaced}, is(other))
		}
		// The size that was found does not hold any more.
		found, err := place.Check(bytes.NewReader(text[:offset-1]), int64(len(text)))
		require.NoError(t, err)
		require.Equal(t, Truncated, found[0].Kind)
	}
	_, err := MarkFile(bytes.NewReader(nil), 1)
	require.Error(t, err)
}
