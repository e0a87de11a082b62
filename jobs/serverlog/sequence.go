package serverlog

import (
	"bytes"
	"cmp"
	"container/list"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"
)

// FindingKind says what is wrong with the order of records or with a file.
type FindingKind int

// The kinds of findings.
const (
	// Gap: lines From to To of a session are missing.
	Gap FindingKind = iota
	// Repeat: line From of a session came again.
	Repeat
	// Reordered: line From of a session, which was missing, came behind a later one.
	Reordered
	// ClockBack: the time went back by Back.
	ClockBack
	// Truncated: the file is shorter than what was read of it.
	Truncated
	// Replaced: the file is not the one that was read.
	Replaced
)

func (k FindingKind) String() string {
	return [...]string{"gap", "repeat", "reordered", "clock set back", "truncated", "replaced"}[k]
}

// Finding is one thing that is wrong.
type Finding struct {
	Kind      FindingKind
	SessionID string // of Gap, Repeat, Reordered
	From, To  int64  // lines of Gap, Repeat, Reordered; bytes expected and found of Truncated
	Offset    int64  // of the record that showed it
	Time      time.Time
	Back      time.Duration // of ClockBack
}

func (f Finding) String() string {
	switch f.Kind {
	case Gap:
		return fmt.Sprintf("session %s: lines %d to %d are missing before offset %d", f.SessionID, f.From, f.To, f.Offset)
	case Repeat:
		return fmt.Sprintf("session %s: line %d again at offset %d", f.SessionID, f.From, f.Offset)
	case Reordered:
		return fmt.Sprintf("session %s: line %d is late, at offset %d", f.SessionID, f.From, f.Offset)
	case ClockBack:
		return fmt.Sprintf("clock set back by %s at offset %d", f.Back, f.Offset)
	case Truncated:
		return fmt.Sprintf("file truncated: %d bytes where %d had been read", f.To, f.From)
	}
	return "file replaced by another"
}

// SequenceOptions of a Sequence.
type SequenceOptions struct {
	// Sessions that are remembered, 65,536 if 0. The one that was silent longest is
	// forgotten first; if it speaks again, lines missing in between are not found.
	Sessions int
	// Tolerance of the time between lines of different processes, 2 s if 0.
	Tolerance time.Duration
	// Since is when the log began to be read, zero if with the record that comes
	// first. Sessions that started before may begin with any line.
	Since time.Time
	// Latest is the latest time that was seen, to go on from.
	Latest time.Time
}

// Sequence checks that nothing is missing in a log. Line numbers count for each
// process and format: a Sequence is for one format of one server.
type Sequence struct {
	o        SequenceOptions
	sessions map[string]*list.Element
	order    *list.List // of *SessionPlace, the one that spoke last first
	since    time.Time
	latest   time.Time
}

// SessionPlace is how far a session has come: what to keep in order to go on.
type SessionPlace struct {
	SessionID string
	Last      int64
	Missing   [][2]int64 // up to Last, of the latest missingKept gaps
}

// missingKept bounds the gaps of one session that a late line is looked up in.
const missingKept = 64

// NewSequence returns a Sequence that goes on from places, oldest first.
func NewSequence(o SequenceOptions, places ...SessionPlace) *Sequence {
	o.Sessions = cmp.Or(max(o.Sessions, 0), 65536)
	o.Tolerance = cmp.Or(max(o.Tolerance, 0), 2*time.Second)
	s := &Sequence{o: o, sessions: map[string]*list.Element{}, order: list.New(), since: o.Since, latest: o.Latest}
	for _, place := range places {
		place.Missing = slices.Clone(place.Missing)
		s.remember(&place)
	}
	return s
}

// Places returns what to go on from, oldest first.
func (s *Sequence) Places() []SessionPlace {
	places := make([]SessionPlace, 0, s.order.Len())
	for e := s.order.Back(); e != nil; e = e.Prev() {
		place := *e.Value.(*SessionPlace)
		place.Missing = slices.Clone(place.Missing)
		places = append(places, place)
	}
	return places
}

// Span is from when to when the log was read: Since and Latest of the Sequence that
// goes on.
func (s *Sequence) Span() (since, latest time.Time) { return s.since, s.latest }

// Knows tells whether a session is remembered.
func (s *Sequence) Knows(sessionID string) bool { return s.sessions[sessionID] != nil }

// Forget drops a session that has ended.
func (s *Sequence) Forget(sessionID []byte) {
	if e := s.sessions[string(sessionID)]; e != nil {
		s.order.Remove(e)
		delete(s.sessions, string(sessionID))
	}
}

func (s *Sequence) remember(place *SessionPlace) {
	s.sessions[place.SessionID] = s.order.PushFront(place)
	if s.order.Len() > s.o.Sessions {
		oldest := s.order.Remove(s.order.Back()).(*SessionPlace)
		delete(s.sessions, oldest.SessionID)
	}
}

