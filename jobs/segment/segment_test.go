package segment

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

func TestNames(t *testing.T) {
	day := time.Date(2026, 3, 9, 23, 0, 0, 0, time.FixedZone("", 3600))
	for part, keys := range map[int][2]string{
		1: {"audit-archives/2026/03/audit-logs-2026-03-09.jsonl.zst", "audit-archives/2026/03/audit-logs-2026-03-09.manifest.json"},
		2: {"audit-archives/2026/03/audit-logs-2026-03-09.2.jsonl.zst", "audit-archives/2026/03/audit-logs-2026-03-09.2.manifest.json"},
	} {
		n := NewName(day, part)
		require.Equal(t, keys, [2]string{n.ObjectKey(), n.ManifestKey()})
		require.Equal(t, fmt.Sprintf("2026-03-09.%d", part), n.String())
		for _, key := range keys {
			back, err := ParseKey(key)
			require.NoError(t, err)
			require.Equal(t, n, back)
		}
		n.Branch = "0a1b2c3d"
		for i, key := range []string{n.ObjectKey(), n.ManifestKey()} {
			require.NotEqual(t, keys[i], key)
			require.Contains(t, key, "-0a1b2c3d.")
			back, err := ParseKey(key)
			require.NoError(t, err)
			require.Equal(t, n, back)
		}
	}
	for _, bad := range []string{
		"", "audit-logs-2026-03-09.jsonl.zst", "audit-archives/2026/04/audit-logs-2026-03-09.jsonl.zst",
		"audit-archives/2026/03/audit-logs-2026-03-09.1.jsonl.zst", "audit-archives/2026/03/audit-logs-2026-03-09.02.jsonl.zst",
		"audit-archives/2026/03/audit-logs-2026-03-09.jsonl", "audit-archives/2026/03/audit-logs-2026-02-30.jsonl.zst",
		"audit-archives/2026/03/audit-logs-2026-03-09.manifest.json.jsonl.zst", "audit-archives/2026/03/audit-logs-2026-03-09.-2.jsonl.zst",
		"x/audit-archives/2026/03/audit-logs-2026-03-09.jsonl.zst", "audit-archives/2026/03/audit-logs-2026-03-09.2.3.manifest.json",
		"audit-archives/2026/03/audit-logs-2026-03-09-.jsonl.zst", "audit-archives/2026/03/audit-logs-2026-03-09-0A1B2C3D.jsonl.zst",
		"audit-archives/2026/03/audit-logs-2026-03-09-0a1b2c3.2.jsonl.zst", "audit-archives/2026/03/audit-logs-2026-03-09.2-0a1b2c3d4.jsonl.zst",
	} {
		_, err := ParseKey(bad)
		require.Error(t, err, bad)
	}
}

func FuzzParseKey(f *testing.F) {
	f.Add(NewName(time.Unix(0, 0), 1).ObjectKey())
	f.Add(NewName(time.Unix(0, 0), 12).ManifestKey())
	f.Add(Name{Day: time.Unix(0, 0).UTC(), Part: 2, Branch: "0a1b2c3d"}.ManifestKey())
	f.Fuzz(func(t *testing.T, key string) {
		n, err := ParseKey(key)
		if err == nil && key != n.ObjectKey() && key != n.ManifestKey() {
			t.Fatalf("%q is read as %s", key, n)
		}
	})
}

// object writes entries as the archive does.
func object(t testing.TB, entries ...[]byte) ([]byte, Sums) {
	t.Helper()
	var out bytes.Buffer
	w, err := NewWriter(&out)
	require.NoError(t, err)
	for _, e := range entries {
		require.NoError(t, w.WriteEntry(e))
	}
	sums, err := w.Close()
	require.NoError(t, err)
	return out.Bytes(), sums
}

