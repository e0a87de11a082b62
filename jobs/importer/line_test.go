package importer

import (
	"bytes"
	"crypto/sha512"
	"encoding/binary"
	"encoding/json"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"pgcustody/jobs/seal"
)

var testNow = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

// testWords is a small vocabulary.
func testWords() *known {
	return &known{
		actions: map[string]*action{"file.open": {name: "file.open", keys: set("source_ip", "size", "path")}, "bare": {name: "bare", keys: set()}},
		types:   set("file"),
	}
}

func testParser(table string, personal ...string) *rowParser {
	p := newRowParser(tables[table], testNow, personal, newVocabulary(testWords(), false))
	p.people = testPeople("u1")
	return p
}

// testPeople have keys, though no database.
func testPeople(userIDs ...string) *people {
	p := &people{tenant: "acme", byID: map[string]*person{}}
	for _, id := range userIDs {
		key := sha512.Sum512([]byte(id))
		p.byID[id] = &person{identity: uuid.NewSHA1(uuid.Nil, []byte(id)), version: 1, key: key[:]}
	}
	return p
}

// open opens what was sealed for a conversation of somebody; nil stays nil.
func (p *people) open(t testing.TB, userID, column, row string, sealed []byte) []byte {
	t.Helper()
	if sealed == nil {
		return nil
	}
	who := p.byID[userID]
	plain, err := seal.Open(who.key, seal.Place{Tenant: p.tenant, Identity: who.identity, Table: "conversations", Column: column, Row: row}, sealed)
	require.NoError(t, err)
	return plain
}

// valid has a good line of each table; tests change what they are about.
var valid = map[string]map[string]any{
	"user_profiles":    {"user_id": "u1", "full_name": "Ada", "email": "ada@example.com", "attributes": map[string]any{"a": 1}},
	"user_preferences": {"user_id": "u1", "preferences": map[string]any{"theme": "dark"}},
	"consent_records": {"user_id": "u1", "purpose": "service", "granted": true, "policy_version": "1", "legal_basis": "consent",
		"timestamp": "2026-01-01T00:00:00Z", "source": "web"},
	"conversations": {"user_id": "u1", "conversation_id": "c1", "started_at": "2026-01-01T00:00:00Z", "last_message_at": "2026-01-01T00:01:00Z",
		"messages": []any{map[string]any{"role": "user", "text": "hi", "at": "2026-01-01T00:00:00Z"}}},
	"audit_logs": {"log_entry_id": "875240ac-e821-4fc6-a311-8c352a1d20f5", "timestamp": "2026-01-01T00:00:00Z", "user_id": "u1",
		"action": "file.open", "resource_type": "file", "resource_id": "f1", "result": "success", "metadata": map[string]any{"size": 1}},
}

// lineOf makes a line of a table with some fields changed; a change to missing takes the field out.
func lineOf(t testing.TB, table string, changes map[string]any) string {
	t.Helper()
	fields := map[string]any{}
	for k, v := range valid[table] {
		fields[k] = v
	}
	for k, v := range changes {
		if v == missing {
			delete(fields, k)
		} else {
			fields[k] = v
		}
	}
	var line strings.Builder
	encoder := json.NewEncoder(&line)
	encoder.SetEscapeHTML(false)
	require.NoError(t, encoder.Encode(fields))
	return strings.TrimSuffix(line.String(), "\n")
}

type missingField struct{}

var missing = missingField{}

func TestGoodLines(t *testing.T) {
	for _, table := range Tables() {
		row, prob := testParser(table).appendRow(nil, []byte(lineOf(t, table, nil)), 7)
		require.Nil(t, prob, table)
		values := decodeRow(t, row)
		require.Len(t, values, tables[table].columns, table)
		require.Equal(t, uint64(7), binary.BigEndian.Uint64(values[0]))
	}
}

