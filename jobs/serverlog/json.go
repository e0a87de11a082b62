package serverlog

import (
	"bytes"
	"unicode/utf16"
	"unicode/utf8"
)

// deepest nesting of a value under a key that the reader does not know.
const deepest = 32

// plainByte is true for what stands for itself within a JSON text.
var plainByte = func() (plain [256]bool) {
	for b := 0x20; b < 256; b++ {
		plain[b] = b != '"' && b != '\\'
	}
	return plain
}()

// jsonText reads one line.
type jsonText struct {
	b []byte
	i int
	r *Reader
}

func (j *jsonText) space() {
	for j.i < len(j.b) {
		switch j.b[j.i] {
		case ' ', '\t', '\r', '\n':
			j.i++
		default:
			return
		}
	}
}

func (j *jsonText) take(c byte) bool {
	j.space()
	if j.i < len(j.b) && j.b[j.i] == c {
		j.i++
		return true
	}
	return false
}

// parseJSON reads an object of the fields that the server writes, each at most
// once. Fields that a later version may add are passed over.
func (r *Reader) parseJSON(rec *Record, line []byte) bool {
	*rec = Record{}
	r.scratch = r.scratch[:0]
	j := jsonText{b: line, r: r}
	if !j.take('{') {
		return false
	}
	var seen uint64
	for {
		j.space()
		key, ok := j.text()
		if !ok || !j.take(':') {
			return false
		}
		j.space()
		text, number, bit := rec.field(key)
		if bit >= 0 {
			if seen&(1<<bit) != 0 {
				return false
			}
			seen |= 1 << bit
		}
		switch {
		case text != nil:
			*text, ok = j.text()
		case number != nil:
			*number, ok = j.number()
		default:
			ok = j.skip(0)
		}
		if !ok {
			return false
		}
		if j.take(',') {
			continue
		}
		if !j.take('}') {
			return false
		}
		break
	}
	if j.space(); j.i != len(j.b) {
		return false
	}
	if len(rec.StateCode) == 0 {
		rec.StateCode = successful
	}
	return rec.complete(&r.zone)
}

// field returns where the value of a key goes, and a number of the key's own.
func (r *Record) field(key []byte) (text *[]byte, number *int64, bit int) {
	switch string(key) {
	case "timestamp":
		return &r.Timestamp, nil, 0
	case "user":
		return &r.User, nil, 1
	case "dbname":
		return &r.DBName, nil, 2
	case "pid":
		return nil, &r.PID, 3
	case "remote_host":
		return &r.RemoteHost, nil, 4
	case "remote_port":
		return nil, &r.RemotePort, 5
	case "session_id":
		return &r.SessionID, nil, 6
	case "line_num":
		return nil, &r.LineNum, 7
	case "ps":
		return &r.PS, nil, 8
	case "session_start":
		return &r.SessionStart, nil, 9
	case "vxid":
		return &r.VXID, nil, 10
	case "txid":
		return nil, &r.TXID, 11
	case "error_severity":
		return &r.ErrorSeverity, nil, 12
	case "state_code":
		return &r.StateCode, nil, 13
	case "message":
		return &r.Message, nil, 14
	case "detail":
		return &r.Detail, nil, 15
	case "hint":
		return &r.Hint, nil, 16
	case "internal_query":
		return &r.InternalQuery, nil, 17
	case "internal_position":
		return nil, &r.InternalPosition, 18
	case "context":
		return &r.Context, nil, 19
	case "statement":
		return &r.Statement, nil, 20
	case "cursor_position":
		return nil, &r.CursorPosition, 21
	case "func_name":
		return &r.FuncName, nil, 22
	case "file_name":
		return &r.FileName, nil, 23
	case "file_line_num":
		return nil, &r.FileLineNum, 24
	case "application_name":
		return &r.ApplicationName, nil, 25
	case "backend_type":
		return &r.BackendType, nil, 26
	case "leader_pid":
		return nil, &r.LeaderPID, 27
	case "query_id":
		return nil, &r.QueryID, 28
	}
	return nil, nil, -1
}