// FuzzRoundTrip cuts free text into lines and expects them back, byte for byte.
func FuzzRoundTrip(f *testing.F) {
	f.Add([]byte("a"), 1)
	f.Add([]byte("{\"v\":1}\n{\"v\":1,\"x\":\"\\u0000\\n\"}\n\r\n\x00\xff"), 3)
	f.Add(bytes.Repeat([]byte("0123456789abcdef"), 64<<10), 7)
	f.Fuzz(func(t *testing.T, text []byte, chunk int) {
		var entries [][]byte
		for line := range bytes.SplitSeq(text, []byte{'\n'}) {
			if len(line) > 0 {
				entries = append(entries, line)
			}
		}
		stored, wrote := object(t, entries...)
		plain := append(bytes.Join(entries, []byte{'\n'}), '\n')
		if len(entries) == 0 {
			plain = nil
		}
		require.Equal(t, Sums{
			Rows: int64(len(entries)), PlainBytes: int64(len(plain)), PlainSHA256: sha256.Sum256(plain),
			StoredBytes: int64(len(stored)), StoredSHA256: sha256.Sum256(stored),
		}, wrote)

		var back [][]byte
		var source io.Reader = bytes.NewReader(stored)
		if chunk%2 == 0 {
			source = iotest.HalfReader(source)
		}
		read, err := Read(source, func(line []byte) error {
			back = append(back, slices.Clone(line))
			return nil
		})
		require.NoError(t, err)
		require.Equal(t, wrote, read)
		require.Equal(t, entries, back)
	})
}

// FuzzRead feeds what is not an object.
func FuzzRead(f *testing.F) {
	whole, _ := object(f, []byte(`{"v":1}`), []byte(`{"v":1}`))
	f.Add(whole)
	f.Add(whole[:len(whole)-1])
	f.Add(append(slices.Clone(whole), 0))
	f.Fuzz(func(t *testing.T, stored []byte) {
		sums, err := Read(bytes.NewReader(stored), nil)
		if err != nil {
			require.ErrorIs(t, err, ErrDamaged)
			return
		}
		require.EqualValues(t, len(stored), sums.StoredBytes, "something behind the object was not read")
		require.EqualValues(t, sha256.Sum256(stored), sums.StoredSHA256)
	})
}

func TestWriterRefusesWhatIsNoLine(t *testing.T) {
	w, err := NewWriter(io.Discard)
	require.NoError(t, err)
	require.Error(t, w.WriteEntry(nil))
	require.Error(t, w.WriteEntry([]byte("a\nb")))
	require.EqualValues(t, 0, w.Rows())
	_, err = w.Close()
	require.NoError(t, err)
	_, err = w.Close()
	require.Error(t, err)
}

func TestWriterPassesErrorsOn(t *testing.T) {
	full := errors.New("store is full")
	r, pipe := io.Pipe()
	require.NoError(t, r.CloseWithError(full))
	w, err := NewWriter(pipe)
	require.NoError(t, err)
	for range 1 << 20 {
		entry := make([]byte, 64)
		for i := range entry {
			entry[i] = byte('a' + rand.IntN(26))
		}
		if err = w.WriteEntry(entry); err != nil {
			break
		}
	}
	require.ErrorIs(t, err, full)
	_, err = w.Close()
	require.ErrorIs(t, err, full)
}

func TestReadRefusesALineWithoutEnd(t *testing.T) {
	encoder, err := zstd.NewWriter(nil)
	require.NoError(t, err)
	defer encoder.Close()
	_, err = Read(bytes.NewReader(encoder.EncodeAll([]byte("a\nb"), nil)), nil)
	require.ErrorIs(t, err, ErrDamaged)
	sums, err := Read(bytes.NewReader(encoder.EncodeAll([]byte("a\nb\n"), nil)), nil)
	require.NoError(t, err)
	require.EqualValues(t, 2, sums.Rows)
}

func TestReadKeepsTheStoresErrorsApart(t *testing.T) {
	stored, _ := object(t, bytes.Repeat([]byte("x"), 100))
	lost := errors.New("connection lost")
	_, err := Read(io.MultiReader(bytes.NewReader(stored[:10]), iotest.ErrReader(lost)), nil)
	require.ErrorIs(t, err, lost)
	require.NotErrorIs(t, err, ErrDamaged)
}