// TestBadLines has one line or more for each thing that can be wrong with one.
func TestBadLines(t *testing.T) {
	long := strings.Repeat("é", 257)
	with := func(field string, value any) map[string]any { return map[string]any{field: value} }
	message := func(changes map[string]any) map[string]any {
		m := map[string]any{"role": "user", "text": "hi", "at": "2026-01-01T00:00:00Z"}
		for k, v := range changes {
			if v == missing {
				delete(m, k)
			} else {
				m[k] = v
			}
		}
		return with("messages", []any{map[string]any{"role": "user", "text": "hi", "at": "2026-01-01T00:00:00Z"}, m})
	}
	deep := strings.Repeat(`{"a":`, maxDepth) + "1" + strings.Repeat("}", maxDepth)

	for _, test := range []struct {
		name, table string
		line        string         // as it stands, or
		change      map[string]any // to the good line
		field, code string
		problem     string
	}{
		// what is not JSON
		{name: "no JSON", table: "user_profiles", line: `user_id,full_name`, code: "PC028", problem: "not a JSON object"},
		{name: "array", table: "user_profiles", line: `["u1"]`, code: "PC028", problem: "not a JSON object"},
		{name: "cut off", table: "user_profiles", line: `{"user_id":"u1"`, code: "PC028", problem: "ends inside"},
		{name: "cut off in a string", table: "user_profiles", line: `{"user_id":"u1`, field: "user_id", code: "PC028", problem: "no end to the string"},
		{name: "cut off before a value", table: "user_profiles", line: `{"user_id":`, field: "user_id", code: "PC028", problem: "ends where a value"},
		{name: "no comma", table: "user_profiles", line: `{"user_id":"u1" "email":"e"}`, code: "PC028", problem: "no comma"},
		{name: "comma at the end", table: "user_profiles", line: `{"user_id":"u1",}`, code: "PC028", problem: "no field name"},
		{name: "no colon", table: "user_profiles", line: `{"user_id" "u1"}`, code: "PC028", problem: "no colon"},
		{name: "name without quotes", table: "user_profiles", line: `{user_id:"u1"}`, code: "PC028", problem: "no field name in quotes"},
		{name: "two values", table: "user_profiles", line: `{"user_id":"u1"}{"user_id":"u2"}`, code: "PC028", problem: "more than one JSON value"},
		{name: "bad word", table: "consent_records", line: `{"granted":True}`, field: "granted", code: "PC028", problem: "no value begins"},
		{name: "half a word", table: "consent_records", line: `{"granted":tru}`, field: "granted", code: "PC028", problem: "no value begins"},
		{name: "bad escape", table: "user_profiles", line: `{"user_id":"\x41"}`, field: "user_id", code: "PC028", problem: "unknown escape"},
		{name: "short escape", table: "user_profiles", line: `{"user_id":"\u12"}`, field: "user_id", code: "PC028", problem: "four hexadecimal digits"},
		{name: "bare tab", table: "user_profiles", line: "{\"user_id\":\"a\tb\"}", field: "user_id", code: "PC028", problem: "control character"},
		{name: "first surrogate alone", table: "user_profiles", line: `{"user_id":"\ud83d x"}`, field: "user_id", code: "PC028", problem: "surrogate"},
		{name: "two first surrogates", table: "user_profiles", line: `{"user_id":"\ud83d\ud83d"}`, field: "user_id", code: "PC028", problem: "surrogate"},
		{name: "second surrogate alone", table: "user_preferences", line: `{"user_id":"a","preferences":{"k":["\ude00"]}}`, field: "preferences", code: "PC028", problem: "surrogate"},
		{name: "bad number", table: "user_preferences", line: `{"user_id":"a","preferences":{"k":01}}`, field: "preferences", code: "PC028", problem: "no comma"},
		{name: "number without digits", table: "user_preferences", line: `{"user_id":"a","preferences":{"k":-}}`, field: "preferences", code: "PC028", problem: "no number"},
		{name: "huge exponent", table: "user_preferences", line: `{"user_id":"a","preferences":{"k":1e200000}}`, field: "preferences", code: "PC028", problem: "exponent"},
		{name: "endless number", table: "user_preferences", line: `{"user_id":"a","preferences":{"k":` + strings.Repeat("9", 1001) + `}}`, field: "preferences", code: "PC028", problem: "1000 characters"},
		{name: "too deep", table: "user_preferences", line: `{"user_id":"a","preferences":` + deep + `}`, field: "preferences", code: "PC028", problem: "nested deeper"},
		{name: "not UTF-8", table: "user_profiles", line: "{\"user_id\":\"a\xffb\"}", code: "PC028", problem: "not UTF-8 at byte 14"},
		{name: "UTF-8 of a surrogate", table: "user_profiles", line: "{\"user_id\":\"\xed\xa0\x80\"}", code: "PC028", problem: "not UTF-8"},
		{name: "NUL byte", table: "user_profiles", line: "{\"user_id\":\"a\x00b\"}", field: "user_id", code: "PC028", problem: "NUL character"},
		{name: "NUL byte outside", table: "user_profiles", line: "{\"user_id\":\"a\"\x00}", code: "PC028", problem: "NUL character"},
		{name: "NUL byte after", table: "user_profiles", line: "{\"user_id\":\"a\"}\x00", code: "PC028", problem: "NUL character"},
		{name: "NUL byte first", table: "user_profiles", line: "\x00{\"user_id\":\"a\"}", code: "PC028", problem: "NUL character"},
		{name: "NUL escape", table: "user_profiles", line: `{"user_id":"a\u0000b"}`, field: "user_id", code: "PC028", problem: "NUL character"},
		{name: "NUL escape deep inside", table: "audit_logs", line: `{"metadata":{"path":["\u0000"]}}`, field: "metadata", code: "PC028", problem: "NUL character"},
		{name: "NUL escape in a key", table: "audit_logs", line: `{"metadata":{"\u0000":1}}`, field: "metadata", code: "PC028", problem: "NUL character"},

		// fields
		{name: "unknown field", table: "user_profiles", change: with("nickname", "x"), field: "nickname", code: "PC028", problem: "unknown field"},
		{name: "other case", table: "user_profiles", change: with("User_ID", "x"), field: "User_ID", code: "PC028", problem: "unknown field"},
		{name: "field twice", table: "user_profiles", line: `{"user_id":"u1","user_id":"u1"}`, field: "user_id", code: "PC028", problem: "twice"},
		{name: "field twice, once null", table: "user_profiles", line: `{"user_id":"u1","email":null,"email":null}`, field: "email", code: "PC028", problem: "twice"},
		{name: "field twice in disguise", table: "user_profiles", line: `{"user_id":"u1","user\u005fid":"u2"}`, field: "user_id", code: "PC028", problem: "twice"},
		{name: "missing", table: "consent_records", change: with("purpose", missing), field: "purpose", code: "PC028", problem: "is missing"},
		{name: "null", table: "consent_records", change: with("purpose", nil), field: "purpose", code: "PC028", problem: "is null"},
		{name: "text that is a number", table: "user_profiles", change: with("full_name", 5), field: "full_name", code: "PC028", problem: "not a string"},
		{name: "bool that is a text", table: "consent_records", change: with("granted", "true"), field: "granted", code: "PC028", problem: "neither true nor false"},
		{name: "object that is an array", table: "user_preferences", change: with("preferences", []int{}), field: "preferences", code: "PC028", problem: "not a JSON object"},
		{name: "array that is an object", table: "conversations", change: with("messages", map[string]any{}), field: "messages", code: "PC028", problem: "not a JSON array"},
		{name: "time that is a number", table: "audit_logs", change: with("timestamp", 1), field: "timestamp", code: "PC028", problem: "not a string"},

		// people
		{name: "no user_id", table: "user_profiles", change: with("user_id", missing), field: "user_id", code: "PC028", problem: "is missing"},
		{name: "empty user_id", table: "user_profiles", change: with("user_id", ""), field: "user_id", code: "PC003", problem: "0 characters"},
		{name: "blank user_id", table: "user_profiles", change: with("user_id", "  "), field: "user_id", code: "PC003", problem: "blank"},
		{name: "long user_id", table: "user_profiles", change: with("user_id", long), field: "user_id", code: "PC003", problem: "257 characters"},
		{name: "long subject", table: "audit_logs", change: with("subject_user_id", long), field: "subject_user_id", code: "PC003", problem: "257 characters"},
		{name: "long name", table: "user_profiles", change: with("full_name", strings.Repeat("x", 1001)), field: "full_name", code: "PC028", problem: "1001 characters"},

		// times
		{name: "infinite", table: "audit_logs", change: with("timestamp", "infinity"), field: "timestamp", code: "PC009", problem: "not a finite time"},
		{name: "before 1970", table: "audit_logs", change: with("timestamp", "1969-12-31T23:59:59.999999Z"), field: "timestamp", code: "PC009", problem: "before 1970"},
		{name: "before 1970 by its offset", table: "audit_logs", change: with("timestamp", "1970-01-01T00:30:00+01:00"), field: "timestamp", code: "PC009", problem: "before 1970"},
		{name: "more than a day ahead", table: "audit_logs", change: with("timestamp", "2026-11-22T12:00:00.000001Z"), field: "timestamp", code: "PC009", problem: "a day ahead"},
		{name: "no such day", table: "consent_records", change: with("timestamp", "2026-02-29T00:00:00Z"), field: "timestamp", code: "PC009", problem: "not a finite time"},
		{name: "no offset", table: "consent_records", change: with("timestamp", "2026-01-01T00:00:00"), field: "timestamp", code: "PC009", problem: "not a finite time"},
		{name: "a day", table: "consent_records", change: with("timestamp", "2026-01-01"), field: "timestamp", code: "PC009", problem: "not a finite time"},
		{name: "BC", table: "consent_records", change: with("timestamp", "0044-03-15T00:00:00Z BC"), field: "timestamp", code: "PC009", problem: "not a finite time"},
		{name: "year of five digits", table: "consent_records", change: with("timestamp", "12026-01-01T00:00:00Z"), field: "timestamp", code: "PC009", problem: "not a finite time"},
		{name: "end before beginning", table: "conversations", change: with("last_message_at", "2025-01-01T00:00:00Z"), field: "last_message_at", code: "PC028", problem: "before started_at"},
		{name: "conversation ahead", table: "conversations", change: with("last_message_at", "2027-01-01T00:00:00Z"), field: "last_message_at", code: "PC009", problem: "a day ahead"},
		{name: "conversation before 1970", table: "conversations", change: with("started_at", "1960-01-01T00:00:00Z"), field: "started_at", code: "PC009", problem: "before 1970"},

		// consents
		{name: "unknown legal basis", table: "consent_records", change: with("legal_basis", "because"), field: "legal_basis", code: "PC008", problem: "is unknown"},
		{name: "blank purpose", table: "consent_records", change: with("purpose", " "), field: "purpose", code: "PC028", problem: "blank"},
		{name: "long purpose", table: "consent_records", change: with("purpose", strings.Repeat("p", 129)), field: "purpose", code: "PC028", problem: "129 characters"},
		{name: "empty policy version", table: "consent_records", change: with("policy_version", ""), field: "policy_version", code: "PC028", problem: "0 characters"},
		{name: "no uuid", table: "consent_records", change: with("consent_id", "875240ac-e821-4fc6-a311-8c352a1d20fg"), field: "consent_id", code: "PC028", problem: "not a uuid"},
		{name: "source twice", table: "consent_records", change: with("evidence", map[string]any{"source": "app"}), field: "source", code: "PC028", problem: "twice"},

		// conversations
		{name: "no message", table: "conversations", change: with("messages", []any{}), field: "messages", code: "PC028", problem: "is empty"},
		{name: "message that is a text", table: "conversations", change: with("messages", []any{"hi"}), field: "messages[0]", code: "PC028", problem: "not a JSON object"},
		{name: "message without role", table: "conversations", change: message(with("role", missing)), field: "messages[1].role", code: "PC028", problem: "is missing"},
		{name: "message with long role", table: "conversations", change: message(with("role", strings.Repeat("r", 65))), field: "messages[1].role", code: "PC028", problem: "64 characters"},
		{name: "message with empty role", table: "conversations", change: message(with("role", "")), field: "messages[1].role", code: "PC028", problem: "is empty"},
		{name: "message without text", table: "conversations", change: message(with("text", missing)), field: "messages[1].text", code: "PC028", problem: "is missing"},
		{name: "message with null", table: "conversations", change: message(with("text", nil)), field: "messages[1].text", code: "PC028", problem: "not a string"},
		{name: "message ahead", table: "conversations", change: message(with("at", "2027-01-01T00:00:00Z")), field: "messages[1].at", code: "PC009", problem: "a day ahead"},
		{name: "message with text twice", table: "conversations", line: `{"user_id":"u","conversation_id":"c","started_at":"2026-01-01T00:00:00Z","last_message_at":"2026-01-01T00:00:00Z",` +
			`"messages":[{"role":"user","text":"a","text":"b","at":"2026-01-01T00:00:00Z"}]}`, field: "messages[0].text", code: "PC028", problem: "twice"},
		{name: "long conversation_id", table: "conversations", change: with("conversation_id", long), field: "conversation_id", code: "PC028", problem: "257 characters"},
		{name: "long title", table: "conversations", change: with("title", strings.Repeat("t", 1001)), field: "title", code: "PC028", problem: "1001 characters"},

		// events
		{name: "no log_entry_id", table: "audit_logs", change: with("log_entry_id", missing), field: "log_entry_id", code: "PC028", problem: "is missing"},
		{name: "bad log_entry_id", table: "audit_logs", change: with("log_entry_id", "1"), field: "log_entry_id", code: "PC028", problem: "not a uuid"},
		{name: "unknown action", table: "audit_logs", change: with("action", "file.shred"), field: "action", code: "PC004", problem: `"file.shred" is not in the tenant's vocabulary`},
		{name: "no name for an action", table: "audit_logs", change: with("action", "a b"), field: "action", code: "PC004", problem: "not a name"},
		{name: "long action", table: "audit_logs", change: with("action", strings.Repeat("a", 129)), field: "action", code: "PC004", problem: "129 characters"},
		{name: "unknown resource type", table: "audit_logs", change: with("resource_type", "disk"), field: "resource_type", code: "PC005", problem: "not in the tenant's vocabulary"},
		{name: "unknown result", table: "audit_logs", change: with("result", "SUCCESS"), field: "result", code: "PC007", problem: "is unknown"},
		{name: "unknown metadata key", table: "audit_logs", change: with("metadata", map[string]any{"size": 1, "mood": 1}), field: "metadata.mood", code: "PC006", problem: "no key that the vocabulary allows"},
		{name: "key of another action", table: "audit_logs", change: map[string]any{"action": "bare", "metadata": map[string]any{"size": 1}}, field: "metadata.size", code: "PC006", problem: `to "bare"`},
		{name: "key in disguise", table: "audit_logs", line: `{"log_entry_id":"875240ac-e821-4fc6-a311-8c352a1d20f5","timestamp":"2026-01-01T00:00:00Z","user_id":"u","action":"bare","result":"success","metadata":{"s\u0069ze":1}}`,
			field: "metadata.size", code: "PC006", problem: `to "bare"`},
		{name: "long resource_id", table: "audit_logs", change: with("resource_id", strings.Repeat("r", 1025)), field: "resource_id", code: "PC028", problem: "1025 characters"},
		{name: "metadata that is a text", table: "audit_logs", change: with("metadata", "x"), field: "metadata", code: "PC028", problem: "not a JSON object"},
		{name: "personal that is an array", table: "audit_logs", change: with("personal", []int{1}), field: "personal", code: "PC028", problem: "not a JSON object"},
	} {
		t.Run(test.name, func(t *testing.T) {
			line := test.line
			if line == "" {
				line = lineOf(t, test.table, test.change)
			}
			row, prob := testParser(test.table).appendRow([]byte("before"), []byte(line), 42)
			require.NotNil(t, prob, "the line was taken: %s", line)
			require.Equal(t, test.field, prob.field)
			require.Equal(t, test.code, prob.code)
			require.Contains(t, prob.text, test.problem)
			require.Equal(t, int64(42), prob.line)
			require.Equal(t, "before", string(row), "what was there before the bad line changed")
		})
	}
}

