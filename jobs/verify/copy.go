package verify

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// copyReader reads what COPY … TO STDOUT (FORMAT binary) sends and hands each
// tuple's fields to each. It is the io.Writer that pgx copies to, keeps no more
// than one tuple, and fails unless the stream was whole.
type copyReader struct {
	each    func(fields [][]byte) error
	columns int

	rest   []byte // begun, not whole
	begun  bool
	ended  bool
	fields [][]byte
}

var copySignature = []byte("PGCOPY\n\xff\r\n\x00")

var errCopyForm = errors.New("the server's COPY stream is not of the binary form")

func (c *copyReader) Write(p []byte) (int, error) {
	data := p
	if len(c.rest) > 0 {
		c.rest = append(c.rest, p...)
		data = c.rest
	}
	used, err := c.consume(data)
	if err != nil {
		return 0, err
	}
	if len(c.rest) > 0 {
		c.rest = c.rest[:copy(c.rest, data[used:])]
	} else {
		c.rest = append(c.rest[:0], data[used:]...)
	}
	return len(p), nil
}

// consume reads the whole tuples of data and returns how many bytes they were.
func (c *copyReader) consume(data []byte) (used int, err error) {
	if !c.begun {
		if len(data) < 19 {
			return 0, nil
		}
		extension := int(binary.BigEndian.Uint32(data[15:]))
		if !bytes.HasPrefix(data, copySignature) || extension != 0 {
			return 0, errCopyForm
		}
		used, c.begun = 19, true
	}
	for {
		tuple := data[used:]
		if len(tuple) < 2 || c.ended {
			if c.ended && len(tuple) > 0 {
				return used, errCopyForm
			}
			return used, nil
		}
		n := int(int16(binary.BigEndian.Uint16(tuple))) //nolint:gosec // two's complement, as it was sent
		if n == -1 {
			c.ended = true
			used += 2
			continue
		}
		if n != c.columns {
			return used, fmt.Errorf("%w: %d columns where %d were asked for", errCopyForm, n, c.columns)
		}
		c.fields = c.fields[:0]
		at := 2
		for range n {
			if len(tuple) < at+4 {
				return used, nil
			}
			size := int(int32(binary.BigEndian.Uint32(tuple[at:]))) //nolint:gosec // as above
			at += 4
			if size < 0 {
				c.fields = append(c.fields, nil)
				continue
			}
			if len(tuple) < at+size {
				return used, nil
			}
			c.fields = append(c.fields, tuple[at:at+size:at+size])
			at += size
		}
		used += at
		if err := c.each(c.fields); err != nil {
			return used, err
		}
	}
}

// close says whether the stream had its end.
func (c *copyReader) close() error {
	if !c.ended || len(c.rest) > 0 {
		return fmt.Errorf("%w: it has no end", errCopyForm)
	}
	return nil
}
