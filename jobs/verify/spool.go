package verify

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"

	"pgcustody/jobs/segment"
)

// spool is a temporary file of records of one size. It has no name once it is
// open, so nothing is left of it whatever ends the process: 60 bytes an event
// wait on disk rather than in memory.
type spool struct {
	file   *os.File
	width  int
	count  int64
	writer *bufio.Writer
}

func newSpool(width int) (*spool, error) {
	file, err := os.CreateTemp("", "pgcustody-verify-")
	if err != nil {
		return nil, fmt.Errorf("make a temporary file: %w: set TMPDIR to a folder with room for 60 bytes an event", err)
	}
	if err := os.Remove(file.Name()); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return &spool{file: file, width: width, writer: bufio.NewWriterSize(file, 256<<10)}, nil
}

// append adds whole records.
func (s *spool) append(records []byte) error {
	s.count += int64(len(records) / s.width)
	if _, err := s.writer.Write(records); err != nil {
		return fmt.Errorf("write a temporary file: %w: set TMPDIR to a folder with room for 60 bytes an event", err)
	}
	return nil
}

// done must come between the last append and the first read.
func (s *spool) done() error { return s.writer.Flush() }

// read fills records from the one at index on and returns how many there were.
func (s *spool) read(records []byte, index int64) (int64, error) {
	n, err := s.file.ReadAt(records, index*int64(s.width))
	if err == io.EOF {
		err = nil
	}
	return int64(n / s.width), err
}

// each calls back with runs of records from the one at index on.
func (s *spool) each(index, until int64, work func(index int64, records []byte) error) error {
	buffer := make([]byte, 4096*s.width)
	for index < until {
		n, err := s.read(buffer[:min(4096, until-index)*int64(s.width)], index)
		if err != nil {
			return err
		}
		if n == 0 {
			return io.ErrUnexpectedEOF
		}
		if err := work(index, buffer[:n*int64(s.width)]); err != nil {
			return err
		}
		index += n
	}
	return nil
}

func (s *spool) close() {
	if s != nil {
		_ = s.file.Close()
	}
}

// bitmap has a bit for each leaf.
type bitmap []uint64

func newBitmap(n int64) bitmap { return make(bitmap, (n+63)/64) }

func (b bitmap) set(i int64)      { b[i>>6] |= 1 << (i & 63) }
func (b bitmap) has(i int64) bool { return b[i>>6]&(1<<(i&63)) != 0 }

// spans are runs of leaves, [from, to) each.
type spans [][2]int64

func (s *spans) add(from, to int64) {
	if n := len(*s); n > 0 && (*s)[n-1][1] == from {
		(*s)[n-1][1] = to
	} else if to > from {
		*s = append(*s, [2]int64{from, to})
	}
}

func (s spans) has(i int64) bool {
	for _, span := range s {
		if i >= span[0] && i < span[1] {
			return true
		}
	}
	return false
}

// in tells whether one of the runs has a leaf of the spans.
func (s spans) in(runs segment.Runs) bool {
	for _, span := range s {
		for _, run := range runs {
			if run.First < span[1] && run.End() > span[0] {
				return true
			}
		}
	}
	return false
}

func (s spans) below(i int64) bool { return len(s) > 0 && s[0][0] < i }
