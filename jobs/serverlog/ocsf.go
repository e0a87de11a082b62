package serverlog

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"strconv"
	"unicode/utf8"
)

// Kind of a record.
type Kind int

// The kinds.
const (
	// Other is whatever else the server says.
	Other Kind = iota
	// Statement was written by pgaudit.
	Statement
	// Unproven says that it was, in a log that does not name the source. Reading
	// with AcceptPlausible makes a Statement of it.
	Unproven
	// Forgery says that it was written by pgaudit, or by the server about a
	// connection, and was not.
	Forgery
	// Connect: a client came.
	Connect
	// Authenticated: who a client is was established.
	Authenticated
	// Logon: a session began.
	Logon
	// LogonFailed: a session was refused.
	LogonFailed
	// Logoff: a session ended.
	Logoff
	// Failed: a statement or a session ended with an error.
	Failed
	// OwnContext and OwnRead are lines of the application's schema, which the caller has
	// checked and says so by Claim: Read never finds them.
	OwnContext
	OwnRead
	// OwnUnverified claims to be one, and nobody can tell any more.
	OwnUnverified
)

var kindNames = [...]string{
	"other", "statement", "unproven", "forgery", "connect", "authenticated", "logon", "logon failed", "logoff", "failed", "context", "read", "unverified",
}

func (k Kind) String() string { return kindNames[k] }

// Literals says what becomes of values in the text of statements.
type Literals int

// What becomes of literals.
const (
	ReplaceLiterals Literals = iota // each by a question mark
	DropLiterals                    // each by nothing
	KeepLiterals                    // the text stays as it is
)

// EncoderOptions say what an Encoder believes and what it passes on. The zero
// value passes on no value that a user gave.
type EncoderOptions struct {
	// AcceptPlausible believes records that say to be pgaudit's in a log without
	// source locations.
	AcceptPlausible bool
	Literals        Literals
	// KeepParameters passes on the parameters that pgaudit logged.
	KeepParameters bool
	// KeepMessages passes on messages, details, hints and contexts, in which the
	// server quotes values and functions say what they like.
	KeepMessages bool
}

// Context is who acted, for whom and why: what the session had set, which the log
// does not tell by itself.
type Context struct {
	Actor, Tenant, Purpose string
}

// Encoder turns records into OCSF events. It is not for use by several goroutines
// at once.
type Encoder struct {
	o       EncoderOptions
	record  *Record
	kind    Kind
	audit   Audit
	scratch []byte
}

// NewEncoder returns an encoder.
func NewEncoder(o EncoderOptions) *Encoder { return &Encoder{o: o} }

// Audit is what pgaudit says in the record that was read last, if its kind is
// Statement or Unproven.
func (e *Encoder) Audit() *Audit { return &e.audit }

// Read finds out what a record is. It keeps the record for Append.
func (e *Encoder) Read(r *Record) Kind {
	e.record = r
	e.kind = e.classify(r)
	return e.kind
}

// Claim says what the record that was read last is, where the caller knows better:
// OwnContext and OwnRead, whose message is passed on as it is, OwnUnverified or Forgery.
func (e *Encoder) Claim(k Kind) { e.kind = k }

func (e *Encoder) classify(r *Record) Kind {
	switch e.audit.Read(r) {
	case Genuine:
		return Statement
	case Plausible:
		if e.o.AcceptPlausible {
			return Statement
		}
		return Unproven
	case Forged, Malformed:
		return Forgery
	}
	switch string(r.ErrorSeverity) {
	case "LOG":
		return connection(r)
	case "FATAL":
		// Before it has become a session, a client cannot have had anything executed.
		if len(r.User) > 0 && len(r.Statement) == 0 && len(r.Context) == 0 &&
			(bytes.HasPrefix(r.StateCode, []byte("28")) || isStarting(r.PS)) {
			return LogonFailed
		}
	}
	switch string(r.StateCode[:min(2, len(r.StateCode))]) {
	case "00", "01", "02":
		return Other
	}
	return Failed
}

// isStarting tells whether a backend is not yet a session.
func isStarting(ps []byte) bool {
	switch string(ps) {
	case "authentication", "startup", "initializing":
		return true
	}
	return false
}