// TestEdges has what is just allowed.
// What is kept of a field's path is the table's own word, not the file's.
func TestRecordedField(t *testing.T) {
	for path, want := range map[string]string{
		"": "", "email": "email", "ann@example.org": "", "messages[3].at": "messages", "metadata.ann@example.org": "metadata", "personal.x": "personal",
		"emails": "", "email.ann": "email", "messages[ann]": "messages", "x.email": "",
	} {
		table := "audit_logs"
		switch {
		case strings.HasPrefix(path, "messages"):
			table = "conversations"
		case strings.Contains(path, "email"):
			table = "user_profiles"
		}
		require.Equal(t, want, tables[table].recorded(path), path)
	}
}

func TestEdges(t *testing.T) {
	for _, test := range []struct {
		table string
		field string
		value any
	}{
		{"user_profiles", "user_id", strings.Repeat("é", 256)},
		{"user_profiles", "user_id", " x "},
		{"user_profiles", "full_name", ""},
		{"user_profiles", "full_name", strings.Repeat("😀", 1000)},
		{"user_profiles", "attributes", nil},
		{"audit_logs", "timestamp", "1970-01-01T00:00:00Z"},
		{"audit_logs", "timestamp", "2026-11-22T12:00:00Z"},
		{"audit_logs", "timestamp", "2024-02-29T23:59:59.123456789-23:59"},
		{"audit_logs", "resource_type", nil},
		{"audit_logs", "metadata", nil},
		{"audit_logs", "log_entry_id", "875240AC-E821-4FC6-A311-8C352A1D20F5"},
		{"consent_records", "source", nil},
		{"consent_records", "granted", false},
		{"user_preferences", "preferences", map[string]any{"n": json.Number(strings.Repeat("9", 1000)), "e": json.Number("1e-10000"), "s": "\u0001\u2028"}},
	} {
		line := lineOf(t, test.table, map[string]any{test.field: test.value})
		_, prob := testParser(test.table).appendRow(nil, []byte(line), 1)
		require.Nil(t, prob, "%s", line)
	}
}

