package jobs

import (
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
)

// TestRowsAreDecoded reads what Postgres really sends.
func TestRowsAreDecoded(t *testing.T) {
	b := newBench(t)
	var texts []string
	var last [][]byte
	b.context(b.app, tenant, func(tx pgx.Tx) error {
		rows := tx.Conn().PgConn().ExecParams(t.Context(),
			`select t, '9223372036854775808'::xid8, '00112233-4455-6677-8899-aabbccddeeff'::uuid, '1999-12-31 23:59:59.999999+00'::timestamptz from unnest(array['', E'\\ \n \t', 'x']) t`,
			nil, nil, nil, binaryColumns)
		for rows.NextRow() {
			r, err := decodeRow(rows.Values())
			require.NoError(t, err)
			texts = append(texts, string(r.text))
			require.Equal(t, eventKey{1 << 63, uuid.MustParse("00112233-4455-6677-8899-aabbccddeeff")}, r.eventKey)
			require.True(t, r.at.Equal(time.Date(1999, 12, 31, 23, 59, 59, 999_999_000, time.UTC)), r.at)
			last = nil
			for _, column := range rows.Values() {
				last = append(last, slices.Clone(column))
			}
		}
		_, err := rows.Close()
		return err
	})
	require.Equal(t, []string{"", "\\ \n \t", "x"}, texts)

	for i := range last {
		null, short := slices.Clone(last), slices.Clone(last)
		null[i] = nil
		_, err := decodeRow(null)
		require.ErrorIs(t, err, errRowForm, i)
		if i > 0 {
			short[i] = short[i][1:]
			_, err = decodeRow(short)
			require.ErrorIs(t, err, errRowForm, i)
		}
	}
	_, err := decodeRow(last[:3])
	require.ErrorIs(t, err, errRowForm)
}
