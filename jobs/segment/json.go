package segment

import "encoding/binary"

// maxDepth is json.Valid's.
const maxDepth = 10_000

// validJSON tells what json.Valid tells, in a fraction of its time: it is asked about
// every line of the archive.
func validJSON(text []byte) bool {
	var few [16]byte
	open := few[:0] // the brackets that will close what is open
	i := skipSpace(text, 0)
	for i < len(text) {
		begun := false
		switch b := text[i]; b {
		case '{', '[':
			// The one that closes comes two after the one that opens, in both kinds.
			if open = append(open, b+2); len(open) > maxDepth {
				return false
			}
			i = skipSpace(text, i+1)
			begun = i < len(text) && text[i] != b+2
		case '"':
			i = skipString(text, i)
		default:
			i = skipWord(text, i)
		}
		// What may stand behind a value.
		for i >= 0 && !begun {
			i = skipSpace(text, i)
			if len(open) == 0 || i == len(text) {
				return len(open) == 0 && i == len(text)
			}
			switch text[i] {
			case open[len(open)-1]:
				open = open[:len(open)-1]
				i++
			case ',':
				i, begun = skipSpace(text, i+1), true
			default:
				return false
			}
		}
		if i >= 0 && open[len(open)-1] == '}' {
			i = skipName(text, i)
		}
		if i < 0 {
			return false
		}
	}
	return false
}

func skipSpace(text []byte, i int) int {
	for i < len(text) && (text[i] == ' ' || text[i] == '\t' || text[i] == '\n' || text[i] == '\r') {
		i++
	}
	return i
}

// skipName passes over a member's name, to its value; this one and those below return
// -1 where there is none.
func skipName(text []byte, i int) int {
	if i == len(text) || text[i] != '"' {
		return -1
	}
	if i = skipString(text, i); i < 0 {
		return -1
	}
	if i = skipSpace(text, i); i == len(text) || text[i] != ':' {
		return -1
	}
	return skipSpace(text, i+1)
}

// eachByte times b has b in each of its bytes.
const eachByte = 0x0101010101010101

// anyZero is not zero if one of the bytes is.
func anyZero(x uint64) uint64 { return (x - eachByte) &^ x & (0x80 * eachByte) }

// skipString passes over a string, which begins at i.
func skipString(text []byte, i int) int {
	for i++; i < len(text); i++ {
		for i+8 <= len(text) {
			x := binary.LittleEndian.Uint64(text[i:])
			below := (x - ' '*eachByte) &^ x & (0x80 * eachByte)
			if below|anyZero(x^'"'*eachByte)|anyZero(x^'\\'*eachByte) != 0 {
				break
			}
			i += 8
		}
		for i < len(text) && text[i] >= ' ' && text[i] != '"' && text[i] != '\\' {
			i++
		}
		if i == len(text) || text[i] < ' ' {
			return -1
		}
		if text[i] == '"' {
			return i + 1
		}
		if i++; i == len(text) {
			return -1
		}
		switch text[i] {
		case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		case 'u':
			for range 4 {
				if i++; i == len(text) || !isDigit(text[i]) && (text[i]|0x20 < 'a' || text[i]|0x20 > 'f') {
					return -1
				}
			}
		default:
			return -1
		}
	}
	return -1
}

func isDigit(b byte) bool { return b >= '0' && b <= '9' }

// skipWord passes over a number, true, false or null.
func skipWord(text []byte, i int) int {
	for _, word := range []string{"true", "false", "null"} {
		if len(text)-i >= len(word) && string(text[i:i+len(word)]) == word {
			return i + len(word)
		}
	}
	is := func(b byte) bool { return i < len(text) && text[i] == b }
	digits := func() bool {
		from := i
		for i < len(text) && isDigit(text[i]) {
			i++
		}
		return i > from
	}
	if is('-') {
		i++
	}
	if is('0') {
		i++
	} else if !digits() {
		return -1
	}
	if is('.') {
		if i++; !digits() {
			return -1
		}
	}
	if is('e') || is('E') {
		if i++; is('+') || is('-') {
			i++
		}
		if !digits() {
			return -1
		}
	}
	return i
}