var day = time.Date(2026, 11, 20, 0, 0, 0, 0, time.UTC)

type event struct {
	xid uint64
	id  int
	at  time.Duration
}

func (e event) line() []byte {
	return fmt.Appendf(nil, `{"v":1,"log_entry_id":"00000000-0000-7000-8000-%012d","occurred_at":%q,"recorded_at":%q,"tenant_id":"acme","action":"x","metadata":{},"db_role":"app","xid":"%d"}`,
		e.id, day.Add(e.at).Format(timeForm), day.Add(e.at).Format(timeForm), e.xid)
}

// sample is an object of 300 events with its manifest.
func sample(t testing.TB) ([][]byte, []byte, *Manifest) {
	var entries [][]byte
	for i := range 300 {
		entries = append(entries, event{uint64(1000 + i/10), i, time.Duration((i*7919)%86400) * time.Second}.line())
	}
	stored, m := sealed(t, entries)
	return entries, stored, m
}

func sealed(t testing.TB, entries [][]byte) ([]byte, *Manifest) {
	stored, sums := object(t, entries...)
	m := &Manifest{
		Version: 1, EntryVersion: 1, SchemaVersion: 10, SoftwareVersion: "test",
		Day: Date(day), Part: 1, XIDFrom: 1000, XIDTo: 1100,
		Rows: sums.Rows, FirstOccurredAt: day.Add(24 * time.Hour), LastOccurredAt: day,
		ObjectKey: NewName(day, 1).ObjectKey(), ObjectVersion: "v1", Compression: "zstd",
		PlainBytes: sums.PlainBytes, PlainSHA256: sums.PlainSHA256, StoredBytes: sums.StoredBytes, StoredSHA256: sums.StoredSHA256,
		RetainUntil: day.AddDate(7, 0, 1), ArchivedAt: day.AddDate(0, 0, 1),
	}
	for _, e := range entries {
		var entry struct {
			At time.Time `json:"occurred_at"`
		}
		require.NoError(t, json.Unmarshal(e, &entry))
		if entry.At.Before(m.FirstOccurredAt) {
			m.FirstOccurredAt = entry.At
		}
		if entry.At.After(m.LastOccurredAt) {
			m.LastOccurredAt = entry.At
		}
	}
	return stored, m
}

func TestVerifyAcceptsWhatWasWritten(t *testing.T) {
	_, stored, m := sample(t)
	require.NoError(t, Verify(bytes.NewReader(stored), m))

	// Ids are unique within a tenant, so two tenants may share one in a transaction.
	a, b := event{1000, 1, 0}.line(), bytes.ReplaceAll(event{1000, 1, 0}.line(), []byte("acme"), []byte("bcme"))
	stored, m = sealed(t, [][]byte{a, b})
	require.NoError(t, Verify(bytes.NewReader(stored), m))
}

