package jobs

import (
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"pgcustody/jobs/verify"
)

// TestRowsAreDecoded reads what Postgres really sends.
func TestRowsAreDecoded(t *testing.T) {
	b := newBench(t)
	const id = "00112233-4455-6677-8899-aabbccddeeff"
	var row [][]byte
	b.context(b.app, tenant, func(tx pgx.Tx) error {
		rows := tx.Conn().PgConn().ExecParams(t.Context(),
			`select '`+id+`'::uuid, '1999-12-31 23:59:59.999999+00'::timestamptz, '2000-01-01 00:00:00+00'::timestamptz, 'acme', '`+id+`'::uuid, null, E'a"\\\n', null, null,
			'success', null, '{"n": 1}'::jsonb, '\x00ff'::bytea, null, 'app', '9223372036854775808'::xid8`,
			nil, nil, nil, binaryColumns)
		for rows.NextRow() {
			for _, column := range rows.Values() {
				row = append(row, slices.Clone(column))
			}
		}
		_, err := rows.Close()
		return err
	})
	r, err := decodeRow(row)
	require.NoError(t, err)
	require.Equal(t, eventKey{1 << 63, uuid.MustParse(id)}, r.eventKey)
	require.True(t, r.at.Equal(time.Date(1999, 12, 31, 23, 59, 59, 999_999_000, time.UTC)), r.at)
	require.Equal(t, `{"v":1,"log_entry_id":"`+id+`","occurred_at":"1999-12-31T23:59:59.999999Z","recorded_at":"2000-01-01T00:00:00.000000Z","tenant_id":"acme","actor_id":"`+id+
		`","action":"a\"\\\n","result":"success","metadata":{"n": 1},"personal":"AP8=","db_role":"app","xid":"9223372036854775808"}`, string(verify.AppendEntry(nil, row)))

	for _, i := range []int{0, 1, len(row) - 1} {
		null, short := slices.Clone(row), slices.Clone(row)
		null[i], short[i] = nil, short[i][1:]
		for _, bad := range [][][]byte{null, short} {
			_, err := decodeRow(bad)
			require.ErrorIs(t, err, errRowForm, i)
		}
	}
	_, err = decodeRow(row[1:])
	require.ErrorIs(t, err, errRowForm)
}