// connections are the server's messages about them, in English, and the functions
// that write them.
var connections = []struct {
	prefix []byte
	kind   Kind
	funcs  [2]string
}{
	{[]byte("connection received: "), Connect, [2]string{"BackendInitialize"}},
	{[]byte("connection authenticated: "), Authenticated, [2]string{"set_authn_id", "ClientAuthentication"}},
	{[]byte("connection authorized: "), Logon, [2]string{"PerformAuthentication"}},
	{[]byte("disconnection: "), Logoff, [2]string{"log_disconnections"}},
}

func connection(r *Record) Kind {
	if len(r.Message) == 0 || r.Message[0] != 'c' && r.Message[0] != 'd' {
		return Other
	}
	for i := range connections {
		c := &connections[i]
		if !bytes.HasPrefix(r.Message, c.prefix) {
			continue
		}
		if !r.silent() || r.located() && string(r.FuncName) != c.funcs[0] && string(r.FuncName) != c.funcs[1] {
			return Forgery
		}
		return c.kind
	}
	return Other
}

// activity of an event and the name that it must have if it is 99.
type activity struct {
	id   int64
	name string
}

// activityOf maps a statement of pgaudit's to what Datastore Activity knows.
func activityOf(a *Audit) activity {
	switch string(a.Class) {
	case "READ":
		return activity{id: 1}
	case "WRITE":
		switch string(a.Command) {
		case "UPDATE":
			return activity{id: 2}
		case "DELETE", "TRUNCATE TABLE":
			return activity{id: 7}
		}
		return activity{id: 5}
	case "DDL":
		return activity{99, "DDL"}
	case "ROLE":
		return activity{99, "Role"}
	case "FUNCTION":
		return activity{99, "Function"}
	}
	return activity{99, "Misc"}
}

// Append appends the event of the record that was read last, as one line of JSON
// without its line feed. The same record, context and options give the same bytes.
func (e *Encoder) Append(dst []byte, c *Context) []byte {
	r := e.record
	if c == nil {
		c = &Context{}
	}
	class, did := int64(6005), activity{99, "Message"}
	status, severity := int64(1), int64(1)
	switch e.kind {
	case Statement, Unproven:
		did = activityOf(&e.audit)
	case Forgery:
		did, status, severity = activity{99, "Forged record"}, 99, 4
	case Connect:
		did = activity{id: 3}
	case Authenticated:
		class, did = 3002, activity{99, "Authenticated"}
	case Logon:
		class, did = 3002, activity{id: 1}
	case LogonFailed:
		class, did, status, severity = 3002, activity{id: 1}, 2, 3
	case Logoff:
		class, did = 3002, activity{id: 2}
	case Failed:
		did, status, severity = activity{99, "Failed statement"}, 2, 2
	case OwnContext:
		did = activity{99, "Context"}
	case OwnRead:
		did = activity{id: 1}
	case OwnUnverified:
		did, status = activity{99, "Unverified record"}, 99
	}

	dst = append(dst, `{"activity_id":`...)
	dst = strconv.AppendInt(dst, did.id, 10)
	if did.id == 99 {
		dst = appendConst(dst, `,"activity_name":"`, did.name, `"`)
	}
	dst = append(dst, `,"category_uid":`...)
	dst = strconv.AppendInt(dst, class/1000, 10)
	dst = append(dst, `,"class_uid":`...)
	dst = strconv.AppendInt(dst, class, 10)
	dst = append(dst, `,"type_uid":`...)
	dst = strconv.AppendInt(dst, class*100+did.id, 10)
	dst = append(dst, `,"severity_id":`...)
	dst = strconv.AppendInt(dst, severity, 10)
	dst = append(dst, `,"status_id":`...)
	dst = strconv.AppendInt(dst, status, 10)
	if status == 99 {
		dst = append(dst, `,"status":"Not believed"`...)
	}
	dst = appendField(dst, `,"status_code":`, r.StateCode)
	dst = append(dst, `,"time":`...)
	dst = strconv.AppendInt(dst, e.millis(), 10)
	if e.o.KeepMessages && e.kind != Statement && e.kind != Unproven {
		dst = appendField(dst, `,"message":`, r.Message)
		dst = appendField(dst, `,"status_detail":`, r.Detail)
	} else if e.kind == Other && isServer(r.BackendType) && len(r.Message) > 0 {
		dst = append(dst, `,"message":`...)
		e.scratch = appendWithoutQuoted(e.scratch[:0], r.Message)
		dst = appendText(dst, e.scratch)
	}
	dst = e.appendMetadata(dst, c)
	dst = e.appendActor(dst, class, c)
	dst = appendEndpoint(dst, r)
	if class == 6005 {
		dst = e.appendDatastore(dst)
	} else {
		dst = append(dst, `,"service":{"name":"PostgreSQL"},"is_remote":`...)
		dst = strconv.AppendBool(dst, string(r.RemoteHost) != local)
	}
	dst = e.appendUnmapped(dst, c)
	return append(dst, '}')
}

