package retrieve

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/uuid"
	"github.com/parquet-go/parquet-go"
	"github.com/stretchr/testify/require"
)

func TestParquetHasEveryColumn(t *testing.T) {
	t.Parallel()
	l := newLog(t)
	leaves := l.fill(theDay, 2500)
	l.archive(theDay, 1, leaves)
	var out bytes.Buffer
	file := NewParquet(&out)
	o := l.options(Day(theDay))
	r, err := Run(t.Context(), o, file.Take)
	require.NoError(t, err)
	require.NoError(t, file.Close())
	if keep := os.Getenv("KEEP_PARQUET"); keep != "" {
		require.NoError(t, os.WriteFile(filepath.Join(keep, "events.parquet"), out.Bytes(), 0o600))
	}

	read := parquet.NewGenericReader[Row](bytes.NewReader(out.Bytes()))
	defer read.Close()
	require.Equal(t, r.Rows, read.NumRows())
	rows := make([]Row, r.Rows)
	n, err := read.Read(rows)
	require.True(t, err == nil || errors.Is(err, io.EOF), err)
	require.Len(t, leaves, n)
	_, err = Run(t.Context(), o, func(e *Event) error {
		row := rows[0]
		rows = rows[1:]
		require.Equal(t, e.Leaf, row.LeafIndex)
		require.Equal(t, e.Object, row.RestoredFrom)
		require.Equal(t, e.Entry.ID, row.LogEntryID)
		require.Equal(t, e.Entry.XID, row.XID)
		require.True(t, e.Entry.OccurredAt.Equal(row.OccurredAt))
		require.True(t, e.Entry.OccurredAt.Equal(row.RecordedAt))
		require.Equal(t, string(e.Entry.Tenant), row.TenantID)
		require.Equal(t, string(e.Entry.Actor), row.ActorID.String())
		require.Equal(t, string(e.Entry.Action), row.Action)
		require.Equal(t, e.Entry.Subject == nil, row.SubjectID == uuid.Nil)
		if e.Entry.Subject != nil {
			require.Equal(t, string(e.Entry.Subject), row.SubjectID.String())
		}
		require.Contains(t, *row.ResourceID, `of "many"`, "text as it is, without JSON's escapes")
		require.Equal(t, []any{"document", "success", "care", "app", true}, []any{*row.ResourceType, row.Result, *row.Purpose, row.DBRole, row.HasPersonal})
		require.Contains(t, row.Metadata, `"source": "test"}`)
		require.Zero(t, row.ImportID)
		return nil
	})
	require.NoError(t, err)
}
