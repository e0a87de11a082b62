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

	"filippo.io/age"
	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/mod/sumdb/tlog"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

func TestNames(t *testing.T) {
	day := time.Date(2026, 3, 9, 23, 0, 0, 0, time.FixedZone("", 3600))
	for part, keys := range map[int][2]string{
		1: {"audit-archives/2026/03/audit-logs-2026-03-09.jsonl.zst.age", "audit-archives/2026/03/audit-logs-2026-03-09.manifest.json"},
		2: {"audit-archives/2026/03/audit-logs-2026-03-09.2.jsonl.zst.age", "audit-archives/2026/03/audit-logs-2026-03-09.2.manifest.json"},
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
		"", "audit-logs-2026-03-09.jsonl.zst.age", "audit-archives/2026/04/audit-logs-2026-03-09.jsonl.zst.age",
		"audit-archives/2026/03/audit-logs-2026-03-09.1.jsonl.zst.age", "audit-archives/2026/03/audit-logs-2026-03-09.02.jsonl.zst.age",
		"audit-archives/2026/03/audit-logs-2026-03-09.jsonl.zst", "audit-archives/2026/03/audit-logs-2026-02-30.jsonl.zst.age",
		"audit-archives/2026/03/audit-logs-2026-03-09.manifest.json.jsonl.zst.age", "audit-archives/2026/03/audit-logs-2026-03-09.-2.jsonl.zst.age",
		"x/audit-archives/2026/03/audit-logs-2026-03-09.jsonl.zst.age", "audit-archives/2026/03/audit-logs-2026-03-09.2.3.manifest.json",
		"audit-archives/2026/03/audit-logs-2026-03-09-.jsonl.zst.age", "audit-archives/2026/03/audit-logs-2026-03-09-0A1B2C3D.jsonl.zst.age",
		"audit-archives/2026/03/audit-logs-2026-03-09-0a1b2c3.2.jsonl.zst.age", "audit-archives/2026/03/audit-logs-2026-03-09.2-0a1b2c3d4.jsonl.zst.age",
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

// timeForm is how canonical entries write a time.
const timeForm = "2006-01-02T15:04:05.000000Z"

func TestParseTime(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 20_000 {
		text := []byte(time.UnixMicro(random.Int64N(253_402_300_800_000_000)).UTC().Format(timeForm))
		for range random.IntN(3) {
			text[random.IntN(len(text))] = "0123456789-:.TZ "[random.IntN(16)]
		}
		want, err := time.Parse(timeForm, string(text))
		got, ok := parseTime(text)
		require.Equal(t, err == nil, ok, string(text))
		if ok {
			require.Equal(t, want, got, string(text))
		}
	}
	for _, bad := range []string{"", "2026-02-29T00:00:00.000000Z", "2026-01-01T24:00:00.000000Z", "2026-01-01T00:00:60.000000Z", "2026-01-01T00:00:00,000000Z", "10000-01-01T00:00:00.000000Z", "2026-01-01T00:00:00.000000+"} {
		_, ok := parseTime([]byte(bad))
		require.False(t, ok, bad)
	}
}

// opens what object writes.
var opens = func() *age.X25519Identity {
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		panic(err)
	}
	return identity
}()

func identities() []age.Identity  { return []age.Identity{opens} }
func recipients() []age.Recipient { return []age.Recipient{opens.Recipient()} }

// object writes entries as the archive does.
func object(t testing.TB, entries ...[]byte) ([]byte, Sums) {
	t.Helper()
	var out bytes.Buffer
	w, err := NewWriter(&out, recipients())
	require.NoError(t, err)
	for _, e := range entries {
		require.NoError(t, w.WriteEntry(e))
	}
	sums, err := w.Close()
	require.NoError(t, err)
	return out.Bytes(), sums
}

func decrypted(t testing.TB, stored []byte) []byte {
	t.Helper()
	r, err := age.Decrypt(bytes.NewReader(stored), opens)
	require.NoError(t, err)
	text, err := io.ReadAll(r)
	require.NoError(t, err)
	return text
}

func encrypted(t testing.TB, text []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := age.Encrypt(&out, opens.Recipient())
	require.NoError(t, err)
	_, err = w.Write(text)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return out.Bytes()
}

// root of lines by the other library's tree.
func root(lines [][]byte) SHA256 {
	var hashes []tlog.Hash
	for i, line := range lines {
		more, err := tlog.StoredHashes(int64(i), line, tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
			var out []tlog.Hash
			for _, index := range indexes {
				out = append(out, hashes[index])
			}
			return out, nil
		}))
		if err != nil {
			panic(err)
		}
		hashes = append(hashes, more...)
	}
	top, err := tlog.TreeHash(int64(len(lines)), tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		var out []tlog.Hash
		for _, index := range indexes {
			out = append(out, hashes[index])
		}
		return out, nil
	}))
	if err != nil {
		panic(err)
	}
	return SHA256(top)
}

