package serverlog

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// auditRecord is a record as pgaudit writes it.
func auditRecord(message string) *Record {
	return &Record{
		ErrorSeverity: []byte("LOG"), StateCode: []byte("00000"), Message: []byte(message), BackendType: []byte("client backend"),
		FuncName: []byte("log_audit_event"), FileName: []byte("pgaudit.c"), FileLineNum: 783, SessionID: []byte("a.b"), LineNum: 1,
	}
}

func TestAudit(t *testing.T) {
	var a Audit
	require.Equal(t, Genuine, a.Read(auditRecord(`AUDIT: OBJECT,12,3,READ,SELECT,TABLE,"public.""odd,""""name""","select ""a"",`+"\n"+`1","1,,""x""",5`)))
	require.Equal(t, Audit{Object: true, StatementID: 12, Substatement: 3, Class: []byte("READ"), Command: []byte("SELECT"), Type: []byte("TABLE"),
		Name: []byte(`public."odd,""name"`), Statement: []byte("select \"a\",\n1"), StatementLogged: true, Parameters: []byte(`1,,"x"`), ParametersLogged: true, Rows: 5, scratch: a.scratch}, a)
	require.Equal(t, Genuine, a.Read(auditRecord(`AUDIT: SESSION,1,1,MISC,SET,,,<not logged>,<not logged>`)))
	require.False(t, a.StatementLogged || a.ParametersLogged)
	require.EqualValues(t, -1, a.Rows)
	require.Equal(t, Genuine, a.Read(auditRecord(`AUDIT: SESSION,1,2,DDL,ALTER TABLE,TABLE,public.t,<previously logged>,<previously logged>,0`)))
	require.False(t, a.StatementLogged || a.ParametersLogged)
	require.Equal(t, Genuine, a.Read(auditRecord(`AUDIT: SESSION,1,1,READ,SELECT,,,,<none>`)))
	require.True(t, a.StatementLogged && a.ParametersLogged)
	require.Empty(t, a.Statement)

	for _, message := range []string{
		`AUDIT: `, `AUDIT: SESSION`, `AUDIT: SESSION,1,1,READ,SELECT,,`,
		`AUDIT: SESSION,1,1,READ,SELECT,,,select 1`,
		`AUDIT: SESSION,1,1,READ,SELECT,,,select 1,<none>,`,
		`AUDIT: SESSION,1,1,READ,SELECT,,,select 1,<none>,-1`,
		`AUDIT: SESSION,1,1,READ,SELECT,,,select 1,<none>,1,`,
		`AUDIT: SESSION,1,1,READ,SELECT,,,select 1,<none>,1,2`,
		`AUDIT: SESSION,1,1,READ,SELECT,,,select "1",<none>`,
		`AUDIT: SESSION,1,1,READ,SELECT,,,"select 1",<none>`, // quoted without need
		`AUDIT: SESSION,1,1,READ,SELECT,,,"select, 1,<none>`,
		`AUDIT: SESSION,1,1,READ,SELECT,,,"select, 1"x,<none>`,
		"AUDIT: SESSION,1,1,READ,SELECT,,,select\n1,<none>",
		`AUDIT: SESSION,0,1,READ,SELECT,,,select 1,<none>`,
		`AUDIT: SESSION,1,0,READ,SELECT,,,select 1,<none>`,
		`AUDIT: SESSION,01,1,READ,SELECT,,,select 1,<none>`,
		`AUDIT: SESSION,99999999999999999999,1,READ,SELECT,,,select 1,<none>`,
		`AUDIT: SESSION,1,1,READING,SELECT,,,select 1,<none>`,
		`AUDIT: SESSION,1,1,READ,,,,select 1,<none>`,
		`AUDIT: SESSION,1,1,READ,select,,,select 1,<none>`,
		`AUDIT: SESSION,1,1,READ,"SE,LECT",,,select 1,<none>`,
		`AUDIT: session,1,1,READ,SELECT,,,select 1,<none>`,
		`AUDIT:  SESSION,1,1,READ,SELECT,,,select 1,<none>`,
	} {
		require.Equal(t, Malformed, a.Read(auditRecord(message)), message)
	}
	for _, message := range []string{"", "AUDIT:", "audit: SESSION", " AUDIT: SESSION,1,1,READ,SELECT,,,select 1,<none>"} {
		require.Equal(t, NotAudit, a.Read(auditRecord(message)), message)
	}
}

