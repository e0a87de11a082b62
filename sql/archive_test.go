package sql_test

import (
	"encoding/json"
	"os"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"pgcustody/cmd/devstack/stack"
	"pgcustody/cmd/devstack/stack/stacktest"
)

// The filter that says which segments can hold somebody's events is asked here and
// made by the worker: both go by the same vectors.
func TestPeopleVectors(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("testdata/people.json")
	require.NoError(t, err)
	var vectors []struct {
		Name   string
		Filter []byte
		Asked  []struct {
			Tenant   string
			Identity *uuid.UUID
			Held     bool
		}
	}
	require.NoError(t, json.Unmarshal(text, &vectors))
	conn, err := pgx.Connect(t.Context(), stacktest.DB(t).URLs[stack.Superuser])
	require.NoError(t, err)
	defer conn.Close(t.Context())
	for _, v := range vectors {
		answers := map[bool]int{}
		for _, asked := range v.Asked {
			var held bool
			require.NoError(t, conn.QueryRow(t.Context(), "select custody.segment_may_hold($1, $2, $3)", v.Filter, asked.Tenant, asked.Identity).Scan(&held))
			require.Equal(t, asked.Held, held, "%s: %s %v", v.Name, asked.Tenant, asked.Identity)
			answers[held]++
		}
		require.Len(t, answers, 2, v.Name)
	}
	var held bool
	require.NoError(t, conn.QueryRow(t.Context(), "select custody.segment_may_hold(null, 'acme', null)").Scan(&held))
	require.True(t, held, "without a filter nothing is certain")
}