// text reads a string. Without escapes it is the line's own bytes.
func (j *jsonText) text() ([]byte, bool) {
	if j.i >= len(j.b) || j.b[j.i] != '"' {
		return nil, false
	}
	b, i := j.b, j.i+1
	start := i
	for i < len(b) && plainByte[b[i]] {
		i++
	}
	if i >= len(b) {
		return nil, false
	}
	if b[i] == '"' {
		j.i = i + 1
		return b[start:i:i], true
	}
	// The scratch may move when it grows; texts that point to the old one stay whole.
	scratch := j.r.scratch
	from := len(scratch)
	for {
		scratch = append(scratch, b[start:i]...)
		if i >= len(b) {
			return nil, false
		}
		if b[i] == '"' {
			j.i = i + 1
			j.r.scratch = scratch
			return scratch[from:len(scratch):len(scratch)], true
		}
		if b[i] != '\\' || i+1 >= len(b) {
			return nil, false
		}
		i += 2
		switch c := b[i-1]; c {
		case '"', '\\', '/':
			scratch = append(scratch, c)
		case 'b':
			scratch = append(scratch, '\b')
		case 'f':
			scratch = append(scratch, '\f')
		case 'n':
			scratch = append(scratch, '\n')
		case 'r':
			scratch = append(scratch, '\r')
		case 't':
			scratch = append(scratch, '\t')
		case 'u':
			c, ok := hex4(b, i)
			if !ok {
				return nil, false
			}
			i += 4
			if utf16.IsSurrogate(c) {
				pair := utf8.RuneError
				if i+1 < len(b) && b[i] == '\\' && b[i+1] == 'u' {
					if low, ok := hex4(b, i+2); ok {
						pair = utf16.DecodeRune(c, low)
					}
				}
				if pair != utf8.RuneError {
					i += 6
				}
				c = pair
			}
			scratch = utf8.AppendRune(scratch, c)
		default:
			return nil, false
		}
		start = i
		for i < len(b) && plainByte[b[i]] {
			i++
		}
	}
}

func hex4(b []byte, i int) (rune, bool) {
	if i+4 > len(b) {
		return 0, false
	}
	var c rune
	for _, d := range b[i : i+4] {
		switch {
		case d >= '0' && d <= '9':
			c = c<<4 | rune(d-'0')
		case d >= 'a' && d <= 'f':
			c = c<<4 | rune(d-'a'+10)
		case d >= 'A' && d <= 'F':
			c = c<<4 | rune(d-'A'+10)
		default:
			return 0, false
		}
	}
	return c, true
}

// number reads an integer of 64 bits.
func (j *jsonText) number() (int64, bool) {
	start := j.i
	for j.i < len(j.b) && (j.b[j.i] == '-' || j.b[j.i] >= '0' && j.b[j.i] <= '9') {
		j.i++
	}
	return integer(j.b[start:j.i])
}

// integer reads a decimal number in its only form.
func integer(b []byte) (int64, bool) {
	negative := len(b) > 0 && b[0] == '-'
	digits := b
	if negative {
		digits = b[1:]
	}
	if len(digits) == 0 || len(digits) > 19 || digits[0] == '0' && len(b) > 1 {
		return 0, false
	}
	var n uint64 // 19 digits fit
	for _, d := range digits {
		if d < '0' || d > '9' {
			return 0, false
		}
		n = n*10 + uint64(d-'0')
	}
	if negative {
		if n > 1<<63 {
			return 0, false
		}
		return -int64(n), true
	}
	return int64(n), n < 1<<63
}

// skip passes over any value.
func (j *jsonText) skip(depth int) bool {
	j.space()
	if j.i >= len(j.b) || depth > deepest {
		return false
	}
	switch c := j.b[j.i]; c {
	case '"':
		_, ok := j.text()
		return ok
	case '{', '[':
		j.i++
		closing := c + 2 // } and ] in ASCII
		if j.take(closing) {
			return true
		}
		for {
			if c == '{' {
				j.space()
				if _, ok := j.text(); !ok || !j.take(':') {
					return false
				}
			}
			if !j.skip(depth + 1) {
				return false
			}
			if j.take(',') {
				continue
			}
			return j.take(closing)
		}
	}
	for _, word := range []string{"null", "true", "false"} {
		if bytes.HasPrefix(j.b[j.i:], []byte(word)) {
			j.i += len(word)
			return true
		}
	}
	return j.float()
}

// float passes over a number of any form.
func (j *jsonText) float() bool {
	digits := func() bool {
		start := j.i
		for j.i < len(j.b) && j.b[j.i] >= '0' && j.b[j.i] <= '9' {
			j.i++
		}
		return j.i > start
	}
	is := func(chars string) bool {
		if j.i < len(j.b) && bytes.IndexByte([]byte(chars), j.b[j.i]) >= 0 {
			j.i++
			return true
		}
		return false
	}
	is("-")
	if zero := is("0"); !zero && !digits() {
		return false
	}
	if is(".") && !digits() {
		return false
	}
	if is("eE") {
		is("+-")
		return digits()
	}
	return true
}