// TestVerifyFindsDamage gives lines that were tampered with together with a
// manifest that was made for them: the lines themselves must give it away.
func TestVerifyFindsDamage(t *testing.T) {
	for name, change := range map[string]func(e [][]byte) [][]byte{
		"line of another day":       func(e [][]byte) [][]byte { e[5] = event{1000, 5, 25 * time.Hour}.line(); return e },
		"line of the day before":    func(e [][]byte) [][]byte { e[5] = event{1000, 5, -time.Microsecond}.line(); return e },
		"transaction below":         func(e [][]byte) [][]byte { e[0] = event{999, 0, 0}.line(); return e },
		"transaction above":         func(e [][]byte) [][]byte { e[299] = event{1100, 299, 0}.line(); return e },
		"line repeated":             func(e [][]byte) [][]byte { return slices.Insert(e, 5, e[5]) },
		"lines out of order":        func(e [][]byte) [][]byte { e[5], e[6] = e[6], e[5]; return e },
		"transactions out of order": func(e [][]byte) [][]byte { e[5], e[200] = e[200], e[5]; return e },
		"not JSON":                  func(e [][]byte) [][]byte { e[5] = []byte("{"); return e },
		"JSON of another kind":      func(e [][]byte) [][]byte { e[5] = []byte("[]"); return e },
		"no time": func(e [][]byte) [][]byte {
			e[5] = []byte(`{"v":1,"log_entry_id":"x","tenant_id":"a","xid":"1000"}`)
			return e
		},
		"another version": func(e [][]byte) [][]byte { e[5] = bytes.Replace(e[5], []byte(`"v":1`), []byte(`"v":2`), 1); return e },
		"transaction is not a number": func(e [][]byte) [][]byte {
			e[5] = bytes.Replace(e[5], []byte(`"xid":"1000"`), []byte(`"xid":"-1"`), 1)
			return e
		},
	} {
		t.Run(name, func(t *testing.T) {
			entries, _, genuine := sample(t)
			changed := change(entries)
			stored, sums := object(t, changed...)
			m := *genuine
			m.Rows, m.PlainBytes, m.PlainSHA256, m.StoredBytes, m.StoredSHA256 = sums.Rows, sums.PlainBytes, sums.PlainSHA256, sums.StoredBytes, sums.StoredSHA256
			err := Verify(bytes.NewReader(stored), &m)
			require.ErrorIs(t, err, ErrDamaged)
			require.Contains(t, err.Error(), "line ")
			require.NotContains(t, err.Error(), "acme", "a finding quotes the line")
		})
	}
	t.Run("claims of the manifest", func(t *testing.T) {
		_, stored, genuine := sample(t)
		for field, change := range map[string]func(m *Manifest){
			"rows":              func(m *Manifest) { m.Rows++ },
			"plain_bytes":       func(m *Manifest) { m.PlainBytes++ },
			"plain_sha256":      func(m *Manifest) { m.PlainSHA256[0] ^= 1 },
			"stored_bytes":      func(m *Manifest) { m.StoredBytes-- },
			"stored_sha256":     func(m *Manifest) { m.StoredSHA256[31] ^= 1 },
			"first_occurred_at": func(m *Manifest) { m.FirstOccurredAt = m.FirstOccurredAt.Add(time.Microsecond) },
			"last_occurred_at":  func(m *Manifest) { m.LastOccurredAt = m.LastOccurredAt.Add(-time.Microsecond) },
		} {
			m := *genuine
			change(&m)
			err := Verify(bytes.NewReader(stored), &m)
			require.ErrorIs(t, err, ErrDamaged, field)
			require.Contains(t, err.Error(), field)
		}
	})
	t.Run("every byte counts", func(t *testing.T) {
		_, stored, m := sample(t)
		for range 200 {
			damaged := slices.Clone(stored)
			damaged[rand.IntN(len(damaged))] ^= byte(1 << rand.IntN(8))
			require.ErrorIs(t, Verify(bytes.NewReader(damaged), m), ErrDamaged)
		}
		for range 50 {
			require.ErrorIs(t, Verify(bytes.NewReader(stored[:rand.IntN(len(stored))]), m), ErrDamaged)
		}
		require.ErrorIs(t, Verify(bytes.NewReader(append(slices.Clone(stored), stored...)), m), ErrDamaged)
		require.ErrorIs(t, Verify(bytes.NewReader(append(slices.Clone(stored), 'x')), m), ErrDamaged)
	})
}

