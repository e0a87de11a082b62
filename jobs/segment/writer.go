package segment

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"

	"filippo.io/age"
	"github.com/klauspost/compress/zstd"
)

// Sums is what is known of a segment's bytes once all have passed: plain are the
// lines with their line feeds, compressed is what age encrypted, stored is the
// object.
type Sums struct {
	Rows                                        int64
	PlainBytes, CompressedBytes, StoredBytes    int64
	PlainSHA256, CompressedSHA256, StoredSHA256 SHA256
}

// Writer turns entries into the bytes of an object. It holds a few compression
// windows and no line. Compression runs beside its caller; after an error, too,
// Close must be called.
type Writer struct {
	stored, compressed, plain counter
	encrypt                   io.WriteCloser
	compress                  *zstd.Encoder
	rows                      int64
	done                      bool
}

// ErrNoRecipients is returned where nobody could open what would be written.
var ErrNoRecipients = errors.New("no recipients: the archive is always encrypted")

// NewWriter writes an object to w that the recipients can open. Close ends it.
func NewWriter(w io.Writer, recipients []age.Recipient) (*Writer, error) {
	if len(recipients) == 0 {
		return nil, ErrNoRecipients
	}
	s := &Writer{stored: counter{to: w, sum: sha256.New()}}
	var err error
	if s.encrypt, err = age.Encrypt(&s.stored, recipients...); err != nil {
		return nil, fmt.Errorf("open age: %w", err)
	}
	s.compressed = counter{to: s.encrypt, sum: sha256.New()}
	// Two: one block is filled while another is compressed. The fastest level takes half
	// of the time of the next one, and makes lines as small or smaller.
	s.compress, err = zstd.NewWriter(&s.compressed, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(2),
		zstd.WithEncoderCRC(true), zstd.WithWindowSize(window))
	if err != nil {
		return nil, fmt.Errorf("open zstd: %w", err)
	}
	s.plain = counter{to: s.compress, sum: sha256.New()}
	return s, nil
}

// window is how far back compression looks, and most of the memory it needs. Lines are
// like those just before them: to look further back makes them no smaller.
const window = 512 << 10

var lineFeed = []byte{'\n'}

// WriteEntry adds one event. An entry holds no line feed and is not empty: a
// line could not be told from another otherwise.
func (w *Writer) WriteEntry(entry []byte) error {
	if len(entry) == 0 || bytes.IndexByte(entry, '\n') >= 0 {
		return fmt.Errorf("entry %d is empty or holds a line feed", w.rows+1)
	}
	if _, err := w.plain.Write(entry); err != nil {
		return err
	}
	if _, err := w.plain.Write(lineFeed); err != nil {
		return err
	}
	w.rows++
	return nil
}

// WriteLines adds n events that end in a line feed each. They are hashed while they
// are compressed.
func (w *Writer) WriteLines(lines []byte, n int64) error {
	hashed := make(chan struct{})
	go func() {
		w.plain.sum.Write(lines)
		close(hashed)
	}()
	_, err := w.compress.Write(lines)
	<-hashed
	w.plain.n += int64(len(lines))
	w.rows += n
	return err
}

// Rows is the number of entries so far.
func (w *Writer) Rows() int64 { return w.rows }

// Close ends the object and says what was written. After an error there is no
// whole object.
func (w *Writer) Close() (Sums, error) {
	if w.done {
		return Sums{}, errors.New("segment is closed")
	}
	w.done = true
	if err := w.compress.Close(); err != nil {
		return Sums{}, err
	}
	if err := w.encrypt.Close(); err != nil {
		return Sums{}, err
	}
	return Sums{
		Rows: w.rows, PlainBytes: w.plain.n, CompressedBytes: w.compressed.n, StoredBytes: w.stored.n,
		PlainSHA256: w.plain.digest(), CompressedSHA256: w.compressed.digest(), StoredSHA256: w.stored.digest(),
	}, nil
}

// counter counts and hashes what passes.
type counter struct {
	to  io.Writer
	sum hash.Hash
	n   int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.to.Write(p)
	c.sum.Write(p[:n])
	c.n += int64(n)
	return n, err
}

func (c *counter) digest() (s SHA256) {
	c.sum.Sum(s[:0])
	return s
}
