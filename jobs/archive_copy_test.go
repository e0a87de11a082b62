package jobs

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
)

type copied struct {
	text string
	at   time.Time
	eventKey
}

// copyBytes is what COPY sends for rows.
func copyBytes(rows ...copied) []byte {
	out := append(slices.Clone(copySignature), make([]byte, 8)...)
	for _, r := range rows {
		out = binary.BigEndian.AppendUint16(out, 4)
		out = binary.BigEndian.AppendUint32(out, uint32(len(r.text)))
		out = append(out, r.text...)
		out = binary.BigEndian.AppendUint32(out, 8)
		out = binary.BigEndian.AppendUint64(out, r.xid)
		out = binary.BigEndian.AppendUint32(out, 16)
		out = append(out, r.id[:]...)
		out = binary.BigEndian.AppendUint32(out, 8)
		out = binary.BigEndian.AppendUint64(out, uint64(r.at.UnixMicro()-postgresEpoch))
	}
	return binary.BigEndian.AppendUint16(out, 0xffff)
}

// FuzzCopyDecoder cuts the stream anywhere and expects the rows as they were.
func FuzzCopyDecoder(f *testing.F) {
	f.Add("a\nb\\c\x00", int64(0), uint(1))
	f.Add(strings.Repeat("x", 10_000), int64(-1), uint(4096))
	f.Add("", int64(1<<40), uint(7))
	f.Fuzz(func(t *testing.T, text string, micros int64, cut uint) {
		at := time.UnixMicro(postgresEpoch + micros%(1<<55)).UTC()
		key := eventKey{uint64(micros), uuid.UUID{1, 15: byte(cut)}}
		want := []copied{{text, at, key}, {"", at, key}, {text + text, at.Add(time.Microsecond), eventKey{}}}
		var got []copied
		d := &copyDecoder{row: func(r copiedRow) error {
			got = append(got, copied{string(r.text), r.at, r.eventKey})
			return nil
		}}
		stream := copyBytes(want...)
		for piece := range slices.Chunk(stream, int(cut%8192)+1) {
			require.Error(t, d.end(), "the end came early")
			n, err := d.Write(piece)
			require.NoError(t, err)
			require.Equal(t, len(piece), n)
		}
		require.NoError(t, d.end())
		require.Equal(t, want, got)
	})
}

// FuzzCopyDecoderInput feeds what COPY would not send.
func FuzzCopyDecoderInput(f *testing.F) {
	f.Add(copyBytes(copied{text: "a", at: time.Unix(0, 0)}))
	f.Fuzz(func(t *testing.T, stream []byte) {
		d := &copyDecoder{row: func(copiedRow) error { return nil }}
		if _, err := d.Write(stream); err != nil {
			require.ErrorIs(t, err, errCopyForm)
		}
		_ = d.end()
	})
}

func TestCopyDecoderRefuses(t *testing.T) {
	whole := copyBytes(copied{text: "a", at: time.Unix(0, 0)})
	null := slices.Clone(whole)
	copy(null[21:], []byte{0xff, 0xff, 0xff, 0xff})
	short := slices.Clone(whole)
	short[19+2+4+1+4+8+3] = 15
	for name, stream := range map[string][]byte{
		"null": null, "behind the end": append(slices.Clone(whole), 0), "another row behind the end": append(slices.Clone(whole), 0, 2),
		"no signature": bytes.Repeat([]byte{1}, 30), "three columns": append(slices.Clone(whole[:19]), 0, 3), "short id": short,
	} {
		d := &copyDecoder{row: func(copiedRow) error { return nil }}
		_, err := d.Write(stream)
		require.ErrorIs(t, err, errCopyForm, name)
	}
}

// TestCopyDecoderReadsPostgres reads what Postgres really sends.
func TestCopyDecoderReadsPostgres(t *testing.T) {
	b := newBench(t)
	var texts []string
	d := &copyDecoder{row: func(r copiedRow) error {
		texts = append(texts, string(r.text))
		require.Equal(t, eventKey{1 << 63, uuid.MustParse("00112233-4455-6677-8899-aabbccddeeff")}, r.eventKey)
		require.True(t, r.at.Equal(time.Date(1999, 12, 31, 23, 59, 59, 999_999_000, time.UTC)), r.at)
		return nil
	}}
	b.context(b.app, tenant, func(tx pgx.Tx) error {
		_, err := tx.Conn().PgConn().CopyTo(t.Context(), d,
			`copy (select t, '9223372036854775808'::xid8, '00112233-4455-6677-8899-aabbccddeeff'::uuid, '1999-12-31 23:59:59.999999+00'::timestamptz from unnest(array['', E'\\ \n \t', repeat('x', 100000)]) t) to stdout (format binary)`)
		return err
	})
	require.NoError(t, d.end())
	require.Equal(t, []string{"", "\\ \n \t", strings.Repeat("x", 100_000)}, texts)
}