func (e *Encoder) millis() int64 {
	if e.record.Time.IsZero() {
		return 0
	}
	return e.record.Time.UnixMilli()
}

func (e *Encoder) appendMetadata(dst []byte, c *Context) []byte {
	r := e.record
	dst = append(dst, `,"metadata":{"version":"1.6.0","product":{"name":"PostgreSQL","vendor_name":"PostgreSQL"}`...)
	if e.kind == Statement || e.kind == Unproven {
		dst = append(dst, `,"log_provider":"pgaudit"`...)
	}
	dst = append(dst, `,"uid":`...)
	dst = appendUID(dst, r)
	dst = append(dst, `,"sequence":`...)
	dst = strconv.AppendInt(dst, r.LineNum, 10)
	dst = appendField(dst, `,"original_time":`, r.Timestamp)
	dst = appendFieldString(dst, `,"tenant_uid":`, c.Tenant)
	return append(dst, '}')
}

// isServer tells the processes that execute nothing for anybody: settings changed,
// starts and stops are theirs to tell.
func isServer(backend []byte) bool {
	switch string(backend) {
	case "postmaster", "startup", "checkpointer":
		return true
	}
	return false
}

// appendWithoutQuoted appends a message without what it quotes, save the first
// thing: that names a setting or a file, what follows are values.
func appendWithoutQuoted(dst, message []byte) []byte {
	for n := 0; ; n++ {
		at := bytes.IndexByte(message, '"')
		if at < 0 {
			return append(dst, message...)
		}
		end := bytes.IndexByte(message[at+1:], '"')
		if end < 0 {
			return append(append(dst, message[:at]...), '?')
		}
		end += at + 2
		if n == 0 {
			dst = append(dst, message[:end]...)
		} else {
			dst = append(append(dst, message[:at]...), '?')
			// A value may hold quotes itself.
			if last := bytes.LastIndexByte(message, '"') + 1; last > end {
				end = last
			}
		}
		message = message[end:]
	}
}

// appendUID appends what names the record within a server and a format.
func appendUID(dst []byte, r *Record) []byte {
	dst = appendText(dst, r.SessionID)
	dst[len(dst)-1] = '/'
	dst = strconv.AppendInt(dst, r.LineNum, 10)
	return append(dst, '"')
}

func (e *Encoder) appendActor(dst []byte, class int64, c *Context) []byte {
	r := e.record
	user := func(key string) {
		if len(r.User) == 0 && c.Actor == "" {
			return
		}
		dst = append(dst, key...)
		dst = append(dst, `"name":`...)
		dst = appendText(dst, r.User)
		dst = appendFieldString(dst, `,"uid":`, c.Actor)
		dst = append(dst, '}')
	}
	if class == 3002 {
		user(`,"user":{`)
		dst = append(dst, `,"session":`...)
	} else {
		dst = append(dst, `,"actor":{"session":`...)
	}
	dst = append(dst, `{"uid":`...)
	dst = appendText(dst, r.SessionID)
	dst = append(dst, '}')
	if class == 3002 {
		if len(r.ApplicationName) > 0 {
			dst = append(dst, `,"actor":{"app_name":`...)
			dst = appendText(dst, r.ApplicationName)
			dst = append(dst, '}')
		}
		return dst
	}
	user(`,"user":{`)
	dst = appendField(dst, `,"app_name":`, r.ApplicationName)
	return append(dst, '}')
}