// Check appends what a record shows to be wrong.
func (s *Sequence) Check(found []Finding, r *Record) []Finding {
	if !r.Time.IsZero() {
		if s.since.IsZero() {
			s.since = r.Time
		}
		if back := s.latest.Sub(r.Time); back > s.o.Tolerance {
			found = append(found, Finding{Kind: ClockBack, Offset: r.Start, Time: r.Time, Back: back})
			s.latest = r.Time
		} else if back < 0 {
			s.latest = r.Time
		}
	}
	e := s.sessions[string(r.SessionID)]
	if e == nil {
		place := &SessionPlace{SessionID: string(r.SessionID), Last: r.LineNum}
		s.remember(place)
		if r.LineNum > 1 && s.beganHere(r) {
			found = append(found, place.gap(1, r.LineNum-1, r))
		}
		return found
	}
	s.order.MoveToFront(e)
	place := e.Value.(*SessionPlace)
	switch {
	case r.LineNum == place.Last+1:
		place.Last++
	case r.LineNum > place.Last:
		found = append(found, place.gap(place.Last+1, r.LineNum-1, r))
		place.Last = r.LineNum
	case place.late(r.LineNum):
		found = append(found, Finding{Kind: Reordered, SessionID: place.SessionID, From: r.LineNum, To: r.LineNum, Offset: r.Start, Time: r.Time})
	default:
		found = append(found, Finding{Kind: Repeat, SessionID: place.SessionID, From: r.LineNum, To: r.LineNum, Offset: r.Start, Time: r.Time})
	}
	return found
}

// beganHere tells whether a session's first line must be in what was read.
func (s *Sequence) beganHere(r *Record) bool {
	// To the second, in the log's zone like the timestamp.
	start := r.SessionStart
	at := bytes.LastIndexByte(start, ' ')
	if at < 0 || r.Time.IsZero() || s.since.IsZero() {
		return false
	}
	began, _, ok1 := civil(fmt.Appendf(nil, "%s.000%s", start[:at], start[at:]))
	now, _, ok2 := civil(r.Timestamp)
	if !ok1 || !ok2 {
		return false
	}
	// What the two differ by is right in any zone, save across a change of its offset.
	age := time.Duration(now-began) * time.Millisecond
	return r.Time.Add(-age).After(s.since)
}

func (p *SessionPlace) gap(from, to int64, r *Record) Finding {
	if len(p.Missing) == missingKept {
		p.Missing = append(p.Missing[:0], p.Missing[1:]...)
	}
	p.Missing = append(p.Missing, [2]int64{from, to})
	return Finding{Kind: Gap, SessionID: p.SessionID, From: from, To: to, Offset: r.Start, Time: r.Time}
}

// late takes a line out of those that are missing.
func (p *SessionPlace) late(line int64) bool {
	for i, m := range p.Missing {
		if line < m[0] || line > m[1] {
			continue
		}
		rest := p.Missing[:i:i]
		if m[0] < line {
			rest = append(rest, [2]int64{m[0], line - 1})
		}
		if line < m[1] {
			rest = append(rest, [2]int64{line + 1, m[1]})
		}
		p.Missing = append(rest, p.Missing[i+1:]...)
		return true
	}
	return false
}

// FilePlace says which file was read, how far, by what stands in it: names and
// inodes are used again, and are not to be had over a connection.
type FilePlace struct {
	Offset int64
	Head   [sha256.Size]byte // of the first bytes, up to placeBytes and Offset
	Tail   [sha256.Size]byte // of the last bytes before Offset, as many
}

const placeBytes = 4096

// MarkFile returns the place at an offset of a file.
func MarkFile(file io.ReaderAt, offset int64) (FilePlace, error) {
	place := FilePlace{Offset: offset}
	var err error
	size := min(offset, placeBytes)
	if place.Head, err = digest(file, 0, size); err != nil {
		return FilePlace{}, fmt.Errorf("mark log file: %w", err)
	}
	if place.Tail, err = digest(file, offset-size, size); err != nil {
		return FilePlace{}, fmt.Errorf("mark log file: %w", err)
	}
	return place, nil
}

// Check tells whether a file of this size is the one that was marked, and whole
// up to there.
func (p FilePlace) Check(file io.ReaderAt, size int64) (found []Finding, err error) {
	if size < p.Offset {
		return []Finding{{Kind: Truncated, From: p.Offset, To: size}}, nil
	}
	now, err := MarkFile(file, p.Offset)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return []Finding{{Kind: Truncated, From: p.Offset, To: size}}, nil
	}
	if err != nil {
		return nil, err
	}
	if now != p {
		return []Finding{{Kind: Replaced}}, nil
	}
	return nil, nil
}

func digest(file io.ReaderAt, from, size int64) (sum [sha256.Size]byte, err error) {
	b := make([]byte, size)
	if n, err := file.ReadAt(b, from); int64(n) < size {
		return sum, cmp.Or(err, io.ErrUnexpectedEOF)
	}
	return sha256.Sum256(b), nil
}