// TestPersonalMoves checks what --personal does to metadata.
func TestPersonalMoves(t *testing.T) {
	for _, test := range []struct {
		metadata, personal string // as they stand in the line; "" is missing
		kept, moved        string
	}{
		{`{"size":1}`, ``, `{"size":1}`, ``},
		{`{"source_ip":"10.0.0.1"}`, ``, `{}`, `{"source_ip":"10.0.0.1"}`},
		{`{"source_ip":"a","size":1}`, ``, `{"size":1}`, `{"source_ip":"a"}`},
		{`{"size":1,"source_ip":"a"}`, ``, `{"size":1}`, `{"source_ip":"a"}`},
		{`{"size":1,"source_ip":"a","path":[1, {"source_ip":2}],"agent":{"b":"c"}}`, ``, `{"size":1,"path":[1,{"source_ip":2}]}`, `{"source_ip":"a","agent":{"b":"c"}}`},
		{`{"source_ip":"a"}`, `{"note":"n"}`, `{}`, `{"source_ip":"a","note":"n"}`},
		{`{"source_ip":"a"}`, `{ }`, `{}`, `{"source_ip":"a"}`},
		{`{"size":1}`, `{"source_ip":"a"}`, `{"size":1}`, `{"source_ip":"a"}`},
		{``, `{"source_ip":"a"}`, `{}`, `{"source_ip":"a"}`},
		{`{"sourc\u0065_ip":"a","\u0073ize":1}`, ``, `{"size":1}`, `{"source_ip":"a"}`},
		{`{}`, ``, `{}`, ``},
	} {
		line := `{"log_entry_id":"875240ac-e821-4fc6-a311-8c352a1d20f5","timestamp":"2026-01-01T00:00:00Z","user_id":"u","action":"file.open","result":"success"`
		if test.metadata != "" {
			line += `,"metadata":` + test.metadata
		}
		if test.personal != "" {
			line += `,"personal":` + test.personal
		}
		row, prob := testParser("audit_logs", "source_ip", "agent").appendRow(nil, []byte(line+"}"), 1)
		require.Nil(t, prob, "%s: %v", line, prob)
		values := decodeRow(t, row)
		require.JSONEq(t, test.kept, string(values[10][1:]), line)
		if test.moved == "" {
			require.Nil(t, values[11], line)
		} else {
			require.JSONEq(t, test.moved, string(values[11][1:]), line)
		}
	}

	_, prob := testParser("audit_logs", "source_ip").appendRow(nil,
		[]byte(lineOf(t, "audit_logs", map[string]any{"metadata": map[string]any{"source_ip": 1}, "personal": map[string]any{"source_ip": 2}})), 1)
	require.NotNil(t, prob)
	require.Equal(t, "personal.source_ip", prob.field)
}

