package serverlog

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func event(t *testing.T, o EncoderOptions, r *Record, c *Context) (string, map[string]any) {
	e := NewEncoder(o)
	e.Read(r)
	b := e.Append(nil, c)
	// Again, and behind something: the same bytes.
	require.Equal(t, "x"+string(b), string(e.Append([]byte("x"), c)))
	require.NotContains(t, string(b), "\n")
	var fields map[string]any
	require.NoError(t, json.Unmarshal(b, &fields), "%s", b)
	return string(b), fields
}

func one(t *testing.T, line string) *Record {
	records, lost, _ := readAll(t, []byte(line), Options{})
	require.Empty(t, lost)
	return records[0]
}

func TestOCSF(t *testing.T) {
	r := one(t, `{"timestamp":"2026-11-21 22:23:34.765 UTC","user":"ann","dbname":"custody","pid":30722,"remote_host":"10.0.0.7","remote_port":5000,"session_id":"6b0219e6.7802","line_num":13,"ps":"SELECT","session_start":"2026-11-21 22:23:34 UTC","vxid":"3/51","txid":0,"error_severity":"LOG","message":"AUDIT: SESSION,8,1,READ,SELECT,TABLE,public.people,\"select '\"\"Zoë\"\"', 5 from people;\",\"x,y\",2","func_name":"log_audit_event","file_name":"pgaudit.c","file_line_num":783,"application_name":"psql","backend_type":"client backend","query_id":3328825264046802572}`)
	b, _ := event(t, EncoderOptions{}, r, &Context{Actor: "5d0b", Tenant: "acme", Purpose: "care \"x\""})
	require.Equal(t, `{"activity_id":1,"category_uid":6,"class_uid":6005,"type_uid":600501,"severity_id":1,"status_id":1,"status_code":"00000","time":1795299814765,`+
		`"metadata":{"version":"1.6.0","product":{"name":"PostgreSQL","vendor_name":"PostgreSQL"},"log_provider":"pgaudit","uid":"6b0219e6.7802/13","sequence":13,"original_time":"2026-11-21 22:23:34.765 UTC","tenant_uid":"acme"},`+
		`"actor":{"session":{"uid":"6b0219e6.7802"},"user":{"name":"ann","uid":"5d0b"},"app_name":"psql"},"src_endpoint":{"ip":"10.0.0.7","port":5000},`+
		`"database":{"name":"custody","type":"PostgreSQL"},"table":{"name":"public.people"},"type_id":3,"query_info":{"uid":"3328825264046802572","query_string":"select ?, ? from people;"},`+
		`"unmapped":{"kind":"statement","pid":30722,"backend_type":"client backend","error_severity":"LOG","session_start":"2026-11-21 22:23:34 UTC","vxid":"3/51","purpose":"care \"x\"",`+
		`"audit":{"object":false,"statement_id":8,"substatement_id":1,"class":"READ","command":"SELECT","object_type":"TABLE","object_name":"public.people","rows":2},"func_name":"log_audit_event","file_name":"pgaudit.c","file_line_num":783}}`, b)
	b, _ = event(t, EncoderOptions{Literals: KeepLiterals, KeepParameters: true}, r, nil)
	require.Contains(t, b, `"query_string":"select '\"Zoë\"', 5 from people;"`)
	require.Contains(t, b, `"parameters":"x,y"`)
	require.NotContains(t, b, "tenant_uid")
	b, _ = event(t, EncoderOptions{Literals: DropLiterals}, r, nil)
	require.Contains(t, b, `"query_string":"select ,  from people;"`)
}

// The classes have what they require, whatever the record.
func TestOCSFOfSample(t *testing.T) {
	records, _, _ := readAll(t, sample(t, "sample.json"), Options{})
	seen := map[string]int{}
	for _, r := range records {
		e := NewEncoder(EncoderOptions{})
		seen[e.Read(r).String()]++
		_, fields := event(t, EncoderOptions{}, r, nil)
		class, activity := fields["class_uid"].(float64), fields["activity_id"].(float64)
		require.Equal(t, class*100+activity, fields["type_uid"])
		require.EqualValues(t, int(class)/1000, fields["category_uid"])
		require.Equal(t, activity == 99, fields["activity_name"] != nil)
		for _, key := range []string{"time", "severity_id", "metadata", "src_endpoint", map[float64]string{6005: "actor", 3002: "user"}[class], map[float64]string{6005: "database", 3002: "service"}[class]} {
			require.Contains(t, fields, key, r)
		}
	}
	for _, kind := range []Kind{Other, Statement, Unproven, Forgery, Connect, Authenticated, Logon, LogonFailed, Logoff, Failed} {
		require.NotZero(t, seen[kind.String()], kind)
	}
}

func TestOCSFActivities(t *testing.T) {
	for from, want := range map[string]activity{
		"READ,SELECT": {id: 1}, "READ,COPY": {id: 1}, "READ,DECLARE CURSOR": {id: 1},
		"WRITE,INSERT": {id: 5}, "WRITE,COPY": {id: 5}, "WRITE,MERGE": {id: 5}, "WRITE,UPDATE": {id: 2}, "WRITE,DELETE": {id: 7}, "WRITE,TRUNCATE TABLE": {id: 7},
		"DDL,CREATE TABLE": {99, "DDL"}, "ROLE,GRANT": {99, "Role"}, "FUNCTION,DO": {99, "Function"}, "MISC,SET": {99, "Misc"},
	} {
		class, command, _ := strings.Cut(from, ",")
		require.Equal(t, want, activityOf(&Audit{Class: []byte(class), Command: []byte(command)}), from)
	}
}