// Each thing by itself that pgaudit's record does not have makes it a forgery.
func TestForged(t *testing.T) {
	const message = `AUDIT: SESSION,1,1,READ,SELECT,,,select 1,<none>`
	for name, change := range map[string]func(*Record){
		"severity": func(r *Record) { r.ErrorSeverity = []byte("ERROR") },
		"info":     func(r *Record) { r.ErrorSeverity = []byte("INFO") },
		"state":    func(r *Record) { r.StateCode = []byte("38000") },
		"context":  func(r *Record) { r.Context = []byte("PL/pgSQL function f() line 1 at RAISE") },
		"query":    func(r *Record) { r.Statement = []byte("select f()") },
		"detail":   func(r *Record) { r.Detail = []byte("x") },
		"hint":     func(r *Record) { r.Hint = []byte("x") },
		"internal": func(r *Record) { r.InternalQuery = []byte("x") },
		"position": func(r *Record) { r.CursorPosition = 1 },
	} {
		var a Audit
		r := auditRecord(message)
		require.Equal(t, Genuine, a.Read(r))
		change(r)
		require.Equal(t, Forged, a.Read(r), name)
		r.FuncName, r.FileName, r.FileLineNum = nil, nil, 0
		require.Equal(t, Forged, a.Read(r), name)
	}
	var a Audit
	r := auditRecord(message)
	r.FuncName = []byte("exec_stmt_raise")
	require.Equal(t, Forged, a.Read(r))
	r = auditRecord(message)
	r.FileName = []byte("pl_exec.c")
	require.Equal(t, Forged, a.Read(r))
	r.FuncName, r.FileName = nil, nil
	require.Equal(t, Plausible, a.Read(r))
	require.Equal(t, Unproven, NewEncoder(EncoderOptions{}).Read(r))
	require.Equal(t, Statement, NewEncoder(EncoderOptions{AcceptPlausible: true}).Read(r))
	r.Message = []byte("AUDIT: x")
	require.Equal(t, Forged, a.Read(r))
}

// What PL/Tcl and PL/Perl log, recorded from a server of version 15. With
// log_min_error_statement above error there is no statement, and PL/Tcl gives no
// context: there its SQLSTATE tells it apart.
func TestOtherLanguages(t *testing.T) {
	log := sample(t, "languages.json")
	for _, location := range []bool{true, false} {
		records, lost, _ := readAll(t, log, Options{})
		require.Empty(t, lost)
		require.Len(t, records, 5)
		for _, r := range records {
			if !location {
				r.FuncName, r.FileName, r.FileLineNum = nil, nil, 0
			}
			require.Equal(t, Forgery, NewEncoder(EncoderOptions{AcceptPlausible: true}).Read(r), "%s", r.FuncName)
		}
	}
}

// write makes pgaudit's message.
func (a *Audit) write() []byte {
	field := func(b, text []byte) []byte {
		if !bytes.ContainsAny(text, ",\"\n\r") {
			return append(b, text...)
		}
		return append(append(append(b, '"'), bytes.ReplaceAll(text, []byte(`"`), []byte(`""`))...), '"')
	}
	b := append([]byte{}, auditPrefix...)
	b = append(b, map[bool]string{true: "OBJECT", false: "SESSION"}[a.Object]...)
	b = fmt.Appendf(b, ",%d,%d,%s,", a.StatementID, a.Substatement, a.Class)
	for _, text := range [][]byte{a.Command, a.Type, a.Name} {
		b = append(field(b, text), ',')
	}
	if a.StatementLogged {
		b = field(b, a.Statement)
	} else {
		b = append(b, "<not logged>"...)
	}
	b = append(b, ',')
	if a.ParametersLogged {
		b = field(b, a.Parameters)
	} else {
		b = append(b, "<not logged>"...)
	}
	if a.Rows >= 0 {
		b = strconv.AppendInt(append(b, ','), a.Rows, 10)
	}
	return b
}

// Whatever is read as pgaudit's can be written by it, in one way.
func FuzzAudit(f *testing.F) {
	for _, name := range formats {
		log := sample(f, name)
		format := JSON
		if strings.HasSuffix(name, "csv") {
			format = CSV
		}
		records, _, _ := readAll(f, log, Options{Format: format})
		for i, r := range records {
			if i%9 == 0 && bytes.HasPrefix(r.Message, auditPrefix) {
				f.Add(r.Message)
			}
		}
	}
	f.Add([]byte(`AUDIT: OBJECT,12,3,READ,SELECT,TABLE,"public.""odd,""""name""","select ""a"",` + "\n" + `1","1,,""x""",5`))
	f.Add([]byte(`AUDIT: SESSION,1,1,READ,SELECT,,,<previously logged>,<previously logged>,0`))
	f.Fuzz(func(t *testing.T, message []byte) {
		var a Audit
		if a.Read(auditRecord(string(message))) != Genuine {
			return
		}
		// Neither of <none> and an empty list, nor of the two ways not to be logged, can be
		// told from the other.
		same := strings.NewReplacer("<previously logged>", "<not logged>", "<none>", "").Replace
		require.Equal(t, same(string(message)), same(string(a.write())))
	})
}