func TestRegisterVocabulary(t *testing.T) {
	words := newVocabulary(testWords(), true)
	p := newRowParser(tables["audit_logs"], testNow, []string{"source_ip"}, words)
	for _, change := range []map[string]any{
		{"action": "file.open", "metadata": map[string]any{"size": 1}},
		{"action": "bare", "metadata": map[string]any{"new": 1, "source_ip": 2}, "resource_type": "disk"},
		{"action": "fresh", "metadata": map[string]any{"x": 1}},
		{"action": "fresh", "metadata": map[string]any{"y": 1}},
	} {
		_, prob := p.appendRow(nil, []byte(lineOf(t, "audit_logs", change)), 1)
		require.Nil(t, prob)
	}
	require.Equal(t, []string{"new"}, words.actions["bare"].allKeys(), "what moves to personal is no metadata key")
	require.Equal(t, []string{"x", "y"}, words.actions["fresh"].allKeys())
	require.Empty(t, words.actions["file.open"].found)
	require.Equal(t, map[string]bool{"disk": true}, words.types)

	other := newVocabulary(testWords(), true)
	fresh, prob := other.action([]byte("fresh"))
	require.Nil(t, prob)
	require.Nil(t, other.key(fresh, []byte("z")))
	words.merge(other)
	require.Equal(t, []string{"x", "y", "z"}, words.actions["fresh"].allKeys())
}

