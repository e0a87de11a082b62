package segment

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// ManifestVersion is the version of the manifest's own form.
const ManifestVersion = 2

// manifestLimit is more than a manifest can need: most of it are the runs of its
// leaves.
const manifestLimit = 64 << 20

// Manifest says what an object of the archive holds. It is a JSON document under
// the same lock. Every field is required.
type Manifest struct {
	// Version of this form: 2.
	Version int `json:"version"`
	// EntryVersion is the version of the canonical entry that each line is.
	EntryVersion int `json:"entry_version"`
	// SchemaVersion is the database's, the last versioned migration that it had.
	SchemaVersion int64 `json:"schema_version"`
	// SoftwareVersion is that of the pgcustody that wrote the object.
	SoftwareVersion string `json:"software_version"`

	// Day of the events, by occurred_at in UTC, and the part of it, from 1: events
	// that came after the day was archived make the next part.
	Day  Date `json:"day"`
	Part int  `json:"part"`
	// Leaves of the ledger's tree that the lines are, as runs [first, count] in the
	// order of the lines.
	Leaves Runs `json:"leaves"`
	// Root of a tree (RFC 6962) of the lines alone, in their order. The leaf hashes
	// are those of the ledger's tree, so that whoever has its tiles can make it
	// without the lines.
	Root SHA256 `json:"root"`

	// Rows is the number of lines; FirstOccurredAt and LastOccurredAt are the
	// earliest and the latest time in them.
	Rows            int64     `json:"rows"`
	FirstOccurredAt time.Time `json:"first_occurred_at"`
	LastOccurredAt  time.Time `json:"last_occurred_at"`

	// ObjectKey is the key of the object, ObjectVersion the version that was
	// written and read back: whatever lies over it is not the archive's.
	// SupersededVersions are those that attempts left which died.
	ObjectKey          string   `json:"object_key"`
	ObjectVersion      string   `json:"object_version"`
	SupersededVersions []string `json:"superseded_versions"`
	// Compression is zstd, Encryption age, to Recipients.
	Compression string   `json:"compression"`
	Encryption  string   `json:"encryption"`
	Recipients  []string `json:"recipients"`
	// Plain is the lines with their line feeds, Compressed what age encrypted,
	// Stored the object.
	PlainBytes       int64  `json:"plain_bytes"`
	PlainSHA256      SHA256 `json:"plain_sha256"`
	CompressedBytes  int64  `json:"compressed_bytes"`
	CompressedSHA256 SHA256 `json:"compressed_sha256"`
	StoredBytes      int64  `json:"stored_bytes"`
	StoredSHA256     SHA256 `json:"stored_sha256"`
	// People tells of whom the lines may be: a filter, see [People].
	People []byte `json:"people"`

	// RetainUntil is until when both objects were locked when the manifest was
	// written. The lock may have been lengthened since.
	RetainUntil time.Time `json:"retain_until"`
	// ArchivedAt is when the manifest was written.
	ArchivedAt time.Time `json:"archived_at"`
}

// Name of the manifest's segment.
func (m *Manifest) Name() Name {
	name := Name{Day: time.Time(m.Day), Part: m.Part}
	if of, err := ParseKey(m.ObjectKey); err == nil {
		name.Branch = of.Branch
	}
	return name
}

// Encode writes the manifest as it is stored: a member a line.
func (m *Manifest) Encode() ([]byte, error) {
	if m.SupersededVersions == nil {
		m.SupersededVersions = []string{}
	}
	if err := m.check(); err != nil {
		return nil, err
	}
	text, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode manifest: %w", err)
	}
	out := make([]byte, 0, len(text)+256)
	decoder := json.NewDecoder(bytes.NewReader(text))
	_, _ = decoder.Token()
	for separator := "{"; decoder.More(); separator = "," {
		var value json.RawMessage
		name, err := decoder.Token()
		if err == nil {
			err = decoder.Decode(&value)
		}
		if err != nil {
			return nil, fmt.Errorf("encode manifest: %w", err)
		}
		out = append(fmt.Appendf(out, "%s\n  %q: ", separator, name), value...)
	}
	return append(out, "\n}\n"...), nil
}

// DecodeManifest reads a manifest and refuses one with unknown or impossible
// fields: it decides what may be dropped.
func DecodeManifest(r io.Reader) (*Manifest, error) {
	text, err := io.ReadAll(io.LimitReader(r, manifestLimit+1))
	if err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	if len(text) > manifestLimit {
		return nil, fmt.Errorf("decode manifest: longer than %d bytes", manifestLimit)
	}
	var m Manifest
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&m); err != nil {
		return nil, fmt.Errorf("decode manifest: %w", err)
	}
	if _, err := decoder.Token(); err != io.EOF {
		return nil, fmt.Errorf("decode manifest: something follows the document")
	}
	if err := m.check(); err != nil {
		return nil, err
	}
	return &m, nil
}

