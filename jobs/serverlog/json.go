package serverlog

import (
	"bytes"
	"encoding/binary"
	"math/bits"
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

// plainEnd returns where the plain bytes from i on end.
func plainEnd(b []byte, i int) int {
	const ones, highs = 0x0101010101010101, 0x8080808080808080
	// Eight at a time: a byte of x is 0 exactly if its high bit is the lowest that is
	// set in (x - ones) &^ x & highs, so is the first below 0x20 in the same way.
	for ; i+8 <= len(b); i += 8 {
		w := binary.LittleEndian.Uint64(b[i:])
		quote, backslash := w^ones*'"', w^ones*'\\'
		if found := ((quote-ones)&^quote | (backslash-ones)&^backslash | (w-ones*0x20)&^w) & highs; found != 0 {
			return i + bits.TrailingZeros64(found)/8
		}
	}
	for i < len(b) && plainByte[b[i]] {
		i++
	}
	return i
}

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
	expected := 0
	for {
		field, ok := j.key(&expected)
		if !ok {
			return false
		}
		if field >= 0 {
			if seen&(1<<field) != 0 {
				return false
			}
			seen |= 1 << field
		}
		text, number := rec.field(field)
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
		if j.i < len(j.b) && j.b[j.i] == ',' {
			j.i++
			continue
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

// jsonKeys are the fields in the order in which the server writes them.
var jsonKeys = [...]string{
	`"timestamp":`,
	`"user":`,
	`"dbname":`,
	`"pid":`,
	`"remote_host":`,
	`"remote_port":`,
	`"session_id":`,
	`"line_num":`,
	`"ps":`,
	`"session_start":`,
	`"vxid":`,
	`"txid":`,
	`"error_severity":`,
	`"state_code":`,
	`"message":`,
	`"detail":`,
	`"hint":`,
	`"internal_query":`,
	`"internal_position":`,
	`"context":`,
	`"statement":`,
	`"cursor_position":`,
	`"func_name":`,
	`"file_name":`,
	`"file_line_num":`,
	`"application_name":`,
	`"backend_type":`,
	`"leader_pid":`,
	`"query_id":`,
}

// key reads a key with its colon and returns its place among jsonKeys, -1 if it is
// not there. Nearly always it is the expected one or one of the next.
func (j *jsonText) key(expected *int) (field int, ok bool) {
	rest := j.b[j.i:]
	for field := *expected; field < len(jsonKeys); field++ {
		if key := jsonKeys[field]; len(rest) > len(key) && rest[1] == key[1] && string(rest[:len(key)]) == key {
			*expected = field + 1
			j.i += len(key)
			j.space()
			return field, true
		}
	}
	j.space()
	key, ok := j.text()
	if !ok || !j.take(':') {
		return 0, false
	}
	j.space()
	for field := range jsonKeys {
		if name := jsonKeys[field]; string(key) == name[1:len(name)-2] {
			return field, true
		}
	}
	return -1, true
}

// field returns where the value of one of jsonKeys goes.
func (r *Record) field(field int) (text *[]byte, number *int64) {
	switch field {
	case 0:
		return &r.Timestamp, nil
	case 1:
		return &r.User, nil
	case 2:
		return &r.DBName, nil
	case 3:
		return nil, &r.PID
	case 4:
		return &r.RemoteHost, nil
	case 5:
		return nil, &r.RemotePort
	case 6:
		return &r.SessionID, nil
	case 7:
		return nil, &r.LineNum
	case 8:
		return &r.PS, nil
	case 9:
		return &r.SessionStart, nil
	case 10:
		return &r.VXID, nil
	case 11:
		return nil, &r.TXID
	case 12:
		return &r.ErrorSeverity, nil
	case 13:
		return &r.StateCode, nil
	case 14:
		return &r.Message, nil
	case 15:
		return &r.Detail, nil
	case 16:
		return &r.Hint, nil
	case 17:
		return &r.InternalQuery, nil
	case 18:
		return nil, &r.InternalPosition
	case 19:
		return &r.Context, nil
	case 20:
		return &r.Statement, nil
	case 21:
		return nil, &r.CursorPosition
	case 22:
		return &r.FuncName, nil
	case 23:
		return &r.FileName, nil
	case 24:
		return nil, &r.FileLineNum
	case 25:
		return &r.ApplicationName, nil
	case 26:
		return &r.BackendType, nil
	case 27:
		return nil, &r.LeaderPID
	case 28:
		return nil, &r.QueryID
	}
	return nil, nil
}

// text reads a string. Without escapes it is the line's own bytes.
func (j *jsonText) text() ([]byte, bool) {
	if j.i >= len(j.b) || j.b[j.i] != '"' {
		return nil, false
	}
	b, i := j.b, j.i+1
	start := i
	i = plainEnd(b, i)
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
		i = plainEnd(b, i)
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
