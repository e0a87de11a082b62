package verify

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"testing"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"pgcustody/cmd/devstack/stack"
	"pgcustody/cmd/devstack/stack/stacktest"
)

// TestEntries holds the entry that is built here against the one that the database
// writes, over values that are as odd as the columns allow.
func TestEntries(t *testing.T) {
	t.Parallel()
	conn := stacktest.DB(t).Conn(t, stack.Superuser)
	exec := func(query string, args ...any) {
		t.Helper()
		_, err := conn.Exec(t.Context(), query, args...)
		require.NoError(t, err)
	}
	exec("set session_replication_role = replica")
	exec("create table public.odd (like custody_data.audit_logs)")
	times := []string{
		"2026-11-20 10:11:12.123456+00", "1970-01-01 00:00:00+00", "1999-12-31 23:59:59.999999+00", "2000-02-29 00:00:00.000001+00",
		"2000-03-01 00:00:00+00", "1900-02-28 23:59:59+00", "2100-03-01 12:00:00+00", "12026-01-02 03:04:05+00", "0001-01-01 00:00:00+00",
		"0044-03-15 12:00:00+00 BC", "0001-12-31 23:59:59.5+00 BC", "4713-11-24 00:00:00+00 BC", "294276-12-31 00:00:00+00", "infinity", "-infinity",
	}
	metadata := []string{
		`{}`, `{"a": 1.50, "b": 1e3, "c": -0, "d": 12345678901234567890.123456789, "e": 1E-7}`, `{"ü": "\u00e9\n\t\"\\\u0001 \ud83d\ude00", "": null}`,
		`{"long": {"nested": [true, false, null, {"x": []}]}, "z": "</script>"}`, `{"b": 1, "a": 2, "aa": 3, "a": 4}`,
	}
	texts := []string{"", "plain", `quote " backslash \ slash /`, "\b\f\n\r\t", "del \x7f nel \u0085 \u2028 \u2029", "Grüße, 日本語, 🙂, 👩‍👩‍👧", "<&>"}
	for c := range 0x20 {
		if c > 0 {
			texts = append(texts, fmt.Sprintf("control %c", rune(c)))
		}
	}
	random := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // repeatable
	for range 200 {
		text := make([]rune, random.IntN(20))
		for i := range text {
			for text[i] = 0; text[i] == 0 || !utf8.ValidRune(text[i]); {
				text[i] = rune(random.IntN(1 << (7 + random.IntN(14))))
			}
		}
		texts = append(texts, string(text))
	}
	pick := func(list []string) string { return list[random.IntN(len(list))] }
	maybe := func(value any) any {
		if random.IntN(3) == 0 {
			return nil
		}
		return value
	}
	for i, text := range texts {
		personal := make([]byte, 69+random.IntN(100))
		personal[0] = 1
		for j := range personal[1:] {
			personal[j+1] = byte(random.IntN(256))
		}
		exec(`insert into public.odd (tenant_id, log_entry_id, occurred_at, recorded_at, actor_id, subject_id, action, resource_type, resource_id, result,
			purpose, metadata, personal, import_id, db_role, xid)
			values ('t', $1, $2::text::timestamptz, $3::text::timestamptz, $4, $5, $6, $7, $8, $9, $10, $11::text::jsonb, $12, $13, $14, $15::text::xid8)`,
			uuid.New(), times[i%len(times)], pick(times), uuid.New(), maybe(uuid.New()), text, maybe(pick(texts)), maybe(pick(texts)), "success",
			maybe(pick(texts)), metadata[i%len(metadata)], maybe(personal), maybe(uuid.New()), pick(texts), fmt.Sprint(random.Uint64()))
	}
	// One whose optional columns are all empty.
	exec(`insert into public.odd (tenant_id, log_entry_id, occurred_at, recorded_at, actor_id, action, result, metadata, db_role, xid)
		select tenant_id, gen_random_uuid(), occurred_at, recorded_at, actor_id, 'a', 'denied', '{}', 'r', '0' from public.odd limit 1`)

	want := map[uuid.UUID]string{}
	rows, err := conn.Query(t.Context(), `select log_entry_id, custody.audit_entry(
		row(o.tenant_id, o.log_entry_id, o.occurred_at, o.recorded_at, o.actor_id, o.subject_id, o.action, o.resource_type, o.resource_id, o.result,
			o.purpose, o.metadata, o.personal, o.import_id, o.db_role, o.xid)::custody_data.audit_logs) from public.odd o`)
	require.NoError(t, err)
	var id uuid.UUID
	var entry string
	_, err = pgx.ForEachRow(rows, []any{&id, &entry}, func() error { want[id] = entry; return nil })
	require.NoError(t, err)

	seen := 0
	reader := &copyReader{columns: columnCount, each: func(fields [][]byte) error {
		var r row
		copy(r[:], fields)
		k, err := r.key()
		require.NoError(t, err)
		require.Equal(t, want[k.id], string(appendEntry(nil, &r)))
		require.Equal(t, sha256.Sum256([]byte("\x00"+want[k.id])), leafHash([]byte(want[k.id])))
		seen++
		return nil
	}}
	_, err = conn.PgConn().CopyTo(t.Context(), reader, "copy (select "+columnList+" from public.odd) to stdout (format binary)")
	require.NoError(t, err)
	require.NoError(t, reader.close())
	require.Equal(t, len(want), seen)
}

