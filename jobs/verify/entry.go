package verify

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
)

// columns of custody_data.audit_logs in the order of the canonical entry, as COPY
// sends them. The names stand for the members of the entry as well.
var columns = [...]string{
	"log_entry_id", "occurred_at", "recorded_at", "tenant_id", "actor_id", "subject_id", "action", "resource_type", "resource_id",
	"result", "purpose", "metadata", "personal", "import_id", "db_role", "xid",
}

const (
	colEntryID = iota
	colOccurredAt
	colRecordedAt
	colTenantID
	colActorID
	colSubjectID
	colAction
	colResourceType
	colResourceID
	colResult
	colPurpose
	colMetadata
	colPersonal
	colImportID
	colDBRole
	colXID
	columnCount
)

// row is an event as COPY (FORMAT binary) sends it: the raw bytes of each column,
// nil for NULL. They belong to the reader's buffer.
type row [columnCount][]byte

// key is where a row stands among the leaves of its stretch.
type key struct {
	xid uint64
	id  uuid.UUID
}

func (k key) compare(o key) int {
	if k.xid != o.xid {
		if k.xid < o.xid {
			return -1
		}
		return 1
	}
	return bytes.Compare(k.id[:], o.id[:])
}

func (r *row) key() (k key, err error) {
	if len(r[colXID]) != 8 || len(r[colEntryID]) != 16 {
		return k, fmt.Errorf("a row without xid or log_entry_id, or of another type")
	}
	k.xid = binary.BigEndian.Uint64(r[colXID])
	copy(k.id[:], r[colEntryID])
	return k, nil
}

// position orders rows of the same key.
func (r *row) occurredAt() int64 { return micros(r[colOccurredAt]) }

// micros reads a timestamptz: microseconds since 2000-01-01 in UTC.
func micros(value []byte) int64 {
	if len(value) != 8 {
		return math.MinInt64
	}
	return int64(binary.BigEndian.Uint64(value)) //nolint:gosec // two's complement, as it was sent
}

// postgresEpoch is where Postgres counts from, in microseconds of Unix.
const postgresEpoch = 946_684_800_000_000

func micros2000(t time.Time) int64 { return t.UnixMicro() - postgresEpoch }

// AppendEntry appends the canonical entry of an event: values are those of EntryColumns
// in Postgres's binary form.
func AppendEntry(to []byte, values [][]byte) []byte { return appendEntry(to, (*row)(values)) }

// appendEntry appends the canonical entry of a row, version 1: what
// custody.audit_entry writes, built from the raw columns without asking it. A
// column that cannot be read is written so that the entry is none: the leaf of an
// event that was sealed never has it.
func appendEntry(to []byte, r *row) []byte {
	to = append(to, `{"v":1,"log_entry_id":"`...)
	to = appendUUID(to, r[colEntryID])
	to = append(to, `","occurred_at":"`...)
	to = appendTime(to, r[colOccurredAt])
	to = append(to, `","recorded_at":"`...)
	to = appendTime(to, r[colRecordedAt])
	to = append(to, `","tenant_id":`...)
	to = appendText(to, r[colTenantID])
	to = append(to, `,"actor_id":"`...)
	to = appendUUID(to, r[colActorID])
	to = append(to, '"')
	if v := r[colSubjectID]; v != nil {
		to = append(to, `,"subject_id":"`...)
		to = append(appendUUID(to, v), '"')
	}
	to = append(to, `,"action":`...)
	to = appendText(to, r[colAction])
	if v := r[colResourceType]; v != nil {
		to = append(to, `,"resource_type":`...)
		to = appendText(to, v)
	}
	if v := r[colResourceID]; v != nil {
		to = append(to, `,"resource_id":`...)
		to = appendText(to, v)
	}
	to = append(to, `,"result":`...)
	to = appendText(to, r[colResult])
	if v := r[colPurpose]; v != nil {
		to = append(to, `,"purpose":`...)
		to = appendText(to, v)
	}
	to = append(to, `,"metadata":`...)
	if v := r[colMetadata]; len(v) > 0 && v[0] == 1 { // version of jsonb's own form
		to = append(to, v[1:]...)
	}
	if v := r[colPersonal]; v != nil {
		to = append(to, `,"personal":"`...)
		to = append(base64.StdEncoding.AppendEncode(to, v), '"')
	}
	if v := r[colImportID]; v != nil {
		to = append(to, `,"import_id":"`...)
		to = append(appendUUID(to, v), '"')
	}
	to = append(to, `,"db_role":`...)
	to = appendText(to, r[colDBRole])
	to = append(to, `,"xid":"`...)
	if v := r[colXID]; len(v) == 8 {
		to = strconv.AppendUint(to, binary.BigEndian.Uint64(v), 10)
	}
	return append(to, '"', '}')
}

