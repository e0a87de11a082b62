package jobs_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
)

// secrets are texts that must stand nowhere, in all their spellings, and a search for all of them at once. Case does not
// count: a spelling in hexadecimal, and an e-mail address, may come in either.
type secrets struct {
	traces map[uint32][]trace // by their first four bytes
	may    [1 << 16]bool      // whether a trace begins with four bytes of this hash
	count  int
}

// trace is one spelling of a secret, in lower case.
type trace struct {
	name string
	text []byte
}

// text adds a planted value: as it is, in hexadecimal and in base64 wherever in a longer text it begins; of a long one also
// its beginning and its end alone, because texts are cut.
func (s *secrets) text(name, value string) {
	s.bytes(name, []byte(value))
	if n := len(value); n >= 20 {
		s.add(name+", beginning", []byte(value[:12]))
		s.add(name+", end", []byte(value[n-12:]))
	}
}

// key adds a key of 64 bytes, either half of which is a secret of its own.
func (s *secrets) key(name string, key []byte) {
	half := len(key) / 2
	s.bytes(name+", first half", key[:half])
	s.bytes(name+", second half", key[half:])
}

func (s *secrets) bytes(name string, value []byte) {
	s.add(name, value)
	s.add(name+" in hexadecimal", []byte(hex.EncodeToString(value)))
	var octal strings.Builder // bytea_output = escape
	for _, b := range value {
		if b < ' ' || b > '~' {
			fmt.Fprintf(&octal, `\%03o`, b)
		} else {
			octal.WriteByte(b)
		}
	}
	s.add(name+" in octal", []byte(octal.String()))
	for before := range 3 {
		for _, encoding := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
			text := encoding.EncodeToString(append(make([]byte, before), value...))
			s.add(name+" in base64", []byte(text[(before*8+5)/6:(before+len(value))*8/6]))
		}
	}
}

func (s *secrets) add(name string, text []byte) {
	if len(text) < 10 {
		panic("a secret that is too short is found by chance")
	}
	text = lower(text)
	start := first(text)
	if slices.ContainsFunc(s.traces[start], func(t trace) bool { return bytes.Equal(t.text, text) }) {
		return
	}
	if s.traces == nil {
		s.traces = map[uint32][]trace{}
	}
	s.traces[start] = append(s.traces[start], trace{name, text})
	s.may[hash(start)] = true
	s.count++
}

func first(b []byte) uint32 {
	return uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24
}

func hash(start uint32) uint16 { return uint16(start * 2654435761 >> 16) }

var lowerCase = func() (table [256]byte) {
	for i := range table {
		table[i] = byte(i)
		if 'A' <= i && i <= 'Z' {
			table[i] += 'a' - 'A'
		}
	}
	return table
}()

func lower(b []byte) []byte {
	out := make([]byte, len(b))
	for i, c := range b {
		out[i] = lowerCase[c]
	}
	return out
}

// in returns the names of the secrets in a text, each with what is around it.
func (s *secrets) in(place string, content []byte) (found []string) {
	seen := map[string]bool{}
	start, read := uint32(0), 0
	for from := 0; from < len(content); from += len(zeros) {
		block := content[from:min(from+len(zeros), len(content))]
		if bytes.Equal(block, zeros[:len(block)]) { // much of a cluster is
			start, read = 0, 0
			continue
		}
		for i, c := range block {
			start = start>>8 | uint32(lowerCase[c])<<24
			if read++; read < 4 || !s.may[hash(start)] {
				continue
			}
			at := from + i - 3
			for _, t := range s.traces[start] {
				if end := at + len(t.text); end <= len(content) && !seen[t.name] && bytes.Equal(lower(content[at:end]), t.text) {
					seen[t.name] = true
					found = append(found, fmt.Sprintf("%s in %s: %q", t.name, place, content[max(0, at-200):min(len(content), end+40)]))
				}
			}
		}
	}
	return found
}

var zeros = make([]byte, 4096)

// inFiles searches the files below a folder. Files may come and go meanwhile.
func (s *secrets) inFiles(t *testing.T, dir string) (found []string, files int) {
	t.Helper()
	var mu sync.Mutex
	var group errgroup.Group
	group.SetLimit(4)
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if os.IsNotExist(err) {
			return nil
		}
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		group.Go(func() error {
			content, err := os.ReadFile(path)
			if os.IsNotExist(err) {
				return nil
			}
			here := s.in(path, content)
			mu.Lock()
			defer mu.Unlock()
			files++
			found = append(found, here...)
			return err
		})
		return nil
	})
	require.NoError(t, errors.Join(err, group.Wait()))
	slices.Sort(found)
	return found, files
}

func TestSearchForSecrets(t *testing.T) {
	t.Parallel()
	var s secrets
	key := make([]byte, 64)
	for i := range key {
		key[i] = byte(math.Sqrt(float64(i*1117))) ^ 0xa5
	}
	s.text("value", "Some.Planted@Value-4711.Example")
	s.key("key", key)
	for _, text := range []string{
		"x some.planted@value-4711.example", "SOME.PLANTED@VALUE-4711.EXAMPLE", "Some.Planted", "value-4711.Example", fmt.Sprintf("%x", "Some.Planted@Value-4711.Example"),
		base64.StdEncoding.EncodeToString([]byte("Some.Planted@Value-4711.Example")), base64.StdEncoding.EncodeToString([]byte(`{"x":"Some.Planted@Value-4711.Example"}`)),
		base64.URLEncoding.EncodeToString([]byte(`{"xy":"Some.Planted@Value-4711.Example"}`)),
	} {
		require.NotEmpty(t, s.in("here", []byte(text)), text)
	}
	for _, text := range [][]byte{
		key, key[:32], append([]byte("x"), key[32:]...), fmt.Appendf(nil, "%x", key), fmt.Appendf(nil, "%X", key[30:]),
		[]byte(base64.StdEncoding.EncodeToString(key)), []byte(base64.RawURLEncoding.EncodeToString(key[31:])),
	} {
		require.NotEmpty(t, s.in("here", text), "%q", text)
	}
	require.Empty(t, s.in("here", []byte("Some.Plante@Value-4711Example")))
	require.Empty(t, s.in("here", nil))
	require.Empty(t, s.in("here", key[1:32]))
}
