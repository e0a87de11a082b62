package serverlog

import (
	"bytes"
	"time"
)

// Record is one entry of the server's log. A text field that the server left out
// is empty, a number is 0: csvlog cannot tell an empty text from a missing one
// everywhere, and jsonlog leaves out what csvlog writes as 0.
//
// Texts are the server's bytes, with escapes undone. They belong to the Reader
// and hold until its next call: Clone keeps a record.
type Record struct {
	// Start and End are where the record stands in the file, line feed included: a
	// reader that begins at End reads what follows.
	Start, End int64
	// Time is Timestamp in UTC, zero if its zone is not known to the reader.
	Time time.Time
	// BadEncoding says that the record is not UTF-8 throughout. Databases in other
	// encodings write their own into the log. The bytes are left as they are.
	BadEncoding bool

	Timestamp        []byte // to the millisecond, with the zone of log_timezone
	User             []byte // who authenticated, whatever SET ROLE said since
	DBName           []byte
	PID              int64
	RemoteHost       []byte // [local] for a Unix socket
	RemotePort       int64
	SessionID        []byte // start and pid of the process, hexadecimal
	LineNum          int64  // in this process and this format, from 1
	PS               []byte // command tag
	SessionStart     []byte
	VXID             []byte
	TXID             int64 // 0 until the transaction writes
	ErrorSeverity    []byte
	StateCode        []byte // 00000 where jsonlog leaves it out
	Message          []byte
	Detail           []byte
	Hint             []byte
	InternalQuery    []byte
	InternalPosition int64
	Context          []byte
	Statement        []byte
	CursorPosition   int64
	FuncName         []byte // this and the next two only with log_error_verbosity = verbose
	FileName         []byte
	FileLineNum      int64
	ApplicationName  []byte // the client's choice
	BackendType      []byte
	LeaderPID        int64
	QueryID          int64
}

// texts are all text fields, in one order.
func (r *Record) texts() [20]*[]byte {
	return [...]*[]byte{
		&r.Timestamp, &r.User, &r.DBName, &r.RemoteHost, &r.SessionID, &r.PS, &r.SessionStart, &r.VXID,
		&r.ErrorSeverity, &r.StateCode, &r.Message, &r.Detail, &r.Hint, &r.InternalQuery, &r.Context,
		&r.Statement, &r.FuncName, &r.FileName, &r.ApplicationName, &r.BackendType,
	}
}

// Clone returns a copy that nobody else writes to.
func (r *Record) Clone() *Record {
	c := *r
	for _, text := range c.texts() {
		*text = bytes.Clone(*text)
	}
	return &c
}

// Equal tells whether two records say the same, wherever they stand.
func (r *Record) Equal(other *Record) bool {
	a, b := r.texts(), other.texts()
	for i := range a {
		if !bytes.Equal(*a[i], *b[i]) {
			return false
		}
	}
	return r.Time.Equal(other.Time) && r.BadEncoding == other.BadEncoding && r.PID == other.PID &&
		r.RemotePort == other.RemotePort && r.LineNum == other.LineNum && r.TXID == other.TXID &&
		r.InternalPosition == other.InternalPosition && r.CursorPosition == other.CursorPosition &&
		r.FileLineNum == other.FileLineNum && r.LeaderPID == other.LeaderPID && r.QueryID == other.QueryID
}

// local is the remote host of a connection over a Unix socket.
const local = "[local]"

// successful is the SQLSTATE of a message that is no error.
var successful = []byte("00000")
