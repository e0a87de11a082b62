package serverlog

import "bytes"

// Origin tells who wrote a record that claims to be pgaudit's.
type Origin int

// The origins. Only Genuine should be believed; Plausible where
// log_error_verbosity cannot be set, knowing what the package's comment says.
const (
	// NotAudit makes no such claim.
	NotAudit Origin = iota
	// Forged says it, and the server says otherwise.
	Forged
	// Malformed comes from where pgaudit's records do, in a form that it does not write.
	Malformed
	// Plausible has nothing that speaks against it, but the log does not name the
	// place in the source.
	Plausible
	// Genuine was written by pgaudit's own function.
	Genuine
)

func (o Origin) String() string {
	return [...]string{"not audit", "forged", "malformed", "plausible", "genuine"}[o]
}

// Audit is what pgaudit says. Texts belong to the record and to the Audit that
// they were read into, and hold as long as both.
type Audit struct {
	Object       bool  // OBJECT, else SESSION
	StatementID  int64 // in this session
	Substatement int64
	Class        []byte // READ, WRITE, FUNCTION, ROLE, DDL, MISC
	Command      []byte // command tag
	Type         []byte // of the object, may be empty
	Name         []byte // of the object, quoted as an identifier where needed; may be empty
	// Statement and Parameters are as logged. StatementLogged and ParametersLogged
	// are false for <not logged> and <previously logged>, where the text is empty;
	// somebody who sends such a text as the statement itself is taken at his word.
	Statement        []byte
	StatementLogged  bool
	Parameters       []byte // CSV: null and an empty text look the same
	ParametersLogged bool
	Rows             int64 // -1 unless pgaudit.log_rows
	scratch          []byte
}

var auditPrefix = []byte("AUDIT: ")

// Read reads a record that pgaudit wrote, and tells how far it can be believed.
// What a holds is meaningful for Plausible and Genuine only.
func (a *Audit) Read(r *Record) Origin {
	if !bytes.HasPrefix(r.Message, auditPrefix) {
		return NotAudit
	}
	if string(r.ErrorSeverity) != "LOG" || !r.silent() {
		return Forged
	}
	origin := Plausible
	if r.located() {
		if string(r.FuncName) != "log_audit_event" || string(r.FileName) != "pgaudit.c" {
			return Forged
		}
		origin = Genuine
	}
	if !a.parse(r.Message[len(auditPrefix):]) {
		if origin == Genuine {
			return Malformed
		}
		return Forged
	}
	return origin
}

// silent tells whether a record has nothing but its message. pgaudit hides
// statement and context, and so does the server for its own connection messages;
// what a function of PL/pgSQL, PL/Perl or PL/Python raises has a context, and what
// one of PL/Tcl raises has an SQLSTATE.
func (r *Record) silent() bool {
	return len(r.Context) == 0 && len(r.Statement) == 0 && len(r.Detail) == 0 && len(r.Hint) == 0 &&
		len(r.InternalQuery) == 0 && r.InternalPosition == 0 && r.CursorPosition == 0 &&
		bytes.Equal(r.StateCode, successful)
}

// located tells whether the record names a place in the server's source:
// log_error_verbosity was verbose.
func (r *Record) located() bool {
	return len(r.FuncName) > 0 || len(r.FileName) > 0
}

// parse reads what follows the prefix.
func (a *Audit) parse(b []byte) bool {
	*a = Audit{Rows: -1, scratch: a.scratch[:0]}
	var ok bool
	next := func() (value []byte) {
		if ok {
			value, b, ok = a.field(b)
		}
		return value
	}
	number := func() (n int64) {
		value := next()
		if ok {
			n, ok = integer(value)
		}
		return n
	}
	ok = true
	switch kind := next(); string(kind) {
	case "SESSION":
	case "OBJECT":
		a.Object = true
	default:
		return false
	}
	a.StatementID = number()
	a.Substatement = number()
	a.Class = next()
	a.Command = next()
	a.Type = next()
	a.Name = next()
	a.Statement = next()
	if !ok || b == nil || a.StatementID < 1 || a.Substatement < 1 || !knownClass(a.Class) || !isTag(a.Command) {
		return false
	}
	a.Parameters = next()
	if ok && b != nil {
		a.Rows = number()
		ok = ok && a.Rows >= 0
	}
	if !ok || b != nil {
		return false
	}
	a.Statement, a.StatementLogged = logged(a.Statement)
	a.Parameters, a.ParametersLogged = logged(a.Parameters)
	if string(a.Parameters) == "<none>" {
		a.Parameters = nil
	}
	return true
}

func logged(text []byte) ([]byte, bool) {
	switch string(text) {
	case "<not logged>", "<previously logged>":
		return nil, false
	}
	return text, true
}

func knownClass(class []byte) bool {
	switch string(class) {
	case "READ", "WRITE", "FUNCTION", "ROLE", "DDL", "MISC":
		return true
	}
	return false
}

// isTag tells whether a text can be a command tag. ??? is the one of what has none.
func isTag(command []byte) bool {
	for _, c := range command {
		if (c < 'A' || c > 'Z') && c != ' ' && c != '?' {
			return false
		}
	}
	return len(command) > 0
}

// field reads up to the next comma; rest is nil at the end. pgaudit quotes a
// field exactly when it has to.
func (a *Audit) field(b []byte) (value, rest []byte, ok bool) {
	if b == nil {
		return nil, nil, false
	}
	if len(b) == 0 || b[0] != '"' {
		at := bytes.IndexByte(b, ',')
		value = b
		if at >= 0 {
			value, rest = b[:at:at], b[at+1:]
		}
		return value, rest, bytes.IndexByte(value, '"') < 0 && bytes.IndexByte(value, '\n') < 0 && bytes.IndexByte(value, '\r') < 0
	}
	from := len(a.scratch)
	b = b[1:]
	for {
		at := bytes.IndexByte(b, '"')
		if at < 0 {
			return nil, nil, false
		}
		if at+1 < len(b) && b[at+1] == '"' {
			a.scratch = append(a.scratch, b[:at+1]...)
			b = b[at+2:]
			continue
		}
		if len(a.scratch) == from {
			value = b[:at:at]
		} else {
			a.scratch = append(a.scratch, b[:at]...)
			value = a.scratch[from:len(a.scratch):len(a.scratch)]
		}
		if !bytes.ContainsAny(value, ",\"\n\r") {
			return nil, nil, false
		}
		b = b[at+1:]
		if len(b) == 0 {
			return value, nil, true
		}
		return value, b[1:], b[0] == ','
	}
}
