package serverlog

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"time"
	"unicode/utf8"
)

// Format of a log file.
type Format int

// The formats that can be read without guessing. The server's own text form (stderr)
// cannot: a line break in a statement makes a line there that anybody could have written.
const (
	JSON Format = iota // log_destination = jsonlog, Postgres 15 and later
	CSV                // log_destination = csvlog, the 26 columns of Postgres 14 to 18
)

// Reason why a part of a file gave no record.
type Reason int

// The reasons.
const (
	// Broken: not what the server writes.
	Broken Reason = iota
	// TooLong: longer than Options.MaxRecord.
	TooLong
	// Cut: the file ends within the record and will not grow.
	Cut
)

func (r Reason) String() string {
	switch r {
	case Broken:
		return "broken"
	case TooLong:
		return "too long"
	case Cut:
		return "cut"
	}
	return fmt.Sprintf("reason %d", int(r))
}

// Unreadable is a part of a file that gave no record.
type Unreadable struct {
	Reason     Reason
	Start, End int64
}

// Counts of what a reader met.
type Counts struct {
	Records     int64 // that were returned
	Bytes       int64 // of records and of what gave none
	Broken      int64
	TooLong     int64
	Cut         int64
	BadEncoding int64 // records returned that are not UTF-8
	UnknownZone int64 // records returned without Time
}

// Options of a Reader.
type Options struct {
	Format Format
	// Offset in the file of the first byte that is read. A record has to begin
	// there, else what is left of it is reported as broken.
	Offset int64
	// MaxRecord is the size from which a record is skipped, 4 MiB if 0. The reader
	// holds at most a few times as much.
	MaxRecord int
	// Complete says that the file will not grow: a record without its end is
	// reported as cut. Otherwise it is left for the next reader, see Offset.
	Complete bool
	// Location is log_timezone, UTC if nil. Offsets like +05 need none.
	Location *time.Location
	// Unreadable is called for each part that gave no record, before the next
	// record is returned. May be nil.
	Unreadable func(Unreadable)
}

const (
	defaultMaxRecord = 4 << 20
	firstBuffer      = 64 << 10
)

// Reader reads the records of one file in order.
type Reader struct {
	src  io.Reader
	o    Options
	zone zone

	buf        []byte
	begin, end int   // of what is unread in buf
	base       int64 // offset in the file of buf[0]
	looked     int   // bytes after begin in which the end of the record is not
	scratch    []byte
	counts     Counts

	skip      skipping
	skipStart int64
}

// skipping tells how the reader gets over what it does not hold.
type skipping struct {
	active bool
	reason Reason
	quotes csvState // within which the record ends, lost if at the next line feed
}

// NewReader reads src, which may stand anywhere in the file: see Options.Offset.
func NewReader(src io.Reader, o Options) *Reader {
	o.MaxRecord = cmp.Or(max(o.MaxRecord, 0), defaultMaxRecord)
	return &Reader{src: src, o: o, base: o.Offset, zone: newZone(o.Location)}
}

// Counts of what was met so far.
func (r *Reader) Counts() Counts { return r.counts }

// Offset is where to go on: behind all that was returned or reported.
func (r *Reader) Offset() int64 {
	if r.skip.active {
		return r.skipStart
	}
	return r.base + int64(r.begin)
}

// Next reads the next record into rec. At the end of what can be read the error
// is io.EOF; it may be called again when the source has more. Nothing that stands
// in the file is an error: see Options.Unreadable.
func (r *Reader) Next(rec *Record) error {
	for {
		found, err := r.step(rec)
		if found || err != nil {
			return err
		}
	}
}

// step finds a record, or gets past something that is none, or reads on.
func (r *Reader) step(rec *Record) (found bool, err error) {
	if r.skip.active {
		return false, r.skipOn()
	}
	unread := r.buf[r.begin:r.end]
	// Nothing ends before a line feed.
	if bytes.IndexByte(unread[r.looked:], '\n') < 0 && len(unread) <= r.o.MaxRecord {
		r.looked = len(unread)
		return r.more(rec)
	}
	if r.o.Format == CSV {
		return r.stepCSV(rec, unread)
	}
	return r.stepJSON(rec, unread), nil
}

func (r *Reader) stepJSON(rec *Record, unread []byte) (found bool) {
	end := bytes.IndexByte(unread[:min(len(unread), r.o.MaxRecord+1)], '\n')
	if end < 0 {
		r.skipFrom(TooLong, csvLost)
		return false
	}
	return r.takeJSON(rec, unread[:end], end+1, Broken)
}

// takeJSON reads the record in a line of which size bytes are to be used up, or
// gives the reason why it holds none.
func (r *Reader) takeJSON(rec *Record, line []byte, size int, reason Reason) bool {
	start := r.base + int64(r.begin)
	if r.parseJSON(rec, line) {
		return r.took(rec, start, size)
	}
	// A line that was torn by a crash has the next one at its end. What opens a
	// record cannot stand within a text: quotes are escaped there.
	if at := bytes.LastIndex(line, []byte(`{"timestamp":"`)); at > 0 && r.parseJSON(rec, line[at:]) {
		r.report(Broken, start, start+int64(at))
		r.begin += at
		return r.took(rec, start+int64(at), size-at)
	}
	r.begin += size
	r.looked = 0
	r.report(reason, start, start+int64(size))
	return false
}