func appendEndpoint(dst []byte, r *Record) []byte {
	switch host := r.RemoteHost; {
	case len(host) == 0:
		dst = append(dst, `,"src_endpoint":{"name":`...)
		dst = appendText(dst, r.BackendType)
	case string(host) == local:
		dst = append(dst, `,"src_endpoint":{"name":"[local]"`...)
	case isAddress(host):
		dst = append(dst, `,"src_endpoint":{"ip":`...)
		dst = appendText(dst, host)
	default:
		dst = append(dst, `,"src_endpoint":{"hostname":`...)
		dst = appendText(dst, host)
	}
	if r.RemotePort != 0 {
		dst = append(dst, `,"port":`...)
		dst = strconv.AppendInt(dst, r.RemotePort, 10)
	}
	return append(dst, '}')
}

// isAddress tells an address from a host's name: no name has a colon or ends in a number.
func isAddress(host []byte) bool {
	return isDigit(host[len(host)-1]) && isDigit(host[0]) && bytes.IndexByte(host, '.') > 0 || bytes.IndexByte(host, ':') >= 0
}

func (e *Encoder) appendDatastore(dst []byte) []byte {
	r := e.record
	dst = append(dst, `,"database":{"name":`...)
	dst = appendText(dst, r.DBName)
	dst = append(dst, `,"type":"PostgreSQL"}`...)
	sql := r.Statement
	if e.kind == Statement || e.kind == Unproven {
		sql = e.audit.Statement
		if len(e.audit.Name) > 0 && isTable(e.audit.Type) {
			dst = append(dst, `,"table":{"name":`...)
			dst = appendText(dst, e.audit.Name)
			dst = append(dst, `},"type_id":3`...)
		} else {
			dst = append(dst, `,"type_id":1`...)
		}
	} else {
		dst = append(dst, `,"type_id":1`...)
	}
	if len(sql) == 0 {
		return dst
	}
	dst = append(dst, `,"query_info":{"uid":`...)
	if r.QueryID != 0 {
		dst = append(dst, '"')
		dst = strconv.AppendInt(dst, r.QueryID, 10)
		dst = append(dst, '"')
	} else {
		dst = appendUID(dst, r)
	}
	dst = append(dst, `,"query_string":`...)
	dst = e.appendSQL(dst, sql)
	return append(dst, '}')
}

func isTable(kind []byte) bool {
	switch string(kind) {
	case "TABLE", "VIEW", "MATERIALIZED VIEW", "FOREIGN TABLE", "TOAST TABLE":
		return true
	}
	return false
}

func (e *Encoder) appendSQL(dst, sql []byte) []byte {
	switch e.o.Literals {
	case KeepLiterals:
		return appendText(dst, sql)
	case DropLiterals:
		e.scratch = AppendRedacted(e.scratch[:0], sql, "")
	default:
		e.scratch = AppendRedacted(e.scratch[:0], sql, "?")
	}
	return appendText(dst, e.scratch)
}