// TestVocabularyIsBounded: a file with something else in the field action must not fill memory or the vocabulary.
func TestVocabularyIsBounded(t *testing.T) {
	words := newVocabulary(testWords(), true)
	for i := range maxNewActions {
		_, prob := words.action([]byte("a" + strconv.Itoa(i)))
		require.Nil(t, prob)
	}
	_, prob := words.action([]byte("one-more"))
	require.NotNil(t, prob)
	for i := range maxNewTypes {
		require.Nil(t, words.resourceType([]byte("t"+strconv.Itoa(i))))
	}
	require.NotNil(t, words.resourceType([]byte("one-more")))
	a, _ := words.action([]byte("a0"))
	for i := range maxActionKeys {
		require.Nil(t, words.key(a, []byte("k"+strconv.Itoa(i))))
	}
	require.NotNil(t, words.key(a, []byte("one-more")))
}

func TestParseTimeIsThatOfTheLibrary(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 20_000 {
		at := time.UnixMicro(random.Int64N(4_102_444_800_000_000)).In(time.FixedZone("", random.IntN(2*86_340)-86_340))
		text := at.Format([]string{time.RFC3339, time.RFC3339Nano, "2006-01-02T15:04:05.000000000Z07:00", "2006-01-02t15:04:05.00z07:00"}[random.IntN(3)])
		want, err := time.Parse(time.RFC3339Nano, text)
		require.NoError(t, err)
		got, ok := parseTime([]byte(text))
		require.True(t, ok, text)
		require.Equal(t, want.UnixMicro(), got, text)
	}
	for _, text := range []string{"", "2026", "2026-01-01T00:00:00", "2026-13-01T00:00:00Z", "2026-00-01T00:00:00Z", "2026-01-32T00:00:00Z", "2026-01-00T00:00:00Z",
		"2026-04-31T00:00:00Z", "1900-02-29T00:00:00Z", "2026-01-01T24:00:00Z", "2026-01-01T00:60:00Z", "2026-01-01T00:00:60Z", "2026-01-01T00:00:00.Z",
		"2026-01-01T00:00:00+24:00", "2026-01-01T00:00:00+00:60", "2026-01-01T00:00:00+0000", "2026-01-01T00:00:00ZZ", "2026-01-01X00:00:00Z",
		"2026-01-01T00:00:00.5", "٢٠٢٦-01-01T00:00:00Z", "-026-01-01T00:00:00Z", "2026-01-01T00:00:00 Z", "now", "infinity", "-infinity", "epoch"} {
		_, ok := parseTime([]byte(text))
		require.False(t, ok, text)
	}
}