// TestCopyReader cuts a stream at every place.
func TestCopyReader(t *testing.T) {
	t.Parallel()
	stream := append([]byte{}, copySignature...)
	stream = append(stream, 0, 0, 0, 0, 0, 0, 0, 0)
	stream = append(stream, 0, 2, 0, 0, 0, 3, 'a', 'b', 'c', 255, 255, 255, 255)
	stream = append(stream, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1, 'x')
	stream = append(stream, 255, 255)
	for i := range stream {
		for j := i; j <= len(stream); j++ {
			var got []string
			reader := &copyReader{columns: 2, each: func(fields [][]byte) error {
				got = append(got, fmt.Sprintf("%s|%s|%t", fields[0], fields[1], fields[1] == nil))
				return nil
			}}
			for _, piece := range [][]byte{stream[:i], stream[i:j], stream[j:]} {
				_, err := reader.Write(piece)
				require.NoError(t, err)
			}
			require.NoError(t, reader.close())
			require.Equal(t, []string{"abc||true", "|x|false"}, got, "cut at %d and %d", i, j)
		}
	}
	short := &copyReader{columns: 2, each: func([][]byte) error { return nil }}
	_, err := short.Write(stream[:len(stream)-2])
	require.NoError(t, err)
	require.Error(t, short.close(), "a stream that breaks off")
}

// TestRoots holds roots against the vectors of RFC 6962 as Certificate Transparency
// publishes them.
func TestRoots(t *testing.T) {
	t.Parallel()
	var leaves [][]byte
	for _, text := range []string{"", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"} {
		leaf, err := hex.DecodeString(text)
		require.NoError(t, err)
		leaves = append(leaves, leaf)
	}
	roots := []string{
		"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
		"6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
		"fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
		"aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
		"d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
		"4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
		"76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
		"ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
		"5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
	}
	var f frontier
	for i, want := range roots {
		root := f.root()
		require.Equal(t, want, hex.EncodeToString(root[:]), "size %d", i)
		if i < len(leaves) {
			f.append(leafHash(leaves[i]))
		}
	}
}

func BenchmarkEntries(b *testing.B) {
	var r row
	id := uuid.New()
	for i := range r {
		r[i] = []byte("some.ordinary.text")
	}
	for _, c := range []int{colEntryID, colActorID, colSubjectID} {
		r[c] = id[:]
	}
	r[colImportID], r[colPersonal] = nil, nil
	r[colOccurredAt], r[colRecordedAt], r[colXID] = []byte{0, 2, 0, 0, 0, 0, 0, 1}, []byte{0, 2, 0, 0, 0, 0, 0, 1}, []byte{0, 0, 0, 0, 0, 0, 3, 1}
	r[colMetadata] = []byte("\x01" + `{"ip": "none", "rows": 12}`)
	var buffer []byte
	var f frontier
	for b.Loop() {
		buffer = appendEntry(append(buffer[:0], 0), &r)
		f.append(sha256.Sum256(buffer))
	}
	b.ReportMetric(float64(len(buffer)), "bytes/entry")
}

// TestLongestAscending leaves out no more than it must.
func TestLongestAscending(t *testing.T) {
	t.Parallel()
	for want, xids := range map[string][]uint64{
		"[1 2 2 3]":   {1, 2, 2, 3},
		"[1 2 3 4]":   {1, 2, 9, 3, 4},
		"[2 3 4 5]":   {2, 3, 1, 4, 5},
		"[1 2 3]":     {9, 1, 2, 3},
		"[1 2 3 10]":  {1, 2, 3, 0, 10},
		"[1 2 7 8 9]": {1, 2, 99, 98, 97, 7, 8, 9},
	} {
		var leaves []leaf
		for i, xid := range xids {
			leaves = append(leaves, leaf{key: key{xid: xid}, index: int64(i)})
		}
		var got []uint64
		last := int64(-1)
		for _, l := range longestAscending(leaves) {
			got = append(got, l.key.xid)
			require.Greater(t, l.index, last)
			last = l.index
		}
		require.Equal(t, want, fmt.Sprint(got))
	}
}