func (r *Reader) stepCSV(rec *Record, unread []byte) (bool, error) {
	text := unread[:min(len(unread), r.o.MaxRecord+1)]
	size, state := r.parseCSV(rec, text)
	switch state {
	case csvWhole:
		return r.took(rec, r.base+int64(r.begin), size), nil
	case csvOpen:
		if len(text) > r.o.MaxRecord {
			r.skipFrom(TooLong, csvFieldStart)
			return false, nil
		}
		r.looked = len(unread)
		return r.more(rec)
	}
	// A broken record ends with its first line, or where another begins in it,
	// whose predecessor was torn: see the package's comment on why it is safe to
	// begin anew within what may be a quoted text.
	if line := bytes.IndexByte(text, '\n'); line >= 0 {
		for i := 1; i < line; i++ {
			if _, _, ok := civil(text[i:line]); ok {
				start := r.base + int64(r.begin)
				r.report(Broken, start, start+int64(i))
				r.begin += i
				r.looked = 0
				return false, nil
			}
		}
	}
	r.skipFrom(Broken, csvLost)
	return false, nil
}

func (r *Reader) took(rec *Record, start int64, size int) bool {
	rec.Start, rec.End = start, start+int64(size)
	rec.BadEncoding = !utf8.Valid(r.buf[r.begin : r.begin+size])
	if rec.BadEncoding {
		r.counts.BadEncoding++
	}
	if rec.Time.IsZero() {
		r.counts.UnknownZone++
	}
	r.counts.Records++
	r.counts.Bytes += int64(size)
	r.begin += size
	r.looked = 0
	return true
}

func (r *Reader) report(reason Reason, start, end int64) {
	switch reason {
	case Broken:
		r.counts.Broken++
	case TooLong:
		r.counts.TooLong++
	case Cut:
		r.counts.Cut++
	}
	r.counts.Bytes += end - start
	if r.o.Unreadable != nil {
		r.o.Unreadable(Unreadable{Reason: reason, Start: start, End: end})
	}
}

// skipFrom gives up what begins at r.begin.
func (r *Reader) skipFrom(reason Reason, quotes csvState) {
	r.skip = skipping{active: true, reason: reason, quotes: quotes}
	r.skipStart = r.base + int64(r.begin)
	r.looked = 0
}

// skipOn goes to the end of what is given up, in constant memory.
func (r *Reader) skipOn() error {
	used, ended := r.skip.quotes.pass(r.buf[r.begin:r.end])
	r.begin += used
	if ended {
		r.skip.active = false
		r.report(r.skip.reason, r.skipStart, r.base+int64(r.begin))
		return nil
	}
	err := r.fill()
	if errors.Is(err, io.EOF) && r.o.Complete {
		r.skip.active = false
		if r.skip.reason == Broken {
			r.skip.reason = Cut
		}
		r.report(r.skip.reason, r.skipStart, r.base+int64(r.begin))
		return nil
	}
	return err
}

// more reads on, or deals with a record that has no end.
func (r *Reader) more(rec *Record) (found bool, err error) {
	err = r.fill()
	if !errors.Is(err, io.EOF) || !r.o.Complete || r.begin == r.end {
		return false, err
	}
	unread := r.buf[r.begin:r.end]
	start := r.base + int64(r.begin)
	if r.o.Format == JSON {
		// It may be whole but for its line feed.
		return r.takeJSON(rec, unread, len(unread), Cut), nil
	}
	// A quoted text without an end has swallowed the lines that follow: only the
	// first is lost.
	size := len(unread)
	if at := bytes.IndexByte(unread, '\n'); at >= 0 {
		size = at + 1
	}
	r.begin += size
	r.looked = 0
	r.report(Cut, start, start+int64(size))
	return false, nil
}

// fill reads at least one byte behind what is unread.
func (r *Reader) fill() error {
	if r.begin > 0 && (r.begin == r.end || r.end == len(r.buf)) {
		r.base += int64(r.begin)
		r.end = copy(r.buf, r.buf[r.begin:r.end])
		r.begin = 0
	}
	if r.end == len(r.buf) {
		bigger := make([]byte, max(firstBuffer, 2*len(r.buf)))
		copy(bigger, r.buf[:r.end])
		r.buf = bigger
	}
	for range 100 {
		n, err := r.src.Read(r.buf[r.end:])
		if n < 0 || n > len(r.buf)-r.end {
			return errors.New("read log: the source counts wrongly")
		}
		r.end += n
		if n > 0 {
			return nil // an error comes again
		}
		if err == io.EOF {
			return io.EOF
		}
		if err != nil {
			return fmt.Errorf("read log: %w", err)
		}
	}
	return fmt.Errorf("read log: %w", io.ErrNoProgress)
}
