package logship

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"pgcustody/jobs/serverlog"
)

// Where sessions do not say that they end, what is remembered of them has bounds: of as
// many as their lines are checked for.
func TestStateIsBounded(t *testing.T) {
	state, err := ParseState(nil)
	require.NoError(t, err)
	const sessions = 66_000
	var log bytes.Buffer
	for i := range sessions {
		fmt.Fprintf(&log, `{"timestamp":"2026-11-21 22:00:00.000 UTC","dbname":"custody","session_id":"1a.%x","line_num":1,"vxid":"3/7","error_severity":"LOG","message":"PGCUSTODY k.%s {\"what\":\"context\",\"tenant\":\"acme\"}","context":"PL/pgSQL function custody_data.write_line(x)","backend_type":"client backend"}`+"\n",
			i, strings.Repeat("0", 64))
	}
	ours := func(messages, _ []string) (string, error) { return strings.Repeat("t", len(messages)), nil }
	_, err = Build(Region{Format: serverlog.JSON, Data: &Memory{Data: log.Bytes()}, To: int64(log.Len())}, state, Options{Database: "custody", Ours: ours}, func([]byte, int64) error { return nil })
	require.NoError(t, err)
	require.Len(t, state.Sessions, 65_536)
	require.Len(t, state.Contexts, 65_536)
	require.Contains(t, state.Contexts, fmt.Sprintf("1a.%x", sessions-1), "the newest are kept")
	require.NotContains(t, state.Contexts, "1a.0")
}
