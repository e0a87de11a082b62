package segment

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var jsonTexts = []string{
	``, ` `, `{}`, `[]`, `{"a":1}`, ` { "a" : [ 1 , -2.5e+3 , true , false , null , "x" ] , "b" : { } } `, `{"a":1,}`, `[1,]`, `[,1]`, `{,}`, `{"a"}`, `{"a":}`, `{1:2}`,
	`{"a":1}}`, `{"a":1]`, `[1}`, `[`, `{`, `"`, `"\u00e4\"\\\/\b\f\n\r\t"`, `"\u00g0"`, `"\u00`, `"\x"`, `"\`, "\"\n\"", "\"\xff\x7f\"", `0`, `-0`, `01`, `1.`, `.5`, `-`, `+1`,
	`1e`, `1e5`, `1E-`, `1E+05`, `tru`, `truex`, `nullnull`, `true false`, `1 2`, `{"a":1 "b":2}`, `{"a":"b","c":["d",{"e":[]}]}`, "{}\n", "{}\x00", "\ufeff{}",
	strings.Repeat("[", 10_000) + strings.Repeat("]", 10_000), strings.Repeat("[", 10_001) + strings.Repeat("]", 10_001),
	strings.Repeat(`{"a":`, 10_001) + `1` + strings.Repeat("}", 10_001), strings.Repeat("[", 10_000) + "[]" + strings.Repeat("]", 10_000), strings.Repeat("[", 1_000_000),
}

func TestJSONIsWhatTheLibrarySays(t *testing.T) {
	for _, text := range jsonTexts {
		require.Equal(t, json.Valid([]byte(text)), validJSON([]byte(text)), "%.100s", text)
	}
}

func FuzzJSON(f *testing.F) {
	for _, text := range jsonTexts {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		require.Equal(t, json.Valid(text), validJSON(text))
	})
}

func BenchmarkJSON(b *testing.B) {
	line := []byte(`{"v":1,"log_entry_id":"0192f7a0-1f9f-7cbb-9a39-0a7b6c1d2e3f","occurred_at":"2026-11-20T10:00:00.000000Z","recorded_at":"2026-11-20T10:00:00.000000Z","tenant_id":"acme","actor_id":"0192f7a0-1f9f-7cbb-9a39-0a7b6c1d2e3f","subject_id":"0192f7a0-1f9f-7cbb-9a39-0a7b6c1d2e3f","action":"phi.access","resource_type":"chart","resource_id":"chart-1","result":"success","purpose":"care","metadata":{"rows": 1},"db_role":"custody_app","xid":"1000"}`)
	for name, valid := range map[string]func([]byte) bool{"ours": validJSON, "library": json.Valid} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if !valid(line) {
					b.Fatal("not valid")
				}
			}
		})
	}
}
