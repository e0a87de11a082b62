package importer

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"unicode/utf8"
)

// Limits of a line's JSON. Postgres takes more, but each of its own limits ends the whole COPY without naming a line.
const (
	maxDepth    = 100    // nesting of objects and arrays
	maxNumber   = 1000   // characters of one number
	maxExponent = 10_000 // of one number, either sign; numeric ends at 131,072 digits
)

// A syntaxError says where in a line the JSON ends to be JSON that jsonb can hold. It never quotes the line.
type syntaxError struct {
	at   int // offset of the byte
	what string
}

func (e *syntaxError) problem(field string) *problem {
	return problemf(field, "%s at byte %d", e.what, e.at+1)
}

const nulText = "NUL character, which the database cannot store,"

// byte classes inside a string
const (
	plain = iota
	quote
	escape
	control
)

var stringClass = func() (t [256]uint8) {
	for c := range 0x20 {
		t[c] = control
	}
	t['"'], t['\\'] = quote, escape
	return t
}()

func skipSpace(b []byte, i int) int {
	for i < len(b) && (b[i] == ' ' || b[i] == '\t' || b[i] == '\n' || b[i] == '\r') {
		i++
	}
	return i
}

// skipValue returns the offset after the value that begins at b[i]. What it lets pass, jsonb takes.
func skipValue(b []byte, i, depth int) (int, *syntaxError) {
	if i >= len(b) {
		return i, &syntaxError{i, "invalid JSON: the line ends where a value is expected,"}
	}
	switch c := b[i]; c {
	case '"':
		end, _, err := skipString(b, i)
		return end, err
	case '{', '[':
		return skipContainer(b, i, depth)
	case 't':
		return skipWord(b, i, "true")
	case 'f':
		return skipWord(b, i, "false")
	case 'n':
		return skipWord(b, i, "null")
	default:
		if c == '-' || c >= '0' && c <= '9' {
			return skipNumber(b, i)
		}
		if c == 0 {
			return i, &syntaxError{i, nulText}
		}
		return i, &syntaxError{i, "invalid JSON: no value begins"}
	}
}

func skipWord(b []byte, i int, word string) (int, *syntaxError) {
	if len(b)-i < len(word) || string(b[i:i+len(word)]) != word {
		return i, &syntaxError{i, "invalid JSON: no value begins"}
	}
	return i + len(word), nil
}

func skipContainer(b []byte, i, depth int) (int, *syntaxError) {
	if depth >= maxDepth {
		return i, &syntaxError{i, fmt.Sprintf("JSON nested deeper than %d levels", maxDepth)}
	}
	members := members{b: b, i: i, depth: depth}
	members.open()
	for members.next() {
	}
	return members.i, members.err
}

// members walks over an object or array, one member at a time:
//
//	m := members{b: b, i: start}; m.open(); for m.next() { use m.key, m.value }; check m.err
type members struct {
	b     []byte
	i     int // where the walk stands; after the end, the offset behind the closing bracket
	depth int
	err   *syntaxError

	key        []byte // with its quotes; nil in an array
	keyEscaped bool
	value      []byte
	index      int  // of the member, from 0
	inValue    bool // err stands in the value of the member key

	array bool
	begun bool
}

func (m *members) open() {
	m.array = m.b[m.i] == '['
	m.i++
	m.index = -1
}

func (m *members) fail(what string) bool {
	if m.i < len(m.b) && m.b[m.i] == 0 {
		what = nulText
	}
	m.err = &syntaxError{m.i, what}
	return false
}

func (m *members) next() bool {
	b := m.b
	closing := byte('}')
	if m.array {
		closing = ']'
	}
	m.i = skipSpace(b, m.i)
	if m.i >= len(b) {
		return m.fail("invalid JSON: the line ends inside an object or array,")
	}
	if b[m.i] == closing {
		m.i++
		return false
	}
	if m.begun {
		if b[m.i] != ',' {
			return m.fail("invalid JSON: no comma or closing bracket")
		}
		m.i = skipSpace(b, m.i+1)
	}
	m.begun = true
	m.index++
	if !m.array {
		if m.i >= len(b) || b[m.i] != '"' {
			return m.fail("invalid JSON: no field name in quotes")
		}
		end, escaped, err := skipString(b, m.i)
		if err != nil {
			m.err = err
			return false
		}
		m.key, m.keyEscaped = b[m.i:end], escaped
		m.i = skipSpace(b, end)
		if m.i >= len(b) || b[m.i] != ':' {
			return m.fail("invalid JSON: no colon after a field name")
		}
		m.i = skipSpace(b, m.i+1)
	}
	end, err := skipValue(b, m.i, m.depth+1)
	if err != nil {
		m.err, m.inValue = err, true
		return false
	}
	m.value = b[m.i:end]
	m.i = end
	return true
}

// name returns the member's key without quotes and escapes.
func (m *members) name(buf []byte) []byte {
	if !m.keyEscaped {
		return m.key[1 : len(m.key)-1]
	}
	return unquote(buf[:0], m.key)
}

// skipPlain returns the offset of the first byte from b[i] on that is not plain. It looks at eight of them at once: in
// the lowest byte of a word that is below n, and in none before it, a subtraction of n borrows.
func skipPlain(b []byte, i int) int {
	const ones, highest = 0x0101010101010101, 0x8080808080808080
	for ; i+8 <= len(b); i += 8 {
		word := binary.LittleEndian.Uint64(b[i:])
		quotes, escapes := word^(ones*'"'), word^(ones*'\\')
		found := ((word-ones*0x20)&^word | (quotes-ones)&^quotes | (escapes-ones)&^escapes) & highest
		if found != 0 {
			return i + bits.TrailingZeros64(found)/8
		}
	}
	for i < len(b) && stringClass[b[i]] == plain {
		i++
	}
	return i
}

