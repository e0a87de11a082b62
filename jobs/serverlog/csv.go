package serverlog

import "bytes"

// csvState is where in a record a byte stands.
type csvState int

const (
	csvFieldStart csvState = iota
	csvBare                // in a field without quotes
	csvQuoted              // within quotes
	csvQuote               // behind a quote that ends the field, or is the first of two
	csvLost                // in no record: ends with the line

	// What parseCSV found.
	csvWhole
	csvOpen
	csvBroken
)

// pass goes on to the end of the record and tells how far it got.
func (s *csvState) pass(b []byte) (used int, ended bool) {
	for i := 0; i < len(b); i++ {
		c := b[i]
		switch *s {
		case csvFieldStart:
			switch c {
			case '\n':
				return i + 1, true
			case '"':
				*s = csvQuoted
			case ',':
			default:
				*s = csvBare
			}
		case csvBare:
			switch c {
			case '\n':
				return i + 1, true
			case ',':
				*s = csvFieldStart
			case '"':
				*s = csvLost
			}
		case csvQuoted:
			at := bytes.IndexByte(b[i:], '"')
			if at < 0 {
				return len(b), false
			}
			i += at
			*s = csvQuote
		case csvQuote:
			switch c {
			case '\n':
				return i + 1, true
			case ',':
				*s = csvFieldStart
			case '"':
				*s = csvQuoted
			default:
				*s = csvLost
			}
		default:
			at := bytes.IndexByte(b[i:], '\n')
			if at < 0 {
				return len(b), false
			}
			return i + at + 1, true
		}
	}
	return len(b), false
}

// csvColumns are the columns of Postgres 14 to 18, in order: q for a text, which
// the server always quotes, u for one that it never does, n for a number.
const csvColumns = "uqqnqunquunuuqqqqnqqnqqqnn"

// parseCSV reads the record at the beginning of b.
func (r *Reader) parseCSV(rec *Record, b []byte) (size int, state csvState) {
	*rec = Record{}
	r.scratch = r.scratch[:0]
	i := 0
	for column := range len(csvColumns) {
		last := column == len(csvColumns)-1
		var value []byte
		if i < len(b) && b[i] == '"' {
			if csvColumns[column] != 'q' {
				return 0, csvBroken
			}
			var ok bool
			if value, i, ok = r.quoted(b, i+1); !ok {
				return 0, csvOpen
			}
		} else {
			start := i
			for i < len(b) && b[i] != ',' && b[i] != '\n' {
				if b[i] == '"' {
					return 0, csvBroken
				}
				i++
			}
			value = b[start:i:i]
			if i < len(b) && len(value) > 0 && csvColumns[column] == 'q' {
				return 0, csvBroken
			}
		}
		if i >= len(b) {
			return 0, csvOpen
		}
		if (b[i] == '\n') != last || (b[i] == ',') == last {
			return 0, csvBroken
		}
		i++
		if !rec.column(column, value) {
			return 0, csvBroken
		}
	}
	if !rec.complete(&r.zone) {
		return 0, csvBroken
	}
	return i, csvWhole
}

// quoted reads a text behind its opening quote, up to what follows its closing
// one, of which it is certain.
func (r *Reader) quoted(b []byte, i int) (value []byte, next int, ok bool) {
	start := i
	from := len(r.scratch)
	for {
		at := bytes.IndexByte(b[i:], '"')
		if at < 0 || i+at+1 >= len(b) {
			return nil, len(b), false
		}
		i += at + 1
		if b[i] != '"' {
			if len(r.scratch) == from {
				return b[start : i-1 : i-1], i, true
			}
			r.scratch = append(r.scratch, b[start:i-1]...)
			return r.scratch[from:len(r.scratch):len(r.scratch)], i, true
		}
		r.scratch = append(r.scratch, b[start:i]...)
		i++
		start = i
	}
}

// column puts a value where it belongs.
func (r *Record) column(column int, value []byte) bool {
	if len(value) == 0 {
		return true
	}
	ok := true
	switch column {
	case 0:
		r.Timestamp = value
	case 1:
		r.User = value
	case 2:
		r.DBName = value
	case 3:
		r.PID, ok = integer(value)
	case 4:
		r.RemoteHost = value
		if at := bytes.LastIndexByte(value, ':'); at >= 0 && string(value) != local {
			r.RemoteHost = value[:at:at]
			r.RemotePort, ok = integer(value[at+1:])
		}
	case 5:
		r.SessionID = value
	case 6:
		r.LineNum, ok = integer(value)
	case 7:
		r.PS = value
	case 8:
		r.SessionStart = value
	case 9:
		r.VXID = value
	case 10:
		r.TXID, ok = integer(value)
	case 11:
		r.ErrorSeverity = value
	case 12:
		r.StateCode = value
	case 13:
		r.Message = value
	case 14:
		r.Detail = value
	case 15:
		r.Hint = value
	case 16:
		r.InternalQuery = value
	case 17:
		r.InternalPosition, ok = integer(value)
	case 18:
		r.Context = value
	case 19:
		r.Statement = value
	case 20:
		r.CursorPosition, ok = integer(value)
	case 21:
		ok = r.location(value)
	case 22:
		r.ApplicationName = value
	case 23:
		r.BackendType = value
	case 24:
		r.LeaderPID, ok = integer(value)
	case 25:
		r.QueryID, ok = integer(value)
	}
	return ok
}

// location reads "function, file:line" or "file:line".
func (r *Record) location(value []byte) bool {
	if at := bytes.Index(value, []byte(", ")); at >= 0 {
		r.FuncName, value = value[:at:at], value[at+2:]
	}
	at := bytes.LastIndexByte(value, ':')
	if at < 0 {
		return false
	}
	r.FileName = value[:at:at]
	var ok bool
	r.FileLineNum, ok = integer(value[at+1:])
	return ok
}
