package importer

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync"
	"sync/atomic"
)

// A file of any length is read in blocks of whole lines, of which a fixed number is in memory.
const (
	blockSize   = 512 << 10
	blocksAhead = 8
	// maxLine is the longest line that is parsed. A longer one is a bad line like any other.
	maxLine = 16 << 20
)

// A badLine is a line that makes no row.
type badLine struct {
	problem
	text []byte // the line as it stands in the file; only its beginning when it is longer than maxLine
}

// A block is a run of whole lines on its way from the file through a parser to COPY.
type block struct {
	lines []byte
	size  int64 // in the file
	first int64 // number of the first line

	rows []byte // what COPY gets
	read int64  // lines that are not blank
	bad  []badLine
	done chan struct{} // closed when the parser is finished with it
}

// A stream is the reader that COPY takes its rows from. Behind it one goroutine reads lines and several parse
// them; the rows come out in the order of the lines. The first bad line ends it, unless rejects are kept.
type stream struct {
	ctx      context.Context
	cancel   context.CancelFunc
	source   *bufio.Reader
	digest   hash.Hash
	reject   func(badLine) error // takes bad lines in the order of the file; nil when the first is fatal
	progress func(bytes int64)   // how much of the file COPY has taken

	// Each channel has room for every block, so that sending never blocks.
	free    chan *block
	work    chan *block
	ordered chan *block
	wg      sync.WaitGroup
	readErr error // why reading ended; set before ordered is closed

	current []byte
	block   *block
	begun   bool
	ended   bool

	read, rejected, bytes int64
	failure               atomic.Pointer[error]
}

// newStream starts reading and parsing. The caller must call close.
func newStream(ctx context.Context, source io.Reader, parsers []*rowParser, reject func(badLine) error, progress func(bytes int64)) *stream {
	s := &stream{
		digest: sha256.New(), reject: reject, progress: progress,
		free: make(chan *block, blocksAhead), work: make(chan *block, blocksAhead), ordered: make(chan *block, blocksAhead),
	}
	s.ctx, s.cancel = context.WithCancel(ctx)
	s.source = bufio.NewReaderSize(io.TeeReader(cancelledReader{s.ctx, source}, s.digest), blockSize)
	for range blocksAhead {
		s.free <- &block{}
	}
	s.wg.Go(s.split)
	for _, p := range parsers {
		s.wg.Go(func() {
			for b := range s.work {
				b.parse(p, reject != nil)
				close(b.done)
			}
		})
	}
	return s
}

// A cancelledReader ends with its context, so that a line without end does not keep close waiting.
type cancelledReader struct {
	ctx    context.Context
	source io.Reader
}

func (r cancelledReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.source.Read(p)
}

// close ends the goroutines. The counts, the digest and the parsers' vocabularies are whole only when Read has
// returned io.EOF before.
func (s *stream) close() {
	s.cancel()
	s.wg.Wait()
}

// sum is the SHA-256 of the file, in hexadecimal.
func (s *stream) sum() string { return hex.EncodeToString(s.digest.Sum(nil)) }

// failed is why Read ended before the file did.
func (s *stream) failed() error {
	if err := s.failure.Load(); err != nil {
		return *err
	}
	return nil
}

// split cuts the file into blocks of whole lines.
func (s *stream) split() {
	defer close(s.ordered)
	defer close(s.work)
	line := int64(1)
	for {
		var b *block
		select {
		case b = <-s.free:
		case <-s.ctx.Done():
			s.readErr = s.ctx.Err()
			return
		}
		if cap(b.lines) > 4*blockSize { // a very long line went through it
			b.lines, b.rows = nil, nil
		}
		*b = block{lines: b.lines[:0], rows: b.rows[:0], first: line, done: make(chan struct{})}
		lines, err := b.fill(s.source)
		if err != nil && err != io.EOF {
			s.readErr = err
			return
		}
		line += lines
		if b.size > 0 {
			s.ordered <- b
			s.work <- b
		}
		if err == io.EOF {
			return
		}
	}
}

// fill reads whole lines until there are enough of them, and says how many.
func (b *block) fill(source *bufio.Reader) (lines int64, err error) {
	for len(b.lines) < blockSize {
		if err := b.fillLine(source); err != nil {
			return lines, err
		}
		lines++
	}
	return lines, nil
}

// fillLine appends a line, with its end. Of one longer than maxLine it keeps one byte more than that, by which the
// parser knows. The last line of a file may lack its end: it comes with io.EOF.
func (b *block) fillLine(source *bufio.Reader) error {
	most := len(b.lines) + maxLine + 1
	for {
		part, err := source.ReadSlice('\n')
		b.size += int64(len(part))
		if len(b.lines)+len(part) <= most {
			b.lines = append(b.lines, part...)
		} else {
			b.lines = append(b.lines, part[:max(most-len(b.lines), 0)]...)
			if err == nil {
				b.lines = append(b.lines, '\n')
			}
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return err
		}
	}
}

// parse turns the block's lines into rows. Unless all bad lines are wanted it ends with the first.
func (b *block) parse(p *rowParser, all bool) {
	number := b.first
	for rest := b.lines; len(rest) > 0; number++ {
		line, after, _ := bytes.Cut(rest, []byte{'\n'})
		rest = after
		text := line
		if number == 1 {
			text = bytes.TrimPrefix(text, []byte("\ufeff"))
		}
		if skipSpace(text, 0) == len(text) {
			continue
		}
		b.read++
		var prob *problem
		if len(text) > maxLine {
			prob = problemf("", "line of more than %d MiB", maxLine>>20)
			prob.line = number
		} else {
			b.rows, prob = p.appendRow(b.rows, text, number)
		}
		if prob != nil {
			b.bad = append(b.bad, badLine{*prob, line})
			if !all {
				return
			}
		}
	}
}

// errBadLine ends a stream that keeps no rejects.
type errBadLine struct{ badLine }

// Error goes to the server with the COPY that it ends, and from there to its log.
func (e *errBadLine) Error() string { return fmt.Sprintf("line %d: %s", e.line, e.code) }

// Read gives COPY its header, the rows, and its trailer.
func (s *stream) Read(p []byte) (int, error) {
	for len(s.current) == 0 {
		switch {
		case s.ended:
			return 0, io.EOF
		case !s.begun:
			s.begun = true
			s.current = []byte(copyHeader)
			continue
		}
		if err := s.next(); err != nil {
			s.failure.Store(&err)
			return 0, err
		}
	}
	n := copy(p, s.current)
	s.current = s.current[n:]
	return n, nil
}

// next goes on to the rows of the next block.
func (s *stream) next() error {
	if s.block != nil {
		s.bytes += s.block.size
		if s.progress != nil {
			s.progress(s.bytes)
		}
		s.free <- s.block
		s.block = nil
	}
	b, ok := <-s.ordered
	if !ok {
		if s.readErr != nil {
			return s.readErr
		}
		s.current, s.ended = []byte(copyTrailer), true
		return nil
	}
	<-b.done
	if len(b.bad) > 0 && s.reject == nil {
		return &errBadLine{b.bad[0]}
	}
	for _, bad := range b.bad {
		if err := s.reject(bad); err != nil {
			return err
		}
	}
	s.read += b.read
	s.rejected += int64(len(b.bad))
	s.current, s.block = b.rows, b
	return nil
}