func TestManifestRoundTrip(t *testing.T) {
	_, _, m := sample(t)
	text, err := m.Encode()
	require.NoError(t, err)
	back, err := DecodeManifest(bytes.NewReader(text))
	require.NoError(t, err)
	require.True(t, m.Same(back))
	again, err := back.Encode()
	require.NoError(t, err)
	require.Equal(t, string(text), string(again))
	require.Contains(t, string(text), `"day": "2026-11-20"`)
	require.Contains(t, string(text), `"xid_to": "1100"`)

	other := *m
	other.ArchivedAt, other.SoftwareVersion, other.RetainUntil = day, "other", day
	require.True(t, m.Same(&other), "when and by what it was written is no difference")
	other.ObjectVersion = "v2"
	require.False(t, m.Same(&other))
}

// TestManifestRefusesTheImpossible sets each field to its zero value, takes each
// away, adds one, and cuts the document.
func TestManifestRefusesTheImpossible(t *testing.T) {
	_, _, m := sample(t)
	text, err := m.Encode()
	require.NoError(t, err)
	var fields map[string]any
	require.NoError(t, json.Unmarshal(text, &fields))
	for name, value := range fields {
		without := map[string]any{}
		for n, v := range fields {
			if n != name {
				without[n] = v
			}
		}
		changed := []map[string]any{without}
		for _, wrong := range []any{nil, "", 0, -1, "x", []any{}, true} {
			with := map[string]any{}
			for n, v := range without {
				with[n] = v
			}
			with[name] = wrong
			changed = append(changed, with)
		}
		for _, c := range changed {
			if c[name] == "x" && (name == "software_version" || name == "object_version") {
				continue
			}
			text, err := json.Marshal(c)
			require.NoError(t, err)
			_, err = DecodeManifest(bytes.NewReader(text))
			require.Error(t, err, "%s = %v (was %v)", name, c[name], value)
		}
	}
	for _, bad := range []string{"", "{}", "null", string(text[:len(text)/2]), string(text) + "{}", strings.Replace(string(text), "{", `{"extra": 1,`, 1), strings.Repeat(" ", manifestLimit) + string(text)} {
		_, err := DecodeManifest(strings.NewReader(bad))
		require.Error(t, err)
	}
}

func FuzzDecodeManifest(f *testing.F) {
	_, _, m := sample(f)
	text, _ := m.Encode()
	f.Add(text)
	f.Fuzz(func(t *testing.T, text []byte) {
		m, err := DecodeManifest(bytes.NewReader(text))
		if err != nil {
			return
		}
		again, err := m.Encode()
		require.NoError(t, err)
		back, err := DecodeManifest(bytes.NewReader(again))
		require.NoError(t, err)
		require.True(t, m.Same(back))
	})
}

// TestOrdinaryToolsRead reads an object without a line of this package.
func TestOrdinaryToolsRead(t *testing.T) {
	if _, err := exec.LookPath("zstd"); err != nil {
		t.Skip("zstd is not installed")
	}
	entries, stored, m := sample(t)
	tool := exec.Command("zstd", "-dc")
	tool.Stdin = bytes.NewReader(stored)
	plain, err := tool.Output()
	require.NoError(t, err)
	require.EqualValues(t, sha256.Sum256(plain), m.PlainSHA256)
	require.Equal(t, append(bytes.Join(entries, []byte{'\n'}), '\n'), plain)
}

func TestReadNeedsConstantMemory(t *testing.T) {
	const rows = 100_000
	r, pipe := io.Pipe()
	go func() {
		w, err := NewWriter(pipe)
		for i := range rows {
			if err == nil {
				err = w.WriteEntry(event{uint64(i), i, 0}.line())
			}
		}
		if err == nil {
			_, err = w.Close()
		}
		_ = pipe.CloseWithError(err)
	}()
	var lines int
	var peak uint64
	sums, err := Read(r, func([]byte) error {
		if lines++; lines%20_000 == 0 {
			var m runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&m)
			peak = max(peak, m.HeapAlloc)
		}
		return nil
	})
	require.NoError(t, err)
	require.EqualValues(t, rows, sums.Rows)
	require.Greater(t, sums.PlainBytes, int64(16<<20))
	require.Less(t, peak, uint64(48<<20), "of %d bytes", sums.PlainBytes)
}
