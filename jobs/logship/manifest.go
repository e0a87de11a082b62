package logship

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
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
	SHA256      SHA256           `json:"sha256"`       // of the object
	PlainSHA256 SHA256           `json:"plain_sha256"` // of its lines
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
// compressed copy for sinks.
type Object struct {
	Stored bytes.Buffer
	Spool  bytes.Buffer
	seal   *segment.Writer
	copy   *zstd.Encoder
}

// NewObject begins one that the recipients can open.
func NewObject(recipients []age.Recipient, spool bool) (*Object, error) {
	o := &Object{}
	var err error
	if o.seal, err = segment.NewWriter(&o.Stored, recipients); err != nil {
		return nil, err
	}
	if spool {
		o.copy, err = zstd.NewWriter(&o.Spool, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithWindowSize(1<<20))
	}
	return o, err
}

// Write takes n lines.
func (o *Object) Write(lines []byte, n int64) error {
	if o.copy != nil {
		if _, err := o.copy.Write(lines); err != nil {
			return err
		}
	}
	return o.seal.WriteLines(lines, n)
}

// Close ends it.
func (o *Object) Close() (segment.Sums, error) {
	if o.copy != nil {
		if err := o.copy.Close(); err != nil {
			return segment.Sums{}, err
		}
	}
	return o.seal.Close()
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