func (m *Manifest) check() error {
	day := time.Time(m.Day)
	for _, rule := range []struct {
		holds bool
		field string
		value any
	}{
		{m.Version == ManifestVersion, "version", m.Version},
		{m.EntryVersion == 1, "entry_version", m.EntryVersion},
		{m.SchemaVersion > 0, "schema_version", m.SchemaVersion},
		{m.SoftwareVersion != "", "software_version", m.SoftwareVersion},
		{!day.IsZero(), "day", m.Day},
		{m.Part >= 1, "part", m.Part},
		{m.Leaves.valid(), "leaves", len(m.Leaves)},
		{m.Rows == m.Leaves.Count(), "rows", m.Rows},
		{m.Root != SHA256{}, "root", m.Root},
		{!m.FirstOccurredAt.Before(day), "first_occurred_at", m.FirstOccurredAt},
		{!m.LastOccurredAt.Before(m.FirstOccurredAt) && m.LastOccurredAt.Before(day.AddDate(0, 0, 1)), "last_occurred_at", m.LastOccurredAt},
		{m.ObjectKey == m.Name().ObjectKey(), "object_key", m.ObjectKey},
		{m.ObjectVersion != "", "object_version", m.ObjectVersion},
		{m.SupersededVersions != nil && !slices.Contains(m.SupersededVersions, m.ObjectVersion), "superseded_versions", m.SupersededVersions},
		{m.Compression == "zstd", "compression", m.Compression},
		{m.Encryption == "age", "encryption", m.Encryption},
		{len(m.Recipients) >= 1, "recipients", m.Recipients},
		{m.PlainBytes >= 2*m.Rows, "plain_bytes", m.PlainBytes},
		{m.PlainSHA256 != SHA256{}, "plain_sha256", m.PlainSHA256},
		{m.CompressedBytes >= 1, "compressed_bytes", m.CompressedBytes},
		{m.CompressedSHA256 != SHA256{}, "compressed_sha256", m.CompressedSHA256},
		{m.StoredBytes >= 1, "stored_bytes", m.StoredBytes},
		{m.StoredSHA256 != SHA256{}, "stored_sha256", m.StoredSHA256},
		{checkPeople(m.People), "people", len(m.People)},
		{!m.RetainUntil.IsZero(), "retain_until", m.RetainUntil},
		{!m.ArchivedAt.IsZero(), "archived_at", m.ArchivedAt},
	} {
		if !rule.holds {
			return fmt.Errorf("manifest: %s cannot be %v", rule.field, rule.value)
		}
	}
	return nil
}

// SameEvents tells whether two manifests are about the same lines. How they were
// compressed, encrypted and stored may differ, and when.
func (m *Manifest) SameEvents(other *Manifest) bool {
	return m.EntryVersion == other.EntryVersion && m.Day == other.Day && m.Part == other.Part && m.ObjectKey == other.ObjectKey &&
		slices.Equal(m.Leaves, other.Leaves) && m.Rows == other.Rows && m.Root == other.Root &&
		m.FirstOccurredAt.Equal(other.FirstOccurredAt) && m.LastOccurredAt.Equal(other.LastOccurredAt) &&
		m.PlainBytes == other.PlainBytes && m.PlainSHA256 == other.PlainSHA256 && bytes.Equal(m.People, other.People)
}

// Date is a day in UTC, written as in 2026-11-20.
type Date time.Time

func (d Date) String() string { return time.Time(d).Format(time.DateOnly) }

// MarshalText writes the day.
func (d Date) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads a day.
func (d *Date) UnmarshalText(text []byte) error {
	t, err := time.Parse(time.DateOnly, string(text))
	if err != nil {
		return fmt.Errorf("%q is not a day", text)
	}
	*d = Date(t)
	return nil
}

// SHA256 is a digest, written in hexadecimal.
type SHA256 [32]byte

func (s SHA256) String() string { return hex.EncodeToString(s[:]) }

// MarshalText writes the digest.
func (s SHA256) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads a digest.
func (s *SHA256) UnmarshalText(text []byte) error {
	if len(text) != 2*len(s) || strings.ToLower(string(text)) != string(text) {
		return fmt.Errorf("%q is not a SHA-256 in lower-case hexadecimal", text)
	}
	_, err := hex.Decode(s[:], text)
	return err
}
