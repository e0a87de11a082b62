package importer

import (
	"encoding/json"
	"fmt"
	"math/big"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"pgcustody/cmd/devstack/stack"
	"pgcustody/cmd/devstack/stack/stacktest"
)

// jsonbText writes a value with a writer that others have used before.
func jsonbText(w *jsonbWriter, value string) string {
	out, end := w.append([]byte("before"), []byte(" "+value+" "), 1)
	if end != 1+len(value) {
		panic(fmt.Sprintf("%q ends at %d", value, end-1))
	}
	return strings.TrimPrefix(string(out), "before")
}

var jsonbTexts = [][2]string{
	{`null`, `null`}, {`true`, `true`}, {`false`, `false`},
	{`[]`, `[]`}, {`{}`, `{}`}, {"[ \t]", `[]`}, {"{\n}", `{}`},
	{`[1,2 , [ 3,{}],"x"]`, `[1, 2, [3, {}], "x"]`},
	{`{"b":1,"a":2}`, `{"a": 2, "b": 1}`},
	{`{"aa":1,"b":2,"":3}`, `{"": 3, "b": 2, "aa": 1}`}, // the shorter name first
	{`{"a":1,"b":2,"a":3}`, `{"a": 3, "b": 2}`},         // the last of a name
	{`{"a":1,"\u0061":{"z":1,"y":2}}`, `{"a": {"y": 2, "z": 1}}`},
	{`{"é":1,"zz":2,"a":3}`, `{"a": 3, "zz": 2, "é": 1}`}, // length in bytes
	{`{"b":{"d":1,"c":{"f":1,"e":2}},"a":[{"h":1,"g":2}]}`, `{"a": [{"g": 2, "h": 1}], "b": {"c": {"e": 2, "f": 1}, "d": 1}}`},
	{`"a\/b"`, `"a/b"`}, {`"\"\\\b\f\n\r\t"`, `"\"\\\b\f\n\r\t"`}, {`"\u0022\u005C\u0008\u000c\u000A\u000d\u0009"`, `"\"\\\b\f\n\r\t"`},
	{`"\u0001\u001F\u007f"`, "\"\\u0001\\u001f\x7f\""}, {`"\u00e9\ud83d\ude00\u2028\ufffd"`, "\"é😀\u2028\ufffd\""}, {"\"é😀\u2028<>&\"", "\"é😀\u2028<>&\""},
	{`0`, `0`}, {`-0`, `0`}, {`-0.00`, `0.00`}, {`0.10`, `0.10`}, {`-1.50`, `-1.50`}, {`12345678901234567890.10`, `12345678901234567890.10`},
	{`1e0`, `1`}, {`1.50e0`, `1.50`}, {`1E5`, `100000`}, {`1.5e1`, `15`}, {`1.50e1`, `15.0`}, {`1.50e3`, `1500`}, {`-1.2e+2`, `-120`},
	{`1e-3`, `0.001`}, {`1.0e-3`, `0.0010`}, {`-12.5e-1`, `-1.25`}, {`120e-1`, `12.0`}, {`100e-2`, `1.00`}, {`0.001e2`, `0.1`}, {`0.001e4`, `10`},
	{`0e5`, `0`}, {`-0e-3`, `0.000`}, {`0.0e3`, `0`}, {`0.000e1`, `0.00`}, {`9e-0`, `9`}, {`1e00`, `1`},
	{`1e3`, `1000`}, {`1e-10`, `0.0000000001`},
}

func TestJSONBText(t *testing.T) {
	var w jsonbWriter
	for _, test := range jsonbTexts {
		require.Equal(t, test[1], jsonbText(&w, test[0]), test[0])
		require.Equal(t, test[1], jsonbText(&w, test[1]), "again: %s", test[0])
	}
	require.Empty(t, w.members)
}

// randomNumber makes numbers of every shape that JSON has.
func randomNumber(random *rand.Rand) string {
	digits := func(most int) string {
		var s strings.Builder
		for range 1 + random.IntN(most) {
			s.WriteByte("0000123456789"[random.IntN(13)])
		}
		return s.String()
	}
	s := []string{"", "-"}[random.IntN(2)]
	if whole := strings.TrimLeft(digits(12), "0"); whole == "" || random.IntN(4) == 0 {
		s += "0"
	} else {
		s += whole
	}
	if random.IntN(2) == 0 {
		s += "." + digits(12)
	}
	if random.IntN(2) == 0 {
		s += []string{"e", "E"}[random.IntN(2)] + []string{"", "+", "-"}[random.IntN(3)] + []string{digits(1), digits(2), "9999", "10000"}[random.IntN(4)]
	}
	return s
}

