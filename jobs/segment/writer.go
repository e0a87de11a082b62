package segment

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/klauspost/compress/zstd"
)

// Sums is what is known of a segment's bytes once all have passed.
type Sums struct {
	Rows                      int64
	PlainBytes, StoredBytes   int64
	PlainSHA256, StoredSHA256 SHA256
}

// Writer turns entries into the bytes of an object. It holds one compression
// window and no line.
type Writer struct {
	out    counter
	plain  counter
	encode *zstd.Encoder
	rows   int64
	done   bool
}

// NewWriter writes an object to w. Close ends it.
func NewWriter(w io.Writer) (*Writer, error) {
	s := &Writer{out: counter{to: w, sum: sha256.New()}}
	encoder, err := zstd.NewWriter(&s.out, zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(true), zstd.WithWindowSize(window))
	if err != nil {
		return nil, fmt.Errorf("open zstd: %w", err)
	}
	s.encode = encoder
	s.plain = counter{to: encoder, sum: sha256.New()}
	return s, nil
}

// window is how far back compression looks, and most of the memory it needs; that
// of `zstd -3`.
const window = 2 << 20

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

// Rows is the number of entries so far.
func (w *Writer) Rows() int64 { return w.rows }

// Close ends the object and says what was written. After an error there is no
// whole object.
func (w *Writer) Close() (Sums, error) {
	if w.done {
		return Sums{}, errors.New("segment is closed")
	}
	w.done = true
	if err := w.encode.Close(); err != nil {
		return Sums{}, err
	}
	return Sums{
		Rows: w.rows, PlainBytes: w.plain.n, StoredBytes: w.out.n,
		PlainSHA256: w.plain.digest(), StoredSHA256: w.out.digest(),
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