// appendUnmapped appends what the class has no place for.
func (e *Encoder) appendUnmapped(dst []byte, c *Context) []byte {
	r := e.record
	dst = append(dst, `,"unmapped":{"kind":"`...)
	dst = append(dst, e.kind.String()...)
	dst = append(dst, `","pid":`...)
	dst = strconv.AppendInt(dst, r.PID, 10)
	dst = appendField(dst, `,"backend_type":`, r.BackendType)
	dst = appendField(dst, `,"error_severity":`, r.ErrorSeverity)
	dst = appendField(dst, `,"session_start":`, r.SessionStart)
	dst = appendField(dst, `,"vxid":`, r.VXID)
	dst = appendNumber(dst, `,"txid":`, r.TXID)
	dst = appendNumber(dst, `,"leader_pid":`, r.LeaderPID)
	dst = appendFieldString(dst, `,"purpose":`, c.Purpose)
	if e.kind == OwnContext || e.kind == OwnRead {
		dst = appendField(dst, `,"line":`, r.Message)
	}
	if e.kind == Statement || e.kind == Unproven {
		a := &e.audit
		dst = append(dst, `,"audit":{"object":`...)
		dst = strconv.AppendBool(dst, a.Object)
		dst = append(dst, `,"statement_id":`...)
		dst = strconv.AppendInt(dst, a.StatementID, 10)
		dst = append(dst, `,"substatement_id":`...)
		dst = strconv.AppendInt(dst, a.Substatement, 10)
		dst = appendField(dst, `,"class":`, a.Class)
		dst = appendField(dst, `,"command":`, a.Command)
		dst = appendField(dst, `,"object_type":`, a.Type)
		dst = appendField(dst, `,"object_name":`, a.Name)
		if e.o.KeepParameters {
			dst = appendField(dst, `,"parameters":`, a.Parameters)
		}
		if a.Rows >= 0 {
			dst = append(dst, `,"rows":`...)
			dst = strconv.AppendInt(dst, a.Rows, 10)
		}
		dst = append(dst, '}')
	}
	if e.o.KeepMessages {
		dst = appendField(dst, `,"hint":`, r.Hint)
		dst = appendField(dst, `,"context":`, r.Context)
	}
	if len(r.InternalQuery) > 0 {
		dst = append(dst, `,"internal_query":`...)
		dst = e.appendSQL(dst, r.InternalQuery)
	}
	dst = appendField(dst, `,"func_name":`, r.FuncName)
	dst = appendField(dst, `,"file_name":`, r.FileName)
	dst = appendNumber(dst, `,"file_line_num":`, r.FileLineNum)
	return append(dst, '}')
}

func appendConst(dst []byte, parts ...string) []byte {
	for _, part := range parts {
		dst = append(dst, part...)
	}
	return dst
}

// appendField leaves out what is empty.
func appendField(dst []byte, key string, text []byte) []byte {
	if len(text) == 0 {
		return dst
	}
	return appendText(append(dst, key...), text)
}

func appendFieldString(dst []byte, key, text string) []byte {
	if text == "" {
		return dst
	}
	return appendText(append(dst, key...), []byte(text))
}

func appendNumber(dst []byte, key string, n int64) []byte {
	if n == 0 {
		return dst
	}
	return strconv.AppendInt(append(dst, key...), n, 10)
}

// asciiEnd returns where the bytes from i on end that stand for themselves in any
// JSON text.
func asciiEnd(b []byte, i int) int {
	const ones, highs = 0x0101010101010101, 0x8080808080808080
	for ; i+8 <= len(b); i += 8 { // see plainEnd
		w := binary.LittleEndian.Uint64(b[i:])
		quote, backslash := w^ones*'"', w^ones*'\\'
		if found := (w | (quote-ones)&^quote | (backslash-ones)&^backslash | (w-ones*0x20)&^w) & highs; found != 0 {
			return i + bits.TrailingZeros64(found)/8
		}
	}
	for i < len(b) && b[i] < utf8.RuneSelf && plainByte[b[i]] {
		i++
	}
	return i
}

const hexDigits = "0123456789abcdef"

// appendText appends a JSON string. What is not UTF-8 becomes U+FFFD.
func appendText(dst, text []byte) []byte {
	dst = append(dst, '"')
	from := 0
	for i := 0; ; {
		if i = asciiEnd(text, i); i == len(text) {
			break
		}
		c := text[i]
		if c >= utf8.RuneSelf {
			if _, size := utf8.DecodeRune(text[i:]); size > 1 {
				i += size
				continue
			}
		}
		dst = append(dst, text[from:i]...)
		switch {
		case c >= utf8.RuneSelf:
			dst = append(dst, `\ufffd`...)
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
		case c == '\n':
			dst = append(dst, '\\', 'n')
		case c == '\r':
			dst = append(dst, '\\', 'r')
		case c == '\t':
			dst = append(dst, '\\', 't')
		default:
			dst = append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		}
		i++
		from = i
	}
	dst = append(dst, text[from:]...)
	return append(dst, '"')
}
