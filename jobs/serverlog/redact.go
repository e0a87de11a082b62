package serverlog

import "bytes"

// AppendRedacted appends an SQL text in which each literal is replaced by the
// placeholder and each comment by a space. Keywords, names (quoted ones too),
// operators and parameters ($1) stay.
//
// A literal is a string of any form ('…', E'…', U&'…', B'…', X'…', N'…', $tag$…$tag$)
// or a number. A text that ends within a literal, a quoted name or a comment has
// its end replaced as well: servers and pgaudit cut statements. So has one with a
// backslash before a quote in a string without E: where it ends depends on
// standard_conforming_strings, which the log does not tell, and what stands behind
// it could be within a literal.
func AppendRedacted(dst, sql []byte, placeholder string) []byte {
	kept := 0 // up to where sql is in dst
	replace := func(from, to int, by string) {
		dst = append(dst, sql[kept:from]...)
		dst = append(dst, by...)
		kept = to
	}
	for i := 0; i < len(sql); {
		start := i
		c := sql[i]
		switch {
		case isIdentStart(c):
			i = identEnd(sql, i)
			if i-start == 1 && (c == 'e' || c == 'E') && i < len(sql) && sql[i] == '\'' {
				// Behind a number it depends on the server's version whether the E is a prefix.
				if start > 0 && (isDigit(sql[start-1]) || sql[start-1] == '_' || sql[start-1] == '.') {
					i = stringEnd(sql, i+1)
				} else {
					i = escapedEnd(sql, i+1)
				}
				replace(start, i, placeholder)
			} else if prefix := stringPrefix(sql, start, i); prefix > 0 {
				i = stringEnd(sql, prefix)
				replace(start, i, placeholder)
			}
		case c == '\'':
			i = stringEnd(sql, i+1)
			replace(start, i, placeholder)
		case c == '"':
			var closed bool
			if i, closed = nameEnd(sql, i+1); !closed {
				replace(start, i, placeholder)
			}
		case c == '$':
			if i++; i < len(sql) && isDigit(sql[i]) {
				for i < len(sql) && isDigit(sql[i]) {
					i++
				}
			} else if tag := dollarTag(sql, start); tag > 0 {
				i = len(sql)
				if at := bytes.Index(sql[tag:], sql[start:tag]); at >= 0 {
					i = tag + at + tag - start
				}
				replace(start, i, placeholder)
			}
		case isDigit(c) || c == '.' && i+1 < len(sql) && isDigit(sql[i+1]):
			i = numberEnd(sql, i)
			replace(start, i, placeholder)
		case c == '-' && i+1 < len(sql) && sql[i+1] == '-':
			for i < len(sql) && sql[i] != '\n' && sql[i] != '\r' {
				i++
			}
			replace(start, i, " ")
		case c == '/' && i+1 < len(sql) && sql[i+1] == '*':
			i = commentEnd(sql, i+2)
			replace(start, i, " ")
		default:
			i++
		}
	}
	return append(dst, sql[kept:]...)
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

func isIdentStart(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '_' || c >= 0x80
}

func identEnd(sql []byte, i int) int {
	for i < len(sql) && (isIdentStart(sql[i]) || isDigit(sql[i]) || sql[i] == '$') {
		i++
	}
	return i
}

// stringPrefix returns where the text of a string begins whose prefix is the name
// at start: B'…', X'…', N'…' and U&'…'. 0 if it is a name.
func stringPrefix(sql []byte, start, end int) int {
	if end-start != 1 {
		return 0
	}
	switch sql[start] {
	case 'b', 'B', 'x', 'X', 'n', 'N':
		if end < len(sql) && sql[end] == '\'' {
			return end + 1
		}
	case 'u', 'U':
		if end+1 < len(sql) && sql[end] == '&' && sql[end+1] == '\'' {
			return end + 2
		}
	}
	return 0
}

// stringEnd returns the end of a string in which a backslash may stand for itself
// or not.
func stringEnd(sql []byte, i int) int {
	for {
		at := bytes.IndexByte(sql[i:], '\'')
		if at < 0 {
			return len(sql)
		}
		backslashes := 0
		for at-backslashes > 0 && sql[i+at-backslashes-1] == '\\' {
			backslashes++
		}
		if backslashes%2 == 1 {
			return len(sql)
		}
		i += at + 1
		if i == len(sql) || sql[i] != '\'' {
			return i
		}
		i++
	}
}

// escapedEnd returns the end of a string in which a backslash takes the next byte.
func escapedEnd(sql []byte, i int) int {
	for i < len(sql) {
		switch sql[i] {
		case '\\':
			i += 2
		case '\'':
			if i++; i == len(sql) || sql[i] != '\'' {
				return i
			}
			i++
		default:
			i++
		}
	}
	return len(sql)
}

func nameEnd(sql []byte, i int) (end int, closed bool) {
	for {
		at := bytes.IndexByte(sql[i:], '"')
		if at < 0 {
			return len(sql), false
		}
		i += at + 1
		if i == len(sql) || sql[i] != '"' {
			return i, true
		}
		i++
	}
}

// dollarTag returns the end of the $tag$ at i, 0 if there is none.
func dollarTag(sql []byte, i int) int {
	i++
	if i < len(sql) && isIdentStart(sql[i]) {
		for i < len(sql) && (isIdentStart(sql[i]) || isDigit(sql[i])) {
			i++
		}
	}
	if i < len(sql) && sql[i] == '$' {
		return i + 1
	}
	return 0
}

// numberEnd returns the end of a number and of what is written to it: 1e, 0x1f,
// 1_000, and the name in 1from, which older servers took for a name.
func numberEnd(sql []byte, i int) int {
	for i < len(sql) && (isDigit(sql[i]) || sql[i] == '_' || sql[i] == '.') {
		i++
	}
	if i < len(sql) && (sql[i] == 'e' || sql[i] == 'E') {
		sign := i + 1
		if sign < len(sql) && (sql[sign] == '+' || sql[sign] == '-') {
			sign++
		}
		if sign < len(sql) && isDigit(sql[sign]) {
			i = sign
			for i < len(sql) && (isDigit(sql[i]) || sql[i] == '_') {
				i++
			}
		}
	}
	if i < len(sql) && isIdentStart(sql[i]) {
		// A string's prefix does not belong to the number: 1E'…' is a number and a string.
		if end := identEnd(sql, i); end-i != 1 || end == len(sql) || sql[end] != '\'' && sql[end] != '&' {
			i = end
		}
	}
	return i
}

// commentEnd returns the end of a comment. They nest.
func commentEnd(sql []byte, i int) int {
	for depth := 1; i < len(sql); i++ {
		if i+1 == len(sql) {
			break
		}
		switch {
		case sql[i] == '*' && sql[i+1] == '/':
			i++
			if depth--; depth == 0 {
				return i + 1
			}
		case sql[i] == '/' && sql[i+1] == '*':
			i++
			depth++
		}
	}
	return len(sql)
}