func isEmpty(v any) bool {
	list, ok := v.([]any)
	return ok && len(list) == 0
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
		compressed := decrypted(t, stored)
		require.Equal(t, Sums{
			Rows: int64(len(entries)), PlainBytes: int64(len(plain)), PlainSHA256: sha256.Sum256(plain),
			CompressedBytes: int64(len(compressed)), CompressedSHA256: sha256.Sum256(compressed),
			StoredBytes: int64(len(stored)), StoredSHA256: sha256.Sum256(stored),
		}, wrote)

		var back [][]byte
		var source io.Reader = bytes.NewReader(stored)
		if chunk%2 == 0 {
			source = iotest.HalfReader(source)
		}
		read, err := Read(source, identities(), func(line []byte) error {
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
	// Fuzzing cannot make what age would open: it is given what is compressed.
	whole, _ := object(f, []byte(`{"v":1}`), []byte(`{"v":1}`))
	whole = decrypted(f, whole)
	f.Add(whole)
	f.Add(whole[:len(whole)-1])
	f.Add(append(slices.Clone(whole), 0))
	f.Fuzz(func(t *testing.T, stored []byte) {
		stored = encrypted(t, stored)
		sums, err := Read(bytes.NewReader(stored), identities(), nil)
		if err != nil {
			require.ErrorIs(t, err, ErrDamaged)
			return
		}
		require.EqualValues(t, len(stored), sums.StoredBytes, "something behind the object was not read")
		require.EqualValues(t, sha256.Sum256(stored), sums.StoredSHA256)
	})
}

func TestWriterRefusesWhatIsNoLine(t *testing.T) {
	w, err := NewWriter(io.Discard, recipients())
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
	w, err := NewWriter(&tight{room: 100_000, full: full}, recipients())
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

// tight is a store with room for a few bytes.
type tight struct {
	room int
	full error
}

func (s *tight) Write(p []byte) (int, error) {
	if s.room -= len(p); s.room < 0 {
		return 0, s.full
	}
	return len(p), nil
}

func TestReadRefusesALineWithoutEnd(t *testing.T) {
	encoder, err := zstd.NewWriter(nil)
	require.NoError(t, err)
	defer encoder.Close()
	_, err = Read(bytes.NewReader(encrypted(t, encoder.EncodeAll([]byte("a\nb"), nil))), identities(), nil)
	require.ErrorIs(t, err, ErrDamaged)
	sums, err := Read(bytes.NewReader(encrypted(t, encoder.EncodeAll([]byte("a\nb\n"), nil))), identities(), nil)
	require.NoError(t, err)
	require.EqualValues(t, 2, sums.Rows)
}

func TestReadKeepsTheStoresErrorsApart(t *testing.T) {
	stored, _ := object(t, bytes.Repeat([]byte("x"), 100))
	lost := errors.New("connection lost")
	_, err := Read(io.MultiReader(bytes.NewReader(stored[:10]), iotest.ErrReader(lost)), identities(), nil)
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
	return fmt.Appendf(nil, `{"v":1,"log_entry_id":"00000000-0000-7000-8000-%012d","occurred_at":%q,"recorded_at":%q,"tenant_id":"acme","actor_id":"00000000-0000-4000-8000-%012d","subject_id":"00000000-0000-4000-9000-%012d","action":"x","metadata":{},"db_role":"app","xid":"%d"}`,
		e.id, day.Add(e.at).Format(timeForm), day.Add(e.at).Format(timeForm), e.id%7, e.id%100, e.xid)
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
		Version: 2, EntryVersion: 1, SchemaVersion: 10, SoftwareVersion: "test",
		Day: Date(day), Part: 1, Leaves: Runs{{0, 1}, {5, sums.Rows - 1}}, Root: root(entries),
		Rows: sums.Rows, FirstOccurredAt: day.Add(24 * time.Hour), LastOccurredAt: day,
		ObjectKey: NewName(day, 1).ObjectKey(), ObjectVersion: "v1",
		Compression: "zstd", Encryption: "age", Recipients: []string{opens.Recipient().String()},
		CompressedBytes: sums.CompressedBytes, CompressedSHA256: sums.CompressedSHA256, People: NewPeople(sums.Rows).Bytes(),
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
	entries, stored, m := sample(t)
	require.NoError(t, Verify(bytes.NewReader(stored), identities(), m, nil))

	var lines [][]byte
	require.NoError(t, Verify(bytes.NewReader(stored), identities(), m, func(line []byte, e *Entry) error {
		require.Equal(t, "acme", string(e.Tenant))
		lines = append(lines, slices.Clone(line))
		return nil
	}))
	require.Equal(t, entries, lines)
}

// TestVerifyFindsDamage gives lines that were tampered with together with a
// manifest that was made for them: the lines themselves must give it away.
func TestVerifyFindsDamage(t *testing.T) {
	for name, change := range map[string]func(e [][]byte) [][]byte{
		"line of another day":    func(e [][]byte) [][]byte { e[5] = event{1000, 5, 25 * time.Hour}.line(); return e },
		"line of the day before": func(e [][]byte) [][]byte { e[5] = event{1000, 5, -time.Microsecond}.line(); return e },
		"not JSON":               func(e [][]byte) [][]byte { e[5] = []byte("{"); return e },
		"JSON of another kind":   func(e [][]byte) [][]byte { e[5] = []byte("[]"); return e },
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
			m.CompressedBytes, m.CompressedSHA256 = sums.CompressedBytes, sums.CompressedSHA256
			err := Verify(bytes.NewReader(stored), identities(), &m, nil)
			require.ErrorIs(t, err, ErrDamaged)
			require.Contains(t, err.Error(), "line ")
			require.NotContains(t, err.Error(), "acme", "a finding quotes the line")
		})
	}
	t.Run("lines in another order", func(t *testing.T) {
		for name, change := range map[string]func(e [][]byte) [][]byte{
			"line repeated":   func(e [][]byte) [][]byte { e[6] = e[5]; return e },
			"lines exchanged": func(e [][]byte) [][]byte { e[5], e[200] = e[200], e[5]; return e },
			"line of another": func(e [][]byte) [][]byte { e[5] = event{1000, 400, 0}.line(); return e },
		} {
			entries, _, genuine := sample(t)
			stored, m := sealed(t, change(entries))
			m.Root = genuine.Root
			err := Verify(bytes.NewReader(stored), identities(), m, nil)
			require.ErrorIs(t, err, ErrDamaged, name)
			require.Contains(t, err.Error(), "root", name)
		}
	})
	t.Run("claims of the manifest", func(t *testing.T) {
		_, stored, genuine := sample(t)
		for field, change := range map[string]func(m *Manifest){
			"rows":              func(m *Manifest) { m.Rows++ },
			"plain_bytes":       func(m *Manifest) { m.PlainBytes++ },
			"plain_sha256":      func(m *Manifest) { m.PlainSHA256[0] ^= 1 },
			"stored_bytes":      func(m *Manifest) { m.StoredBytes-- },
			"stored_sha256":     func(m *Manifest) { m.StoredSHA256[31] ^= 1 },
			"compressed_bytes":  func(m *Manifest) { m.CompressedBytes++ },
			"compressed_sha256": func(m *Manifest) { m.CompressedSHA256[7] ^= 1 },
			"root":              func(m *Manifest) { m.Root[9] ^= 1 },
			"first_occurred_at": func(m *Manifest) { m.FirstOccurredAt = m.FirstOccurredAt.Add(time.Microsecond) },
			"last_occurred_at":  func(m *Manifest) { m.LastOccurredAt = m.LastOccurredAt.Add(-time.Microsecond) },
		} {
			m := *genuine
			change(&m)
			err := Verify(bytes.NewReader(stored), identities(), &m, nil)
			require.ErrorIs(t, err, ErrDamaged, field)
			require.Contains(t, err.Error(), field)
		}
	})
	t.Run("every byte counts", func(t *testing.T) {
		_, stored, m := sample(t)
		for range 200 {
			damaged := slices.Clone(stored)
			damaged[rand.IntN(len(damaged))] ^= byte(1 << rand.IntN(8))
			require.ErrorIs(t, Verify(bytes.NewReader(damaged), identities(), m, nil), ErrDamaged)
		}
		for range 50 {
			require.ErrorIs(t, Verify(bytes.NewReader(stored[:rand.IntN(len(stored))]), identities(), m, nil), ErrDamaged)
		}
		require.ErrorIs(t, Verify(bytes.NewReader(append(slices.Clone(stored), stored...)), identities(), m, nil), ErrDamaged)
		require.ErrorIs(t, Verify(bytes.NewReader(append(slices.Clone(stored), 'x')), identities(), m, nil), ErrDamaged)
	})
}

func TestManifestRoundTrip(t *testing.T) {
	_, _, m := sample(t)
	text, err := m.Encode()
	require.NoError(t, err)
	back, err := DecodeManifest(bytes.NewReader(text))
	require.NoError(t, err)
	require.True(t, m.SameEvents(back))
	again, err := back.Encode()
	require.NoError(t, err)
	require.Equal(t, string(text), string(again))
	require.Contains(t, string(text), `"day": "2026-11-20"`)
	require.Contains(t, string(text), `"leaves": [[0,1],[5,299]]`)

	other := *m
	other.ArchivedAt, other.SoftwareVersion, other.RetainUntil = day, "other", day
	require.True(t, m.SameEvents(&other), "when and by what it was written is no difference")
	other.ObjectVersion, other.StoredSHA256 = "v2", SHA256{1}
	require.True(t, m.SameEvents(&other), "nor are the bytes that age makes of the same lines")
	other.Leaves = Runs{{0, 300}}
	require.False(t, m.SameEvents(&other))
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
			if c[name] == "x" && (name == "software_version" || name == "object_version") || name == "superseded_versions" && isEmpty(c[name]) {
				continue
			}
			text, err := json.Marshal(c)
			require.NoError(t, err)
			_, err = DecodeManifest(bytes.NewReader(text))
			require.Error(t, err, "%s = %v (was %v)", name, c[name], value)
		}
	}
	for _, bad := range []string{"", "{}", "null", string(text[:len(text)/2]), string(text) + "{}", strings.Replace(string(text), "{", `{"extra": 1,`, 1), strings.Repeat(" ", manifestLimit) + string(text), strings.Replace(string(text), "[0,1]", "[0,1,1]", 1)} {
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
		require.True(t, m.SameEvents(back))
	})
}