// skipString returns the offset after the string that begins at b[i], and whether it holds escapes.
// UTF-8 is checked once for the whole line.
func skipString(b []byte, i int) (end int, escaped bool, err *syntaxError) {
	start := i
	i++
	for {
		i = skipPlain(b, i)
		if i >= len(b) {
			return i, escaped, &syntaxError{start, "invalid JSON: no end to the string that begins"}
		}
		switch stringClass[b[i]] {
		case quote:
			return i + 1, escaped, nil
		case control:
			if b[i] == 0 {
				return i, escaped, &syntaxError{i, nulText}
			}
			return i, escaped, &syntaxError{i, "invalid JSON: control character without escape"}
		}
		escaped = true
		if i+1 >= len(b) {
			return i, escaped, &syntaxError{start, "invalid JSON: no end to the string that begins"}
		}
		switch b[i+1] {
		case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
			i += 2
		case 'u':
			r, ok := hex4(b, i+2)
			if !ok {
				return i, escaped, &syntaxError{i, "invalid JSON: no four hexadecimal digits after \\u"}
			}
			switch {
			case r == 0:
				return i, escaped, &syntaxError{i, nulText}
			case r >= 0xdc00 && r < 0xe000:
				return i, escaped, &syntaxError{i, "invalid JSON: second half of a surrogate pair without the first"}
			case r >= 0xd800 && r < 0xdc00:
				if i+7 >= len(b) || b[i+6] != '\\' || b[i+7] != 'u' {
					return i, escaped, &syntaxError{i, "invalid JSON: first half of a surrogate pair without the second"}
				}
				if low, ok := hex4(b, i+8); !ok || low < 0xdc00 || low >= 0xe000 {
					return i, escaped, &syntaxError{i, "invalid JSON: first half of a surrogate pair without the second"}
				}
				i += 12
			default:
				i += 6
			}
		default:
			return i, escaped, &syntaxError{i, "invalid JSON: unknown escape"}
		}
	}
}

func hex4(b []byte, i int) (rune, bool) {
	if i+4 > len(b) {
		return 0, false
	}
	var r rune
	for _, c := range b[i : i+4] {
		d := hexValue[c]
		if d < 0 {
			return 0, false
		}
		r = r<<4 | rune(d)
	}
	return r, true
}

var hexValue = func() (t [256]int8) {
	for c := range t {
		t[c] = -1
	}
	for c := '0'; c <= '9'; c++ {
		t[c] = int8(c - '0')
	}
	for c := 'a'; c <= 'f'; c++ {
		t[c], t[c-'a'+'A'] = int8(c-'a'+10), int8(c-'a'+10)
	}
	return t
}()

func skipNumber(b []byte, i int) (int, *syntaxError) {
	start := i
	if b[i] == '-' {
		i++
	}
	digits := func() bool {
		from := i
		for i < len(b) && b[i] >= '0' && b[i] <= '9' {
			i++
		}
		return i > from
	}
	if i < len(b) && b[i] == '0' {
		i++
	} else if !digits() {
		return i, &syntaxError{start, "invalid JSON: no number, though it begins as one,"}
	}
	if i < len(b) && b[i] == '.' {
		i++
		if !digits() {
			return i, &syntaxError{start, "invalid JSON: no number, though it begins as one,"}
		}
	}
	if i < len(b) && (b[i] == 'e' || b[i] == 'E') {
		i++
		if i < len(b) && (b[i] == '+' || b[i] == '-') {
			i++
		}
		from := i
		if !digits() {
			return i, &syntaxError{start, "invalid JSON: no number, though it begins as one,"}
		}
		exponent := 0
		for _, c := range b[from:i] {
			if exponent = exponent*10 + int(c-'0'); exponent > maxExponent {
				return i, &syntaxError{start, fmt.Sprintf("number with an exponent beyond %d", maxExponent)}
			}
		}
	}
	if i-start > maxNumber {
		return i, &syntaxError{start, fmt.Sprintf("number of more than %d characters", maxNumber)}
	}
	return i, nil
}

// unquote appends the text of a string literal that skipString has let pass.
func unquote(dst, lit []byte) []byte {
	s := lit[1 : len(lit)-1]
	for i := 0; i < len(s); {
		c := s[i]
		if c != '\\' {
			dst = append(dst, c)
			i++
			continue
		}
		switch c := s[i+1]; c {
		case 'b':
			dst = append(dst, '\b')
		case 'f':
			dst = append(dst, '\f')
		case 'n':
			dst = append(dst, '\n')
		case 'r':
			dst = append(dst, '\r')
		case 't':
			dst = append(dst, '\t')
		case 'u':
			r, _ := hex4(s, i+2)
			if r >= 0xd800 && r < 0xdc00 {
				low, _ := hex4(s, i+8)
				r = 0x10000 + (r-0xd800)<<10 + (low - 0xdc00)
				i += 6
			}
			dst = utf8.AppendRune(dst, r)
			i += 4
		default: // " \ /
			dst = append(dst, c)
		}
		i += 2
	}
	return dst
}

// firstInvalid returns the offset of the first byte that is not UTF-8, or -1.
func firstInvalid(b []byte) int {
	if utf8.Valid(b) {
		return -1
	}
	for i := 0; i < len(b); {
		r, size := utf8.DecodeRune(b[i:])
		if r == utf8.RuneError && size == 1 {
			return i
		}
		i += size
	}
	return -1
}
