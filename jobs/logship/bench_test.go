package logship

import (
	"bytes"
	"fmt"
	"testing"

	"filippo.io/age"
	"github.com/stretchr/testify/require"

	"pgcustody/jobs/serverlog"
)

// BenchmarkBuild makes batches of audited reads, without a database or a store.
func BenchmarkBuild(b *testing.B) {
	var log bytes.Buffer
	for n := 0; log.Len() < RegionBytes; n++ {
		fmt.Fprintf(&log, `{"timestamp":"2026-11-21 22:00:%02d.%03d UTC","user":"custody_app","dbname":"custody","pid":4711,"remote_host":"127.0.0.1","remote_port":40000,"session_id":"6b021e4d.1d6f","line_num":%d,"ps":"SELECT","session_start":"2026-11-21 21:59:59 UTC","vxid":"3/%d","txid":0,"error_severity":"LOG","message":"AUDIT: SESSION,%d,1,READ,SELECT,,,SELECT abalance FROM pgbench_accounts WHERE aid = $1;,<not logged>","func_name":"log_audit_event","file_name":"pgaudit.c","file_line_num":783,"application_name":"pgbench","backend_type":"client backend","query_id":-5817492036918223000}`+"\n",
			n/1000%60, n%1000, n+1, n, n)
	}
	memory := &Memory{Data: log.Bytes()}
	identity, err := age.GenerateX25519Identity()
	require.NoError(b, err)
	b.SetBytes(int64(log.Len()))
	b.ReportAllocs()
	for b.Loop() {
		state, err := ParseState(nil)
		require.NoError(b, err)
		object, err := NewObject([]age.Recipient{identity.Recipient()}, false)
		require.NoError(b, err)
		_, err = Build(Region{Format: serverlog.JSON, Data: memory, To: int64(log.Len())}, state, Options{Database: "custody"}, object.Write)
		require.NoError(b, err)
		require.NoError(b, object.Close())
	}
}