// TestOrdinaryToolsRead reads an object without a line of this package.
func TestOrdinaryToolsRead(t *testing.T) {
	if _, err := exec.LookPath("zstd"); err != nil {
		t.Skip("zstd is not installed")
	}
	entries, stored, m := sample(t)
	tool := exec.Command("zstd", "-dc")
	tool.Stdin = bytes.NewReader(decrypted(t, stored))
	plain, err := tool.Output()
	require.NoError(t, err)
	require.EqualValues(t, sha256.Sum256(plain), m.PlainSHA256)
	require.Equal(t, append(bytes.Join(entries, []byte{'\n'}), '\n'), plain)
}

func TestReadNeedsConstantMemory(t *testing.T) {
	const rows = 100_000
	r, pipe := io.Pipe()
	go func() {
		w, err := NewWriter(pipe, recipients())
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
	sums, err := Read(r, identities(), func([]byte) error {
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

// TestWithoutTheIdentity reads what others may open: only the stored bytes are held
// against the manifest.
func TestWithoutTheIdentity(t *testing.T) {
	_, stored, m := sample(t)
	other, err := age.GenerateX25519Identity()
	require.NoError(t, err)
	for _, wrong := range [][]age.Identity{nil, {other}} {
		err := Verify(bytes.NewReader(stored), wrong, m, nil)
		require.ErrorIs(t, err, ErrIdentity)
		require.NotErrorIs(t, err, ErrDamaged)
		for _, at := range []int{len(stored) / 2, len(stored) - 1} {
			damaged := slices.Clone(stored)
			damaged[at] ^= 1
			require.ErrorIs(t, Verify(bytes.NewReader(damaged), wrong, m, nil), ErrDamaged)
			require.ErrorIs(t, Verify(bytes.NewReader(stored[:at]), wrong, m, nil), ErrDamaged)
		}
	}
	size, sum, err := Digest(iotest.HalfReader(bytes.NewReader(stored)))
	require.NoError(t, err)
	require.Equal(t, m.StoredBytes, size)
	require.Equal(t, m.StoredSHA256, sum)
	_, err = NewWriter(io.Discard, nil)
	require.ErrorIs(t, err, ErrNoRecipients)
}

func TestSeveralRecipients(t *testing.T) {
	other, err := age.GenerateX25519Identity()
	require.NoError(t, err)
	var out bytes.Buffer
	w, err := NewWriter(&out, []age.Recipient{opens.Recipient(), other.Recipient()})
	require.NoError(t, err)
	require.NoError(t, w.WriteLines([]byte("a\nb\n"), 2))
	wrote, err := w.Close()
	require.NoError(t, err)
	for _, one := range []age.Identity{opens, other} {
		sums, err := Read(bytes.NewReader(out.Bytes()), []age.Identity{one}, nil)
		require.NoError(t, err)
		require.Equal(t, wrote, sums)
	}
}

func TestRuns(t *testing.T) {
	for text, runs := range map[string]Runs{"{[0,256),[300,312)}": {{0, 256}, {300, 12}}, "{[7,8)}": {{7, 1}}} {
		got, err := ParseRuns(text)
		require.NoError(t, err)
		require.Equal(t, runs, got)
		require.Equal(t, text, runs.Text())
		var all []int64
		for leaf := range runs.All() {
			all = append(all, leaf)
			require.True(t, runs.Hold(leaf))
		}
		require.EqualValues(t, runs.Count(), len(all))
		require.True(t, slices.IsSorted(all))
		require.False(t, runs.Hold(runs[0].First-1))
		require.False(t, runs.Hold(runs[0].End()))
		require.False(t, runs.Hold(runs[len(runs)-1].End()))
	}
	for _, bad := range []string{"", "{}", "{[1,1)}", "{[2,1)}", "{[0,2),[1,3)}", "{[0,2),[2,3)}", "{[5,6),[1,2)}", "{[0,1),}", "{[0,1)", "{[0,1]}", "{(0,1)}", "{[a,b)}", "{[0,1)}x", "{[-1,2)}", "{[0,)}"} {
		_, err := ParseRuns(bad)
		require.Error(t, err, bad)
	}
}

func FuzzParseRuns(f *testing.F) {
	f.Add("{[0,256),[300,312)}")
	f.Fuzz(func(t *testing.T, text string) {
		if runs, err := ParseRuns(text); err == nil {
			back, err := ParseRuns(runs.Text())
			require.NoError(t, err)
			require.Equal(t, runs, back)
		}
	})
}

// TestRoot holds the roots of trees of every small size against another library's.
func TestRoot(t *testing.T) {
	var lines [][]byte
	hasher, tree := NewHasher(), NewRoot()
	require.EqualValues(t, sha256.Sum256(nil), tree.Sum())
	for i := range 70 {
		lines = append(lines, event{uint64(i), i, 0}.line())
		leaf := hasher.Leaf(lines[i])
		require.EqualValues(t, tlog.RecordHash(lines[i]), leaf)
		tree.Append(leaf)
		require.Equal(t, root(lines), tree.Sum())
	}
}

// TestTheLargestManifestIsRead has as many runs as a segment may have, of the largest
// leaves.
func TestTheLargestManifestIsRead(t *testing.T) {
	leaves := make(Runs, MaxRuns)
	for i := range leaves {
		leaves[i] = Run{First: 1<<53 - 2*int64(MaxRuns-i), Count: 1}
	}
	day := time.Date(2026, 11, 20, 0, 0, 0, 0, time.UTC)
	name := NewName(day, 1)
	m := &Manifest{
		Version: ManifestVersion, EntryVersion: 1, SchemaVersion: 13, SoftwareVersion: "test", Day: Date(day), Part: 1, Leaves: leaves, Root: SHA256{1},
		Rows: MaxRuns, FirstOccurredAt: day, LastOccurredAt: day, ObjectKey: name.ObjectKey(), ObjectVersion: "1", Compression: "zstd", Encryption: "age",
		Recipients: []string{"age1"}, PlainBytes: 2 * MaxRuns, PlainSHA256: SHA256{1}, CompressedBytes: 1, CompressedSHA256: SHA256{1}, StoredBytes: 1, StoredSHA256: SHA256{1},
		People: make([]byte, peopleMax), RetainUntil: day, ArchivedAt: day,
	}
	text, err := m.Encode()
	require.NoError(t, err)
	require.Less(t, len(text), manifestLimit/2)
	back, err := DecodeManifest(bytes.NewReader(text))
	require.NoError(t, err)
	require.Equal(t, leaves, back.Leaves)
}