// randomObject has names that are alike, so that order and repetition matter.
func randomObject(random *rand.Rand) string {
	names := []string{"a", "b", "aa", "ab", "", "é", "\\u0061", "\\u00e9", "a\\n", "a\\\\", "z\x7f", "role", "text", "at", "content"}
	var members []string
	for range random.IntN(8) {
		members = append(members, fmt.Sprintf(`"%s":%s`, names[random.IntN(len(names))], randomJSON(random, 2)))
	}
	return "{" + strings.Join(members, ",") + "}"
}

// TestJSONBAgainstPostgres: whatever the parser takes, the writer prints as the database does.
func TestJSONBAgainstPostgres(t *testing.T) {
	t.Parallel()
	d := stacktest.DB(t)
	pool := d.Pool(t, stack.Superuser)
	random := rand.New(rand.NewPCG(7, 8))
	var values []string
	for _, test := range jsonbTexts {
		values = append(values, test[0])
	}
	for range 6000 {
		values = append(values, randomNumber(random), randomObject(random), "["+randomJSON(random, 0)+","+randomObject(random)+"]")
	}
	taken := values[:0]
	for _, v := range values {
		if end, err := skipValue([]byte(v), 0, 0); err == nil && end == len(v) {
			taken = append(taken, v)
		}
	}
	require.Greater(t, len(taken), 12_000)
	rows, err := pool.Query(t.Context(), "select v::jsonb::text from unnest($1::text[]) with ordinality u (v, n) order by n", taken)
	require.NoError(t, err)
	want, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	var w jsonbWriter
	for i, v := range taken {
		require.Equal(t, want[i], jsonbText(&w, v), v)
	}
}

// sameJSON compares what encoding/json reads; numbers by what they are worth.
func sameJSON(t *testing.T, a, b any) {
	switch a := a.(type) {
	case map[string]any:
		other, ok := b.(map[string]any)
		require.True(t, ok)
		require.Len(t, other, len(a))
		for name := range a {
			require.Contains(t, other, name)
			sameJSON(t, a[name], other[name])
		}
	case []any:
		other, ok := b.([]any)
		require.True(t, ok)
		require.Len(t, other, len(a))
		for i := range a {
			sameJSON(t, a[i], other[i])
		}
	case json.Number:
		other, ok := b.(json.Number)
		require.True(t, ok)
		x, ok := new(big.Rat).SetString(a.String())
		require.True(t, ok)
		y, ok := new(big.Rat).SetString(other.String())
		require.True(t, ok)
		require.Zero(t, x.Cmp(y), "%s and %s", a, other)
	default:
		require.Equal(t, a, b)
	}
}

// FuzzJSONB: what is written is JSON of the same value, and writing it again changes nothing.
func FuzzJSONB(f *testing.F) {
	for _, test := range jsonbTexts {
		f.Add([]byte(test[0]))
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		if firstInvalid(value) >= 0 {
			return
		}
		if end, err := skipValue(value, 0, 0); err != nil || end != len(value) {
			return
		}
		var w jsonbWriter
		once := jsonbText(&w, string(value))
		require.Equal(t, once, jsonbText(&w, once))
		read := func(text string) (v any) {
			decoder := json.NewDecoder(strings.NewReader(text))
			decoder.UseNumber()
			require.NoError(t, decoder.Decode(&v))
			return v
		}
		sameJSON(t, read(string(value)), read(once))
	})
}

// TestSkipPlain: every byte, wherever it stands, is told as the table tells it.
func TestSkipPlain(t *testing.T) {
	random := rand.New(rand.NewPCG(9, 10))
	for range 200_000 {
		b := make([]byte, random.IntN(40))
		for i := range b {
			b[i] = []byte{byte(random.IntN(256)), 'a', 0x1f, 0x20, 0x21, '"', '#', '[', '\\', ']', 0x7f, 0x80, 0xa2, 0xdc, 0xff}[max(random.IntN(40)-25, 0)]
		}
		from := random.IntN(len(b) + 1)
		want := from
		for want < len(b) && stringClass[b[want]] == plain {
			want++
		}
		require.Equal(t, want, skipPlain(b, from), "%x from %d", b, from)
	}
}

func BenchmarkJSONB(b *testing.B) {
	value := []byte(`[{"role":"user","text":"` + strings.Repeat("a word and another one ", 20) + `","at":"2026-01-01T00:00:00Z"},{"role":"assistant","text":"` +
		strings.Repeat("an answer to that ", 30) + `","at":"2026-01-01T00:00:30Z"}]`)
	var w jsonbWriter
	var dst []byte
	b.SetBytes(int64(len(value)))
	b.ReportAllocs()
	for b.Loop() {
		dst, _ = w.append(dst[:0], value, 0)
	}
}