func appendUUID(to, v []byte) []byte {
	if len(v) != 16 {
		return to
	}
	for i, n := range [...]int{4, 2, 2, 2, 6} {
		if i > 0 {
			to = append(to, '-')
		}
		to = hex.AppendEncode(to, v[:n])
		v = v[n:]
	}
	return to
}

const microsOfDay = 86_400_000_000

// dayOf is the day in UTC, counted from 2000-01-01.
func dayOf(micros int64) int32 {
	day := micros / microsOfDay
	if micros%microsOfDay < 0 {
		day--
	}
	return int32(day) //nolint:gosec // Postgres's times are of fewer
}

// appendTime writes a time as to_char(…, 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') does.
func appendTime(to, v []byte) []byte {
	if len(v) != 8 {
		return to
	}
	t := micros(v)
	switch t {
	case math.MaxInt64:
		return append(to, "infinity"...)
	case math.MinInt64:
		return append(to, "-infinity"...)
	}
	day, rest := t/microsOfDay, t%microsOfDay
	if rest < 0 {
		day, rest = day-1, rest+microsOfDay
	}
	// Days since 2000-01-01 into the Gregorian calendar, by eras of 400 years that
	// begin in March, so that the leap day is the last.
	z := day + 730_425 // since 0000-03-01
	era := z / 146_097
	if z < 0 {
		era = (z - 146_096) / 146_097
	}
	inEra := z - era*146_097
	year := (inEra - inEra/1460 + inEra/36_524 - inEra/146_096) / 365
	dayOfYear := inEra - (365*year + year/4 - year/100)
	month := (5*dayOfYear + 2) / 153
	dayOfMonth := dayOfYear - (153*month+2)/5 + 1
	year += era * 400
	if month < 10 {
		month += 3
	} else {
		month -= 9
		year++
	}
	if year <= 0 {
		to = append(to, '-') // before Christ
		year = 1 - year
	}
	to = appendPadded(to, year, 4)
	to = append(to, '-')
	to = appendPadded(to, month, 2)
	to = append(to, '-')
	to = appendPadded(to, dayOfMonth, 2)
	to = append(to, 'T')
	to = appendPadded(to, rest/3_600_000_000, 2)
	to = append(to, ':')
	to = appendPadded(to, rest/60_000_000%60, 2)
	to = append(to, ':')
	to = appendPadded(to, rest/1_000_000%60, 2)
	to = append(to, '.')
	to = appendPadded(to, rest%1_000_000, 6)
	return append(to, 'Z')
}

func appendPadded(to []byte, n int64, width int) []byte {
	var digits [20]byte
	i := len(digits)
	for n > 0 || len(digits)-i < width {
		i--
		digits[i] = byte('0' + n%10)
		n /= 10
	}
	return append(to, digits[i:]...)
}

const hexDigits = "0123456789abcdef"

// appendText writes text as to_json does: quoted, with the escapes of JSON and
// nothing else escaped. NULL is written as such.
func appendText(to, v []byte) []byte {
	if v == nil {
		return append(to, "null"...)
	}
	to = append(to, '"')
	begun := 0
	for i, c := range v {
		if c >= 0x20 && c != '"' && c != '\\' {
			continue
		}
		to = append(to, v[begun:i]...)
		begun = i + 1
		switch c {
		case '"', '\\':
			to = append(to, '\\', c)
		case '\b':
			to = append(to, '\\', 'b')
		case '\f':
			to = append(to, '\\', 'f')
		case '\n':
			to = append(to, '\\', 'n')
		case '\r':
			to = append(to, '\\', 'r')
		case '\t':
			to = append(to, '\\', 't')
		default:
			to = append(to, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		}
	}
	to = append(to, v[begun:]...)
	return append(to, '"')
}

// Hash is a node of the tree.
type Hash = [sha256.Size]byte

// leafHash is that of an entry with a zero byte before it: buffer is 0x00 ‖ entry.
func leafHash(entry []byte) Hash {
	h := sha256.New()
	h.Write([]byte{0})
	h.Write(entry)
	var sum Hash
	h.Sum(sum[:0])
	return sum
}

// members of a canonical entry, raw, by name.
func members(entry []byte) map[string]json.RawMessage {
	var m map[string]json.RawMessage
	if json.Unmarshal(entry, &m) != nil {
		return nil
	}
	return m
}

// differingFields names the columns in which two entries differ.
func differingFields(a, b []byte) (fields []string) {
	ma, mb := members(a), members(b)
	for _, name := range columns {
		if !bytes.Equal(ma[name], mb[name]) {
			fields = append(fields, name)
		}
	}
	return fields
}

var columnList = strings.Join(columns[:], ", ")

// EntryColumns are the columns of custody_data.audit_logs that an entry is made of, in
// the order of its members: log_entry_id and occurred_at are the first, xid is the last.
var EntryColumns = columns[:]
