package logship

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"

	"filippo.io/age"
	"github.com/klauspost/compress/zstd"

	"pgcustody/jobs/segment"
)

// Prefix is where batches are in the store.
const Prefix = "server-logs/"

const (
	objectSuffix   = ".jsonl.zst.age"
	manifestSuffix = ".manifest.json"
)

// Keys are those of a batch's object and manifest. attempt is 1, or more where another
// object has the number: what a killed run left, or another branch of the database.
func Keys(number int64, attempt int) (object, manifest string) {
	stem := fmt.Sprintf("%s%012d", Prefix, number)
	if attempt > 1 {
		stem += "-" + strconv.Itoa(attempt)
	}
	return stem + objectSuffix, stem + manifestSuffix
}

// NumberOf reads the number back from a key.
func NumberOf(key string) (number int64, ok bool) {
	base, ok := strings.CutPrefix(key, Prefix)
	if !ok || len(base) < 12 {
		return 0, false
	}
	number, err := strconv.ParseInt(base[:12], 10, 64)
	return number, err == nil && (strings.HasSuffix(base, objectSuffix) || strings.HasSuffix(base, manifestSuffix))
}

// SHA256 is written in hexadecimal.
type SHA256 [sha256.Size]byte

// MarshalText writes it down.
func (s SHA256) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, s[:]), nil }

// UnmarshalText reads it back.
func (s *SHA256) UnmarshalText(text []byte) error {
	b, err := hex.DecodeString(string(text))
	if err != nil || len(b) != len(s) {
		return fmt.Errorf("%q is no SHA-256", text)
	}
	copy(s[:], b)
	return nil
}

// Manifest says what a batch's object holds.
type Manifest struct {
	Version     int              `json:"version"` // 1
	Number      int64            `json:"number"`
	Source      string           `json:"source"`
	Format      string           `json:"format"`
	File        string           `json:"file"`
	From        int64            `json:"from"` // bytes of the file
	To          int64            `json:"to"`
	ObjectKey   string           `json:"object_key"`
	SHA256      SHA256           `json:"sha256"`            // of the object
	Compressed  SHA256           `json:"compressed_sha256"` // of the zstd frame within
	Lines       int64            `json:"lines"`
	Bytes       int64            `json:"bytes"`        // of the log
	StoredBytes int64            `json:"stored_bytes"` // of the object
	First       *time.Time       `json:"first_occurred_at,omitempty"`
	Last        *time.Time       `json:"last_occurred_at,omitempty"`
	Counts      map[string]int64 `json:"counts"`
	Previous    SHA256           `json:"previous_sha256"` // of the manifest before, zeros in the first
	RetainUntil time.Time        `json:"retain_until"`
	Recipients  []string         `json:"recipients"`
}

// Bytes is the document that is stored.
func (m *Manifest) Document() ([]byte, error) {
	document, err := json.MarshalIndent(m, "", "  ")
	return append(document, '\n'), err
}

// ParseManifest reads one.
func ParseManifest(document []byte) (*Manifest, error) {
	m := &Manifest{}
	decoder := json.NewDecoder(bytes.NewReader(document))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(m); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	if m.Version != 1 {
		return nil, fmt.Errorf("manifest of version %d", m.Version)
	}
	return m, nil
}

// Object takes the lines of a batch: into the sealed object, and where asked into a
// compressed copy for sinks. Its lines are not hashed, as a segment's are, but what they
// are compressed to: a tenth of the bytes, and half of the time that all of it would take.
type Object struct {
	Stored, Spool bytes.Buffer
	Sums          Sums // after Close
	encrypt       io.WriteCloser
	compress      *zstd.Encoder
	digest        hash.Hash
}

// Sums are of what was written.
type Sums struct{ Stored, Compressed SHA256 }

// NewObject begins one that the recipients can open.
func NewObject(recipients []age.Recipient, spool bool) (*Object, error) {
	if len(recipients) == 0 {
		return nil, segment.ErrNoRecipients
	}
	o := &Object{digest: sha256.New(), compress: encoders.Get().(*zstd.Encoder)} //nolint:forcetypeassert // it has no others
	var err error
	if o.encrypt, err = age.Encrypt(&o.Stored, recipients...); err != nil {
		return nil, fmt.Errorf("open age: %w", err)
	}
	to := []io.Writer{o.encrypt, o.digest}
	if spool {
		to = append(to, &o.Spool)
	}
	o.compress.Reset(io.MultiWriter(to...))
	return o, nil
}

// encoders are used again: each takes megabytes. A window of a megabyte cost a fifth of the
// time to make a batch, most of it for moving what was compressed, and saved a sixth of what
// is a sixtieth of the log.
var encoders = sync.Pool{New: func() any {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithWindowSize(256<<10), zstd.WithEncoderCRC(true))
	if err != nil {
		panic(err) // of the options
	}
	return e
}}

// Write takes lines.
func (o *Object) Write(lines []byte, _ int64) error {
	_, err := o.compress.Write(lines)
	return err
}

// Close ends it.
func (o *Object) Close() error {
	if err := errors.Join(o.compress.Close(), o.encrypt.Close()); err != nil {
		return err
	}
	encoders.Put(o.compress)
	o.compress = nil
	o.digest.Sum(o.Sums.Compressed[:0])
	o.Sums.Stored = sha256.Sum256(o.Stored.Bytes())
	return nil
}

// ReadLines opens an object with an identity of its recipients.
func ReadLines(r io.Reader, identities ...age.Identity) (io.ReadCloser, error) {
	opened, err := age.Decrypt(r, identities...)
	if err != nil {
		return nil, fmt.Errorf("open batch: %w", err)
	}
	plain, err := zstd.NewReader(opened, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(64<<20))
	if err != nil {
		return nil, fmt.Errorf("open batch: %w", err)
	}
	return plain.IOReadCloser(), nil
}
