package jobs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"time"
)

// copyDecoder takes what COPY (select text, timestamptz) TO STDOUT (FORMAT
// binary) sends and calls row with each. It holds what of a row has not arrived.
type copyDecoder struct {
	row     func(text []byte, at time.Time) error
	pending []byte
	header  bool // has been read
	trailer bool // has been read
}

var errCopyForm = errors.New("COPY sent something else than rows of text and time")

var copySignature = []byte("PGCOPY\n\xff\r\n\x00")

// Write decodes the whole rows in what arrived so far.
func (d *copyDecoder) Write(p []byte) (int, error) {
	data := p
	if len(d.pending) > 0 {
		d.pending = append(d.pending, p...)
		data = d.pending
	}
	rest, err := d.decode(data)
	if err != nil {
		return 0, err
	}
	// rest may lie in pending itself.
	d.pending = append(d.pending[:0], rest...)
	return len(p), nil
}

// decode returns what is left.
func (d *copyDecoder) decode(data []byte) ([]byte, error) {
	if !d.header {
		const fixed = 11 + 4 + 4 // signature, flags, length of the extension
		if len(data) < fixed {
			return data, nil
		}
		extension := int64(binary.BigEndian.Uint32(data[15:]))
		if !bytes.HasPrefix(data, copySignature) || binary.BigEndian.Uint32(data[11:]) != 0 {
			return nil, errCopyForm
		}
		if int64(len(data)) < fixed+extension {
			return data, nil
		}
		data = data[fixed+extension:]
		d.header = true
	}
	for len(data) >= 2 {
		fields := int16(binary.BigEndian.Uint16(data))
		switch {
		case d.trailer:
			return nil, errCopyForm
		case fields == -1:
			d.trailer = true
			data = data[2:]
			continue
		case fields != 2:
			return nil, errCopyForm
		case len(data) < 6:
			return data, nil
		}
		size := int64(int32(binary.BigEndian.Uint32(data[2:])))
		if size < 0 { // null
			return nil, errCopyForm
		}
		whole := 6 + size + 4 + 8
		if int64(len(data)) < whole {
			return data, nil
		}
		text, tail := data[6:6+size], data[6+size:]
		if binary.BigEndian.Uint32(tail) != 8 {
			return nil, errCopyForm
		}
		// Microseconds since 2000.
		at := time.UnixMicro(postgresEpoch + int64(binary.BigEndian.Uint64(tail[4:]))).UTC()
		if err := d.row(text, at); err != nil {
			return nil, err
		}
		data = data[whole:]
	}
	if d.trailer && len(data) > 0 {
		return nil, errCopyForm
	}
	return data, nil
}

var postgresEpoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC).UnixMicro()

// end tells whether all that was announced has arrived.
func (d *copyDecoder) end() error {
	if !d.trailer || len(d.pending) > 0 {
		return errCopyForm
	}
	return nil
}