// decodeRow splits a row of COPY's binary format into its values; nil is null.
func decodeRow(t testing.TB, row []byte) [][]byte {
	t.Helper()
	n := int(binary.BigEndian.Uint16(row))
	row = row[2:]
	values := make([][]byte, n)
	for i := range values {
		size := int32(binary.BigEndian.Uint32(row))
		row = row[4:]
		if size >= 0 {
			values[i], row = row[:size:size], row[size:]
		}
	}
	require.Empty(t, row)
	return values
}

// stagedAs says which field of a line each column of a staging table has.
var stagedAs = map[string][]string{
	"user_profiles":    {"", "user_id", "full_name", "email", "phone", "organisation", "title", "address", "city", "region", "postal_code", "country", "attributes"},
	"user_preferences": {"", "user_id", "preferences"},
	"consent_records":  {"", "consent_id", "user_id", "purpose", "granted", "policy_version", "legal_basis", "evidence", "timestamp"},
	"conversations":    {"", "identity", "conversation_id", "title", "messages", "message_count", "started_at", "last_message_at"},
	"audit_logs": {"", "log_entry_id", "timestamp", "user_id", "subject_user_id", "action", "resource_type", "resource_id", "result", "purpose",
		"metadata", "personal"},
}

// FuzzLine checks the parser against the library's: what it takes is JSON with the same values, what it refuses as
// no JSON is none, and nothing makes it fall over.
func FuzzLine(f *testing.F) {
	names := Tables()
	for i, table := range names {
		f.Add(uint8(i), []byte(lineOf(f, table, nil)))
	}
	for _, line := range []string{`{"user_id":"\ud83d\ude00\"\\\/\b\f\n\r\t\u00e9"}`, ` { "user_id" : "u" , "attributes" : { "a" : [ 1.5e-3 , null , true ] } } `,
		`{"user_id":"u","attributes":{"a":-0,"a":0.0E+1}}`, "{\"user_id\":\"u\u2028\"}", `{"user_id":"a\u0000"}`, `{}`, `null`, ``, `{"a":1}{`, "\ufeff{}"} {
		f.Add(uint8(0), []byte(line))
	}
	f.Fuzz(func(t *testing.T, which uint8, line []byte) {
		table := names[int(which)%len(names)]
		p := newRowParser(tables[table], testNow, []string{"source_ip"}, newVocabulary(testWords(), true))
		var who struct {
			ID string `json:"user_id"`
		}
		_ = json.Unmarshal(line, &who) // of a line that is refused it does not matter
		p.people = testPeople(who.ID)
		row, prob := p.appendRow(nil, line, 1)
		if prob != nil {
			require.NotEmpty(t, prob.text)
			require.Len(t, prob.code, 5)
			require.True(t, utf8.ValidString(prob.text))
			if strings.HasPrefix(prob.text, "invalid JSON") && !strings.Contains(prob.text, "surrogate") {
				require.False(t, json.Valid(line), "%s: %s", prob.text, line)
			}
			return
		}
		require.True(t, json.Valid(line), "taken, though no JSON: %q", line)
		require.True(t, utf8.Valid(line))
		var fields map[string]json.RawMessage
		require.NoError(t, json.Unmarshal(line, &fields))
		values := decodeRow(t, row)
		require.Len(t, values, len(stagedAs[table]))
		if table == "conversations" {
			id := p.people.byID[who.ID].identity
			require.Equal(t, id[:], values[1])
			for i, column := range map[int]string{3: "title", 4: "messages"} {
				values[i] = p.people.open(t, who.ID, column, string(values[2]), values[i])
			}
			values[4] = append([]byte{1}, values[4]...) // as it would be in jsonb
		}
		for i, name := range stagedAs[table] {
			checkValue(t, table, name, fields, values[i])
		}
	})
}

