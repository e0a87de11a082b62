package importer

import "encoding/binary"

// COPY's binary format: a header, rows of a column count and length-prefixed values, a trailer.
const (
	copyHeader  = "PGCOPY\n\xff\r\n\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	copyTrailer = "\xff\xff"
)

// postgresEpoch is 2000-01-01 UTC in microseconds since 1970.
const postgresEpoch = 946_684_800 * 1_000_000

func appendNull(dst []byte) []byte {
	return append(dst, 0xff, 0xff, 0xff, 0xff)
}

func appendLength(dst []byte, n int) []byte {
	return binary.BigEndian.AppendUint32(dst, uint32(n))
}

func appendBytes(dst, v []byte) []byte {
	return append(appendLength(dst, len(v)), v...)
}

func appendInt8(dst []byte, v int64) []byte {
	return binary.BigEndian.AppendUint64(appendLength(dst, 8), uint64(v))
}

func appendInt4(dst []byte, v int32) []byte {
	return binary.BigEndian.AppendUint32(appendLength(dst, 4), uint32(v))
}

func appendBool(dst []byte, v bool) []byte {
	if v {
		return append(appendLength(dst, 1), 1)
	}
	return append(appendLength(dst, 1), 0)
}

func appendTime(dst []byte, micros int64) []byte {
	return appendInt8(dst, micros-postgresEpoch)
}

// appendJSON appends a jsonb value; its binary form is a version byte and the JSON text.
func appendJSON(dst []byte, parts ...[]byte) []byte {
	n := 1
	for _, p := range parts {
		n += len(p)
	}
	dst = append(appendLength(dst, n), 1)
	for _, p := range parts {
		dst = append(dst, p...)
	}
	return dst
}

// parseTime reads an RFC 3339 time with an offset and returns microseconds since 1970. Digits after the sixth
// of a fraction are cut off. time.Parse takes five times as long, and takes years that the database does not.
func parseTime(s []byte) (micros int64, ok bool) {
	if len(s) < len("2006-01-02T15:04:05Z") || s[4] != '-' || s[7] != '-' || s[10]|0x20 != 't' && s[10] != ' ' ||
		s[13] != ':' || s[16] != ':' {
		return 0, false
	}
	year, ok1 := number(s[0:4])
	month, ok2 := number(s[5:7])
	day, ok3 := number(s[8:10])
	hour, ok4 := number(s[11:13])
	minute, ok5 := number(s[14:16])
	second, ok6 := number(s[17:19])
	if !ok1 || !ok2 || !ok3 || !ok4 || !ok5 || !ok6 || month < 1 || month > 12 || day < 1 || day > daysIn(year, month) ||
		hour > 23 || minute > 59 || second > 59 {
		return 0, false
	}
	s = s[19:]
	fraction := 0
	if s[0] == '.' {
		i, scale := 1, 100_000
		for i < len(s) && s[i] >= '0' && s[i] <= '9' {
			fraction += int(s[i]-'0') * scale
			scale /= 10
			i++
		}
		if i == 1 {
			return 0, false
		}
		s = s[i:]
	}
	offset := 0
	switch {
	case len(s) == 1 && s[0]|0x20 == 'z':
	case len(s) == 6 && (s[0] == '+' || s[0] == '-') && s[3] == ':':
		h, ok1 := number(s[1:3])
		m, ok2 := number(s[4:6])
		if !ok1 || !ok2 || h > 23 || m > 59 {
			return 0, false
		}
		if offset = h*3600 + m*60; s[0] == '-' {
			offset = -offset
		}
	default:
		return 0, false
	}
	seconds := daysSince1970(year, month, day)*86_400 + int64(hour*3600+minute*60+second-offset)
	return seconds*1_000_000 + int64(fraction), true
}

func number(s []byte) (int, bool) {
	n := 0
	for _, c := range s {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int(c-'0')
	}
	return n, true
}

func daysIn(year, month int) int {
	switch month {
	case 2:
		if year%4 == 0 && (year%100 != 0 || year%400 == 0) {
			return 29
		}
		return 28
	case 4, 6, 9, 11:
		return 30
	}
	return 31
}

// daysSince1970 counts in years that begin in March, so that the leap day is the last of its year.
func daysSince1970(year, month, day int) int64 {
	if month <= 2 {
		year--
		month += 12
	}
	return int64(365*year + year/4 - year/100 + year/400 + (153*(month-3)+2)/5 + day - 1 - 719_468)
}

// parseUUID reads the 36-character form, in either case.
func parseUUID(s []byte) (u [16]byte, ok bool) {
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return u, false
	}
	at := 0
	for i := 0; i < 36; i += 2 {
		if i == 8 || i == 13 || i == 18 || i == 23 {
			i++
		}
		high, low := hexValue[s[i]], hexValue[s[i+1]]
		if high < 0 || low < 0 {
			return u, false
		}
		u[at] = byte(high)<<4 | byte(low)
		at++
	}
	return u, true
}
