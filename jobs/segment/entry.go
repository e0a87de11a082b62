package segment

import (
	"bytes"
	"strconv"
	"time"

	"github.com/google/uuid"
)

// Entry is what a line says about its place: who wrote it for whom, and when. The
// byte slices are of the line. Whatever else stands in it, JSON readers tell.
type Entry struct {
	Version        int
	ID             uuid.UUID
	OccurredAt     time.Time
	Tenant         []byte
	Actor, Subject []byte // as text; Subject may be nil
	Action         []byte // as JSON text, without its quotes
	XID            uint64
}

// ParseEntry reads a canonical entry's members at their fixed places, which is
// faster than any JSON reader. It does not look at the rest.
func ParseEntry(line []byte) (e Entry, ok bool) {
	rest := line
	member := func(name, end string) []byte {
		var value []byte
		after, found := bytes.CutPrefix(rest, []byte(name))
		if value, rest, ok = bytes.Cut(after, []byte(end)); !ok || !found {
			ok, rest = false, nil
		}
		return value
	}
	// quoted is a member whose value holds no quotes.
	quoted := func(name string) []byte {
		after, found := bytes.CutPrefix(rest, []byte(name))
		end := bytes.IndexByte(after, '"')
		if ok = found && end >= 0 && end+1 < len(after) && after[end+1] == ','; !ok {
			rest = nil
			return nil
		}
		rest = after[end+2:]
		return after[:end]
	}
	var err error
	if e.Version, err = strconv.Atoi(string(member(`{"v":`, `,`))); !ok || err != nil {
		return e, false
	}
	if e.ID, err = uuid.ParseBytes(quoted(`"log_entry_id":"`)); !ok || err != nil {
		return e, false
	}
	if e.OccurredAt, ok = parseTime(quoted(`"occurred_at":"`)); !ok {
		return e, false
	}
	if quoted(`"recorded_at":"`); !ok {
		return e, false
	}
	// Names of tenants need no escapes.
	if e.Tenant = quoted(`"tenant_id":"`); !ok || len(e.Tenant) == 0 || bytes.IndexByte(e.Tenant, '\\') >= 0 {
		return e, false
	}
	if e.Actor = quoted(`"actor_id":"`); !ok {
		return e, false
	}
	if bytes.HasPrefix(rest, []byte(`"subject_id":"`)) {
		e.Subject = quoted(`"subject_id":"`)
	}
	if e.Action = member(`"action":"`, `",`); !ok {
		return e, false
	}
	digits, found := bytes.CutPrefix(rest[bytes.LastIndexByte(rest, ',')+1:], []byte(`"xid":"`))
	digits, ended := bytes.CutSuffix(digits, []byte(`"}`))
	e.XID, err = strconv.ParseUint(string(digits), 10, 64)
	return e, found && ended && err == nil
}

// parseTime reads a time as canonical entries write it, 2006-01-02T15:04:05.000000Z.
// time.Parse takes several times as long.
func parseTime(text []byte) (t time.Time, ok bool) {
	const form = "0000-00-00T00:00:00.000000Z"
	if len(text) != len(form) {
		return t, false
	}
	for i, c := range []byte(form) {
		if c == '0' && (text[i] < '0' || text[i] > '9') || c != '0' && text[i] != c {
			return t, false
		}
	}
	number := func(from, to int) (n int) {
		for _, c := range text[from:to] {
			n = 10*n + int(c-'0')
		}
		return n
	}
	year, month, day := number(0, 4), time.Month(number(5, 7)), number(8, 10)
	hour, minute, second := number(11, 13), number(14, 16), number(17, 19)
	t = time.Date(year, month, day, hour, minute, second, number(20, 26)*1000, time.UTC)
	// What is out of range has become another time.
	return t, t.Month() == month && t.Day() == day && hour < 24 && minute < 60 && second < 60
}
