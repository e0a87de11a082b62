package importer

import (
	"bytes"
	"slices"
	"strconv"
)

// A jsonbWriter writes JSON as Postgres prints it once it is jsonb: what functions of the database seal, and so what
// an import must seal for the same value to have the same bytes. It takes what skipValue has let pass. The zero value
// is ready; it keeps its memory for the next value.
type jsonbWriter struct {
	members []jsonbMember // of the objects that are open, innermost last
	sorted  []byte
	text    []byte
}

// A jsonbMember is a member of an object as it was written.
type jsonbMember struct {
	name       []byte // without quotes and escapes
	start, end int    // of name and value in what was written
}

// append appends the value that begins at b[i], and returns the offset behind it.
func (w *jsonbWriter) append(dst, b []byte, i int) ([]byte, int) {
	switch b[i] {
	case '{':
		return w.appendObject(dst, b, i)
	case '[':
		return w.appendArray(dst, b, i)
	case '"':
		end, escaped, _ := skipString(b, i)
		return w.appendString(dst, b[i:end], escaped), end
	case 't', 'f', 'n':
		end := i + len("true")
		if b[i] == 'f' {
			end++
		}
		return append(dst, b[i:end]...), end
	}
	end, _ := skipNumber(b, i)
	return appendNumeric(dst, b[i:end]), end
}

func (w *jsonbWriter) appendArray(dst, b []byte, i int) ([]byte, int) {
	dst = append(dst, '[')
	for i = skipSpace(b, i+1); b[i] != ']'; i = skipSpace(b, i) {
		if b[i] == ',' {
			dst = append(dst, ", "...)
			i = skipSpace(b, i+1)
		}
		dst, i = w.append(dst, b, i)
	}
	return append(dst, ']'), i + 1
}

func (w *jsonbWriter) appendObject(dst, b []byte, i int) ([]byte, int) {
	first := len(w.members)
	dst = append(dst, '{')
	begin := len(dst)
	inOrder := true
	for i = skipSpace(b, i+1); b[i] != '}'; i = skipSpace(b, i) {
		if b[i] == ',' {
			dst = append(dst, ", "...)
			i = skipSpace(b, i+1)
		}
		end, escaped, _ := skipString(b, i)
		m := jsonbMember{name: b[i+1 : end-1], start: len(dst)}
		if escaped {
			m.name = unquote(nil, b[i:end])
		}
		dst = append(w.appendString(dst, b[i:end], escaped), ": "...)
		i = skipSpace(b, skipSpace(b, end)+1) // behind the colon
		dst, i = w.append(dst, b, i)
		m.end = len(dst)
		if last := len(w.members) - 1; last >= first && compareNames(w.members[last].name, m.name) >= 0 {
			inOrder = false
		}
		w.members = append(w.members, m)
	}
	if !inOrder {
		dst = w.sortMembers(dst, begin, w.members[first:])
	}
	clear(w.members[first:]) // which point into the line
	w.members = w.members[:first]
	return append(dst, '}'), i + 1
}

// compareNames orders the members of a jsonb object: by the length of the name, then by its bytes.
func compareNames(a, b []byte) int {
	if len(a) != len(b) {
		return len(a) - len(b)
	}
	return bytes.Compare(a, b)
}

// sortMembers puts the members that were written from begin on in order. Of those with the same name the last counts.
func (w *jsonbWriter) sortMembers(dst []byte, begin int, members []jsonbMember) []byte {
	slices.SortStableFunc(members, func(a, b jsonbMember) int { return compareNames(a.name, b.name) })
	w.sorted = w.sorted[:0]
	for i, m := range members {
		if i+1 < len(members) && bytes.Equal(m.name, members[i+1].name) {
			continue
		}
		if len(w.sorted) > 0 {
			w.sorted = append(w.sorted, ", "...)
		}
		w.sorted = append(w.sorted, dst[m.start:m.end]...)
	}
	return append(dst[:begin], w.sorted...)
}

func (w *jsonbWriter) appendString(dst, lit []byte, escaped bool) []byte {
	if !escaped {
		return append(dst, lit...)
	}
	w.text = unquote(w.text[:0], lit)
	dst = append(dst, '"')
	for _, c := range w.text {
		dst = appendEscaped(dst, c)
	}
	return append(dst, '"')
}

// appendEscaped appends a byte of a string as Postgres's escape_json does: what can stand as it is, does.
func appendEscaped(dst []byte, c byte) []byte {
	const hex = "0123456789abcdef"
	switch stringClass[c] {
	case plain:
		return append(dst, c)
	case quote, escape:
		return append(dst, '\\', c)
	}
	switch c {
	case '\b':
		return append(dst, `\b`...)
	case '\f':
		return append(dst, `\f`...)
	case '\n':
		return append(dst, `\n`...)
	case '\r':
		return append(dst, `\r`...)
	case '\t':
		return append(dst, `\t`...)
	}
	return append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
}

// appendNumeric appends a number as numeric prints it: without an exponent, with the digits behind the point that the
// literal has, and no zero that is negative.
func appendNumeric(dst, lit []byte) []byte {
	mantissa, exponent := lit, 0
	if at := bytes.IndexAny(lit, "eE"); at >= 0 {
		mantissa = lit[:at]
		exponent, _ = strconv.Atoi(string(lit[at+1:]))
	}
	if mantissa[0] == '-' {
		mantissa = mantissa[1:]
		if bytes.ContainsAny(mantissa, "123456789") {
			dst = append(dst, '-')
		}
	}
	if exponent == 0 {
		return append(dst, mantissa...)
	}
	whole, fraction, _ := bytes.Cut(mantissa, []byte{'.'})
	digits := slices.Concat(whole, fraction)
	point := len(whole) + exponent            // where it stands among the digits
	scale := max(len(fraction)-exponent, 0)   // how many are behind it
	digit := func(dst []byte, i int) []byte { // digits outside are zero
		if i < 0 || i >= len(digits) {
			return append(dst, '0')
		}
		return append(dst, digits[i])
	}
	start := 0
	for start < len(digits) && digits[start] == '0' {
		start++
	}
	if start >= point || start == len(digits) {
		dst = append(dst, '0')
	} else {
		for i := start; i < point; i++ {
			dst = digit(dst, i)
		}
	}
	if scale > 0 {
		dst = append(dst, '.')
		for i := point; i < point+scale; i++ {
			dst = digit(dst, i)
		}
	}
	return dst
}