// checkValue compares a staged value with the field as encoding/json reads it.
func checkValue(t *testing.T, table, name string, fields map[string]json.RawMessage, value []byte) {
	raw := fields[name]
	if name == "" || name == "identity" || name == "message_count" || table == "audit_logs" && (name == "metadata" || name == "personal") || name == "evidence" {
		if len(value) > 0 && value[0] == 1 && name != "identity" && name != "message_count" && name != "" {
			require.True(t, json.Valid(value[1:]), "%s: %q", name, value[1:])
			require.NotContains(t, string(value), "\x00")
		}
		return
	}
	if raw == nil || string(raw) == "null" {
		require.Nil(t, value, name)
		return
	}
	switch tables[table].fields[slices.IndexFunc(tables[table].fields, func(f field) bool { return f.name == name })].kind {
	case kindText:
		var text string
		require.NoError(t, json.Unmarshal(raw, &text))
		require.Equal(t, text, string(value), name)
		require.False(t, bytes.ContainsRune(value, 0))
	case kindBool:
		require.Equal(t, string(raw) == "true", value[0] == 1)
	case kindTime:
		var text string
		require.NoError(t, json.Unmarshal(raw, &text))
		text = strings.Replace(strings.ToUpper(text), " ", "T", 1)
		at, err := time.Parse(time.RFC3339Nano, text)
		require.NoError(t, err)
		require.Equal(t, at.UnixMicro(), int64(binary.BigEndian.Uint64(value))+postgresEpoch)
	case kindUUID:
		var text string
		require.NoError(t, json.Unmarshal(raw, &text))
		id, err := uuid.Parse(text)
		require.NoError(t, err)
		require.Equal(t, id[:], value)
	default:
		require.Equal(t, byte(1), value[0])
		require.JSONEq(t, string(raw), string(value[1:]))
	}
}

// randomJSON makes texts that are JSON or nearly so, for the test of what jsonb takes.
func randomJSON(random *rand.Rand, depth int) string {
	good := []string{`a`, ` `, `é`, `😀`, `\n`, `\"`, `\\`, `\/`, `\u00e9`, `\ud83d\ude00`, `\u0001`, `\uFFFF`, "\u2028", "\x7f"}
	bad := []string{`\ud83d`, `\ude00`, `\u0000`, `\u`, `\x`, "\t"}
	text := func() string {
		var s strings.Builder
		for range random.IntN(4) {
			s.WriteString(oftenGood(random, good, bad))
		}
		return `"` + s.String() + `"`
	}
	switch k := random.IntN(9); {
	case k < 2 && depth < 4:
		var members []string
		for range random.IntN(4) {
			members = append(members, text()+[]string{":", " : ", ": "}[random.IntN(3)]+randomJSON(random, depth+1))
		}
		return "{" + strings.Join(members, ",") + "}"
	case k < 4 && depth < 4:
		var members []string
		for range random.IntN(4) {
			members = append(members, randomJSON(random, depth+1))
		}
		return "[" + strings.Join(members, " , ") + "]"
	case k < 6:
		return text()
	case k == 6:
		return oftenGood(random, []string{"true", "false", "null"}, []string{"nul", "True"})
	}
	return oftenGood(random, []string{"0", "-0", "1", "-12.50", "1e5", "1E-5", "0.1e+3", "123456789012345678901234567890.123", "1e10000", "-1e-10000",
		strings.Repeat("9", 1000), "0." + strings.Repeat("3", 998)},
		[]string{"01", "+1", "1.", ".5", "1e", "NaN", "1e10001", "Infinity"})
}

// oftenGood picks a bad one once in a while, so that most documents are good.
func oftenGood(random *rand.Rand, good, bad []string) string {
	if random.IntN(12) == 0 {
		return bad[random.IntN(len(bad))]
	}
	return good[random.IntN(len(good))]
}

func TestRejectedLineKeepsBytes(t *testing.T) {
	path := t.TempDir() + "/rejects.jsonl"
	r, err := CreateRejects(path)
	require.NoError(t, err)
	f := file{path: "f.jsonl", table: tables["user_profiles"]}
	require.NoError(t, r.add(f, badLine{problem{line: 1, code: "PC028", text: "x"}, []byte("a\xffb\r")}))
	require.NoError(t, r.add(f, badLine{problem{line: 2, code: "PC028", field: "f", text: "x"}, []byte(`{"<>":"é"}`)}))
	require.NoError(t, r.Close())
	lines := readRejects(t, path)
	require.Len(t, lines, 2)
	require.Equal(t, []byte("a\xffb"), lines[0].OriginalBase64)
	require.Equal(t, `{"<>":"é"}`, *lines[1].Original)
}