// What a user gave stands in no event by default: not in messages, details and contexts.
func TestOCSFPassesNoValuesOn(t *testing.T) {
	const head = `{"timestamp":"2026-11-21 22:00:00.000 UTC","user":"ann","session_id":"a.b","line_num":1,`
	for _, line := range []string{
		`"error_severity":"ERROR","state_code":"22P02","message":"invalid input syntax: \"s3cret\"","detail":"s3cret","hint":"s3cret","context":"s3cret","internal_query":"select 's3cret'","statement":"select 's3cret'","backend_type":"client backend"}`,
		`"error_severity":"LOG","message":"duration: 1 ms statement: select 's3cret'","backend_type":"client backend"}`,
		`"error_severity":"LOG","message":"AUDIT: s3cret","context":"s3cret","backend_type":"client backend"}`,
		`"error_severity":"LOG","message":"parameter \"primary_conninfo\" changed to \"host=x password=\"s3cret\"\"","backend_type":"postmaster"}`,
		`"error_severity":"LOG","message":"parameter \"x\" changed to \"s3cret","backend_type":"postmaster"}`,
		`"error_severity":"FATAL","state_code":"28P01","ps":"authentication","message":"failed \"s3cret\"","detail":"s3cret","backend_type":"client backend"}`,
	} {
		r := one(t, head+line)
		b, _ := event(t, EncoderOptions{}, r, nil)
		require.NotContains(t, b, "s3cret")
		b, _ = event(t, EncoderOptions{KeepMessages: true, Literals: KeepLiterals}, r, nil)
		require.Contains(t, b, "s3cret")
	}
	b, _ := event(t, EncoderOptions{}, one(t, head+`"error_severity":"LOG","message":"parameter \"log_statement\" changed to \"all\" now","backend_type":"postmaster"}`), nil)
	require.Contains(t, b, `"message":"parameter \"log_statement\" changed to ? now"`)
}

// Where the log names no source, a message about a connection is believed if it has
// nothing that a function's has.
func TestConnections(t *testing.T) {
	kind := func(severity, state, ps, message string, change func(*Record)) Kind {
		r := auditRecord(message)
		r.ErrorSeverity, r.StateCode, r.PS, r.User = []byte(severity), []byte(state), []byte(ps), []byte("ann")
		r.FuncName, r.FileName = nil, nil
		if change != nil {
			change(r)
		}
		return NewEncoder(EncoderOptions{}).Read(r)
	}
	for message, want := range map[string]Kind{
		"connection received: host=x": Connect, "connection authenticated: x": Authenticated,
		"connection authorized: user=x": Logon, "disconnection: session time: x": Logoff, "connections": Other,
	} {
		require.Equal(t, want, kind("LOG", "00000", "", message, nil))
		if want != Other {
			require.Equal(t, Forgery, kind("LOG", "00000", "", message, func(r *Record) { r.Context = []byte("PL/pgSQL") }))
			require.Equal(t, Forgery, kind("LOG", "38000", "", message, nil))
			require.Equal(t, Forgery, kind("LOG", "00000", "", message, func(r *Record) { r.FuncName = []byte("exec_stmt_raise") }))
		}
	}
	require.Equal(t, LogonFailed, kind("FATAL", "28P01", "authentication", "x", nil))
	require.Equal(t, LogonFailed, kind("FATAL", "28000", "", "x", nil))
	require.Equal(t, LogonFailed, kind("FATAL", "3D000", "startup", "x", nil))
	require.Equal(t, Failed, kind("FATAL", "57P01", "idle", "x", nil))
	require.Equal(t, Failed, kind("ERROR", "28P01", "SELECT", "x", nil))
	require.Equal(t, Failed, kind("FATAL", "28P01", "SELECT", "x", func(r *Record) { r.Statement = []byte("select") }))
	require.Equal(t, Other, kind("WARNING", "01000", "", "x", nil))
}

func TestOCSFEndpoints(t *testing.T) {
	for host, want := range map[string]string{"": "name", "[local]": "name", "::1": "ip", "fe80::1%eth0": "ip", "127.0.0.1": "ip", "db.example.org": "hostname", "7h": "hostname", "host1": "hostname"} {
		r := auditRecord("x")
		r.RemoteHost = []byte(host)
		_, fields := event(t, EncoderOptions{}, r, nil)
		require.Contains(t, fields["src_endpoint"], want, host)
	}
}

func TestJSONText(t *testing.T) {
	var all []byte
	for c := range 256 {
		all = append(all, byte(c))
	}
	all = append(all, "é日本😀\u2028\xed\xa0\x80"...)
	var back string
	require.NoError(t, json.Unmarshal(appendText(nil, all), &back))
	require.Equal(t, strings.ToValidUTF8(string(all[:128]), "")+strings.Repeat("\ufffd", 128)+"é日本😀\u2028\ufffd\ufffd\ufffd", back)
}
