package jobs

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"time"

	"github.com/google/uuid"
)

// copiedRow is an event as COPY sends it. The text is the decoder's.
type copiedRow struct {
	text []byte
	eventKey
	at time.Time
}

// eventKey is by what the ledger's map knows an event.
type eventKey struct {
	xid uint64
	id  uuid.UUID
}

func (k eventKey) compare(other eventKey) int {
	return cmp.Or(cmp.Compare(k.xid, other.xid), bytes.Compare(k.id[:], other.id[:]))
}

// copyDecoder takes what COPY (select text, xid8, uuid, timestamptz) TO STDOUT
// (FORMAT binary) sends and calls row with each. It holds what of a row has not
// arrived.
type copyDecoder struct {
	row     func(copiedRow) error
	pending []byte
	header  bool // has been read
	trailer bool // has been read
}

var errCopyForm = errors.New("COPY sent something else than rows of text, xid, uuid and time")

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
		case fields != 4:
			return nil, errCopyForm
		case len(data) < 6:
			return data, nil
		}
		size := int64(int32(binary.BigEndian.Uint32(data[2:]))) //nolint:gosec // -1 is null
		if size < 0 {
			return nil, errCopyForm
		}
		const rest = 4 + 8 + 4 + 16 + 4 + 8
		whole := 6 + size + rest
		if int64(len(data)) < whole {
			return data, nil
		}
		tail := data[6+size : whole]
		if binary.BigEndian.Uint32(tail) != 8 || binary.BigEndian.Uint32(tail[12:]) != 16 || binary.BigEndian.Uint32(tail[32:]) != 8 {
			return nil, errCopyForm
		}
		row := copiedRow{text: data[6 : 6+size]}
		row.xid = binary.BigEndian.Uint64(tail[4:])
		copy(row.id[:], tail[16:])
		// Microseconds since 2000.
		row.at = time.UnixMicro(postgresEpoch + int64(binary.BigEndian.Uint64(tail[36:]))).UTC() //nolint:gosec // two's complement
		if err := d.row(row); err != nil {
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
