package serverlog

import (
	"bytes"
	"time"
)

// zone knows the zone of the log's times.
type zone struct {
	location *time.Location
	layout   string
}

func newZone(location *time.Location) zone {
	if location == nil {
		location = time.UTC
	}
	return zone{location: location, layout: "2006-01-02 15:04:05.000 MST"}
}

// maxLine is more than a session will ever log: what counts on can be added to it.
const maxLine = 1 << 40

// complete tells whether the record has what every one of them has, in the right
// form, and fills in what follows from it.
func (r *Record) complete(z *zone) bool {
	if !isSession(r.SessionID) || r.LineNum <= 0 || r.LineNum > maxLine || len(r.ErrorSeverity) == 0 || len(r.BackendType) == 0 || len(r.StateCode) != 5 {
		return false
	}
	milli, name, ok := civil(r.Timestamp)
	if !ok {
		return false
	}
	if string(name) == "UTC" || string(name) == "GMT" {
		return r.at(milli)
	}
	if offset, ok := numericZone(name); ok {
		return r.at(milli - offset*1000)
	}
	// An abbreviation says nothing by itself: it must be the one that the location
	// had at that time.
	t, err := time.ParseInLocation(z.layout, string(r.Timestamp), z.location)
	if err == nil && t.Location() == z.location {
		return r.at(t.UnixMilli())
	}
	return true
}

// at sets the time. The years 1 to 9999 are those that JSON and Postgres can both write.
func (r *Record) at(milli int64) bool {
	if milli < -62135596800000 || milli > 253402300799999 {
		return false
	}
	r.Time = time.UnixMilli(milli).UTC()
	return true
}

// isSession tells whether a text is what the server calls a session: when it started
// and its process, hexadecimal.
func isSession(b []byte) bool {
	dot := bytes.IndexByte(b, '.')
	if dot <= 0 || dot == len(b)-1 || len(b) > 25 {
		return false
	}
	for i, c := range b {
		if i != dot && (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// civil reads "2006-01-02 15:04:05.000 ZONE", as milliseconds as if in UTC.
func civil(b []byte) (milli int64, name []byte, ok bool) {
	const form = "dddd-dd-dd dd:dd:dd.ddd "
	if len(b) <= len(form) {
		return 0, nil, false
	}
	var numbers [7]int64
	at := 0
	for i := range len(form) {
		switch {
		case form[i] == 'd':
			d := b[i] - '0'
			if d > 9 {
				return 0, nil, false
			}
			numbers[at] = numbers[at]*10 + int64(d)
		case form[i] != b[i]:
			return 0, nil, false
		default:
			at++
		}
	}
	year, month, day := numbers[0], numbers[1], numbers[2]
	hour, minute, second := numbers[3], numbers[4], numbers[5]
	if month < 1 || month > 12 || day < 1 || day > 31 || hour > 23 || minute > 59 || second > 60 {
		return 0, nil, false
	}
	// Days since 1970 by the Gregorian calendar, years beginning in March.
	if month <= 2 {
		year--
		month += 12
	}
	era := floorDiv(year, 400)
	inEra := year - era*400
	days := era*146097 + inEra*365 + inEra/4 - inEra/100 + (153*(month-3)+2)/5 + day - 1 - 719468
	return ((days*24+hour)*60+minute)*60000 + second*1000 + numbers[6], b[len(form):], true
}

func floorDiv(a, b int64) int64 {
	if a < 0 {
		return (a - b + 1) / b
	}
	return a / b
}

// numericZone reads +05, -0330 and +05:30 as seconds east of UTC.
func numericZone(b []byte) (seconds int64, ok bool) {
	if len(b) < 3 || b[0] != '+' && b[0] != '-' {
		return 0, false
	}
	var digits []byte
	for i, c := range b[1:] {
		if c == ':' && i == 2 {
			continue
		}
		if c < '0' || c > '9' {
			return 0, false
		}
		digits = append(digits, c-'0')
	}
	if len(digits) != 2 && len(digits) != 4 {
		return 0, false
	}
	seconds = (int64(digits[0])*10 + int64(digits[1])) * 3600
	if len(digits) == 4 {
		seconds += (int64(digits[2])*10 + int64(digits[3])) * 60
	}
	if b[0] == '-' {
		seconds = -seconds
	}
	return seconds, true
}
