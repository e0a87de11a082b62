package segment

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/klauspost/compress/zstd"
)

// ErrDamaged is what every finding about an object's content wraps. Errors of
// reading the store do not.
var ErrDamaged = errors.New("segment is damaged")

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrDamaged, fmt.Sprintf(format, args...))
}

// timeForm is how canonical entries write a time.
const timeForm = "2006-01-02T15:04:05.000000Z"

const (
	// maxWindow bounds the memory that a hostile object may ask for.
	maxWindow = 4 * window
	// maxLine bounds a line. Postgres bounds an entry by 1 GiB, jsonb by 256 MiB.
	maxLine = 1 << 30
)

// Read streams an object: line, if it is not nil, is called with every line
// without its line feed and may keep nothing of it. What it returns is over the
// bytes as they were read.
func Read(r io.Reader, line func(line []byte) error) (Sums, error) {
	source := &source{r: r, sum: sha256.New()}
	// In this mode the decoder starts no goroutines.
	decoder, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow))
	if err != nil {
		return Sums{}, fmt.Errorf("open zstd: %w", err)
	}
	defer decoder.Close()

	var sums Sums
	finish := func(err error) (Sums, error) {
		sums.StoredBytes, sums.StoredSHA256 = source.n, source.digest()
		if source.err != nil {
			return sums, source.err // not the object's fault
		}
		return sums, err
	}
	if err := decoder.Reset(source); err != nil {
		return finish(damaged("%s", err))
	}
	plain := sha256.New()
	lines := bufio.NewReaderSize(decoder, 256<<10)
	var long []byte
	for {
		piece, err := lines.ReadSlice('\n')
		plain.Write(piece)
		sums.PlainBytes += int64(len(piece))
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			if long = append(long, piece...); len(long) > maxLine {
				return finish(damaged("line %d is longer than %d bytes", sums.Rows+1, maxLine))
			}
			continue
		case err == io.EOF && len(piece) == 0 && len(long) == 0:
			plain.Sum(sums.PlainSHA256[:0])
			return finish(nil)
		case err == io.EOF:
			return finish(damaged("line %d has no end", sums.Rows+1))
		case err != nil:
			return finish(damaged("after line %d: %s", sums.Rows, err))
		}
		if len(long) > 0 {
			long = append(long, piece...)
			piece = long
		}
		sums.Rows++
		if line != nil {
			if err := line(bytes.TrimSuffix(piece, lineFeed)); err != nil {
				return finish(err)
			}
		}
		long = long[:0]
	}
}

// source counts and hashes what is read and keeps its error apart from the
// decoder's.
type source struct {
	r   io.Reader
	sum hash.Hash
	n   int64
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.sum.Write(p[:n]) // never fails
	s.n += int64(n)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

func (s *source) digest() (sum SHA256) {
	s.sum.Sum(sum[:0])
	return sum
}

// Verify reads an object against its manifest: every line must be an event of
// the manifest's day and window, in order and with no event twice, and counts,
// times and digests must be those of the manifest.
func Verify(r io.Reader, m *Manifest) error {
	check := lineCheck{manifest: m}
	sums, err := Read(r, check.line)
	if err != nil {
		return err
	}
	for _, claim := range []struct {
		what      string
		want, got any
	}{
		{"rows", m.Rows, sums.Rows},
		{"stored_bytes", m.StoredBytes, sums.StoredBytes},
		{"stored_sha256", m.StoredSHA256, sums.StoredSHA256},
		{"plain_bytes", m.PlainBytes, sums.PlainBytes},
		{"plain_sha256", m.PlainSHA256, sums.PlainSHA256},
		{"first_occurred_at", m.FirstOccurredAt.UTC(), check.first},
		{"last_occurred_at", m.LastOccurredAt.UTC(), check.latest},
	} {
		if claim.want != claim.got {
			return damaged("%s is %v, the manifest says %v", claim.what, claim.got, claim.want)
		}
	}
	return nil
}

// lineCheck holds lines against a manifest. Errors name lines by number: what
// stands in them may be personal.
type lineCheck struct {
	manifest      *Manifest
	n             int64
	last          position
	first, latest time.Time
}

// position of a line in its object: ids are unique within a tenant only.
type position struct {
	xid        XID
	id         uuid.UUID
	tenant     string
	occurredAt time.Time
}

func (p position) compare(other position) int {
	return cmp.Or(
		cmp.Compare(p.xid, other.xid), bytes.Compare(p.id[:], other.id[:]),
		cmp.Compare(p.tenant, other.tenant), p.occurredAt.Compare(other.occurredAt))
}

// parseEntry reads the members of a canonical entry that place it. They stand at
// fixed places: all but the last before any text that people wrote.
func parseEntry(text []byte) (p position, version int, ok bool) {
	rest := text
	member := func(name, end string) []byte {
		var value []byte
		after, found := bytes.CutPrefix(rest, []byte(name))
		if value, rest, ok = bytes.Cut(after, []byte(end)); !ok || !found {
			ok, rest = false, nil
		}
		return value
	}
	version, err := strconv.Atoi(string(member(`{"v":`, `,`)))
	if !ok || err != nil {
		return p, version, false
	}
	if p.id, err = uuid.ParseBytes(member(`"log_entry_id":"`, `",`)); !ok || err != nil {
		return p, version, false
	}
	if p.occurredAt, err = time.Parse(timeForm, string(member(`"occurred_at":"`, `",`))); !ok || err != nil {
		return p, version, false
	}
	if member(`"recorded_at":"`, `",`); !ok {
		return p, version, false
	}
	if p.tenant = string(member(`"tenant_id":"`, `",`)); !ok || p.tenant == "" {
		return p, version, false
	}
	i := bytes.LastIndexByte(rest, ',')
	digits, found := bytes.CutPrefix(rest[i+1:], []byte(`"xid":"`))
	digits, ended := bytes.CutSuffix(digits, []byte(`"}`))
	if !found || !ended || p.xid.UnmarshalText(digits) != nil {
		return p, version, false
	}
	return p, version, true
}

func (c *lineCheck) line(text []byte) error {
	c.n++
	here, version, ok := parseEntry(text)
	if !ok || !json.Valid(text) {
		return damaged("line %d is not an entry", c.n)
	}
	day := time.Time(c.manifest.Day)
	at := here.occurredAt
	switch {
	case version != c.manifest.EntryVersion:
		return damaged("line %d has entry version %d, the manifest says %d", c.n, version, c.manifest.EntryVersion)
	case at.Before(day) || !at.Before(day.AddDate(0, 0, 1)):
		return damaged("line %d is of another day", c.n)
	case here.xid < c.manifest.XIDFrom || here.xid >= c.manifest.XIDTo:
		return damaged("line %d is of a transaction outside the window", c.n)
	case c.n > 1 && here.compare(c.last) <= 0:
		return damaged("line %d is out of order or repeated", c.n)
	}
	c.last = here
	if c.first.IsZero() || at.Before(c.first) {
		c.first = at
	}
	if at.After(c.latest) {
		c.latest = at
	}
	return nil
}
