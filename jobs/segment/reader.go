package segment

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"time"

	"filippo.io/age"
	"github.com/klauspost/compress/zstd"
)

var (
	// ErrDamaged is what every finding about an object's content wraps. Errors of
	// reading the store do not.
	ErrDamaged = errors.New("segment is damaged")
	// ErrIdentity is returned where none of the identities opens an object.
	ErrIdentity = errors.New("none of the identities opens the segment")
)

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrDamaged, fmt.Sprintf(format, args...))
}

const (
	// maxWindow bounds the memory that a hostile object may ask for.
	maxWindow = 4 * window
	// maxLine bounds a line. Postgres bounds an entry by 1 GiB, jsonb by 256 MiB.
	maxLine = 1 << 30
)

// Read streams an object: line, if it is not nil, is called with every line
// without its line feed and may keep nothing of it. What it returns is over the
// bytes as they were read; with ErrIdentity those of the stored object alone.
func Read(r io.Reader, identities []age.Identity, line func(line []byte) error) (Sums, error) {
	var sums Sums
	stored := &source{r: r, sum: sha256.New()}
	wait := func() {}
	finish := func(err error) (Sums, error) {
		wait()
		sums.StoredBytes, sums.StoredSHA256 = stored.n, stored.digest()
		if stored.err != nil {
			return sums, stored.err // not the object's fault
		}
		return sums, err
	}
	if len(identities) == 0 {
		identities = []age.Identity{nobody{}}
	}
	decrypted, err := age.Decrypt(stored, identities...)
	if closed := new(age.NoIdentityMatchError); errors.As(err, &closed) {
		if _, err := io.Copy(io.Discard, stored); err != nil {
			return finish(err)
		}
		return finish(ErrIdentity)
	}
	if err != nil {
		return finish(damaged("not of age: %s", err))
	}
	compressed := &source{r: decrypted, sum: sha256.New()}
	// In this mode the decoder starts no goroutines.
	decoder, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow))
	if err != nil {
		return Sums{}, fmt.Errorf("open zstd: %w", err)
	}
	defer decoder.Close()
	if err := decoder.Reset(compressed); err != nil {
		return finish(damaged("%s", err))
	}
	// What comes next is made ready while lines are worked at, and hashed beside that.
	plain := newBeside(sha256.New())
	made, making := io.Pipe()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, err := decoder.WriteTo(io.MultiWriter(plain, making))
		plain.end()
		making.CloseWithError(err)
	}()
	wait = func() {
		_ = made.Close()
		<-ended
	}
	lines := bufio.NewReaderSize(made, 256<<10)
	var long []byte
	for {
		piece, err := lines.ReadSlice('\n')
		sums.PlainBytes += int64(len(piece))
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			if long = append(long, piece...); len(long) > maxLine {
				return finish(damaged("line %d is longer than %d bytes", sums.Rows+1, maxLine))
			}
			continue
		case err == io.EOF && len(piece) == 0 && len(long) == 0:
			wait()
			plain.sum.Sum(sums.PlainSHA256[:0])
			sums.CompressedBytes, sums.CompressedSHA256 = compressed.n, compressed.digest()
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

// beside hashes what is written to it, a few pieces behind its writer.
type beside struct {
	sum        hash.Hash
	full, free chan []byte
	ended      chan struct{}
}

func newBeside(sum hash.Hash) *beside {
	const pieces = 4
	b := &beside{sum: sum, full: make(chan []byte, pieces), free: make(chan []byte, pieces), ended: make(chan struct{})}
	for range pieces {
		b.free <- nil
	}
	go func() {
		defer close(b.ended)
		for piece := range b.full {
			b.sum.Write(piece)
			b.free <- piece
		}
	}()
	return b
}

func (b *beside) Write(p []byte) (int, error) {
	b.full <- append((<-b.free)[:0], p...)
	return len(p), nil
}

// end waits until all is hashed; nothing may be written any more.
func (b *beside) end() {
	close(b.full)
	<-b.ended
}

// nobody has no key, so that an object is only opened as far as its header.
type nobody struct{}

func (nobody) Unwrap([]*age.Stanza) ([]byte, error) { return nil, age.ErrIncorrectIdentity }

// Digest reads an object from its first to its last byte, which needs no identity.
func Digest(r io.Reader) (size int64, sum SHA256, err error) {
	s := &source{r: r, sum: sha256.New()}
	_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, s, make([]byte, 64<<10))
	return s.n, s.digest(), err
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
// the manifest's day, the lines in their order must make its root, and counts,
// times and digests must be those of the manifest. line, if it is not nil, is
// called with every line; what it is given is proved only once Verify has returned.
// Without an identity that opens it, only the stored bytes are held against the
// manifest, and where they are as they should be ErrIdentity is returned.
func Verify(r io.Reader, identities []age.Identity, m *Manifest, line func(line []byte, e *Entry) error) error {
	check := lineCheck{manifest: m, hasher: NewHasher(), root: NewRoot(), then: line}
	sums, err := Read(r, identities, check.line)
	closed := errors.Is(err, ErrIdentity)
	if err != nil && !closed {
		return err
	}
	type claim struct {
		what      string
		want, got any
	}
	claims := []claim{{"stored_bytes", m.StoredBytes, sums.StoredBytes}, {"stored_sha256", m.StoredSHA256, sums.StoredSHA256}}
	if !closed {
		claims = append(claims, []claim{
			{"rows", m.Rows, sums.Rows},
			{"compressed_bytes", m.CompressedBytes, sums.CompressedBytes},
			{"compressed_sha256", m.CompressedSHA256, sums.CompressedSHA256},
			{"plain_bytes", m.PlainBytes, sums.PlainBytes},
			{"plain_sha256", m.PlainSHA256, sums.PlainSHA256},
			{"root", m.Root, check.root.Sum()},
			{"first_occurred_at", m.FirstOccurredAt.UTC(), check.first},
			{"last_occurred_at", m.LastOccurredAt.UTC(), check.latest},
		}...)
	}
	for _, c := range claims {
		if c.want != c.got {
			return damaged("%s is %v, the manifest says %v", c.what, c.got, c.want)
		}
	}
	return err
}

// lineCheck holds lines against a manifest. Errors name lines by number: what
// stands in them may be personal.
type lineCheck struct {
	manifest      *Manifest
	hasher        *Hasher
	root          *Root
	then          func([]byte, *Entry) error
	n             int64
	first, latest time.Time
	here          Entry
}

func (c *lineCheck) line(text []byte) error {
	c.n++
	var ok bool
	if c.here, ok = ParseEntry(text); !ok || !validJSON(text) {
		return damaged("line %d is not an entry", c.n)
	}
	day := time.Time(c.manifest.Day)
	at := c.here.OccurredAt
	switch {
	case c.here.Version != c.manifest.EntryVersion:
		return damaged("line %d has entry version %d, the manifest says %d", c.n, c.here.Version, c.manifest.EntryVersion)
	case at.Before(day) || !at.Before(day.AddDate(0, 0, 1)):
		return damaged("line %d is of another day", c.n)
	}
	c.root.Append(c.hasher.Leaf(text))
	if c.first.IsZero() || at.Before(c.first) {
		c.first = at
	}
	if at.After(c.latest) {
		c.latest = at
	}
	if c.then != nil {
		return c.then(text, &c.here)
	}
	return nil
}
