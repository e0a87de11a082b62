package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"pgcustody/cmd/devstack/stack/stacktest"
	"pgcustody/jobs"
	"pgcustody/jobs/ledger"
)

// Anchors and daemons are killed at any moment, and the log in the store has every
// event once, in checkpoints without gaps that each go on from the one before.
func TestAnchorKilled(t *testing.T) {
	t.Parallel()
	env := environment(t)
	env["PGCUSTODY_SIGNER"] = filepath.Join(t.TempDir(), "signer")
	env["PGCUSTODY_ORIGIN"] = "example.com/custody"
	registerTenant(t, env)
	code, _, stderr := command(t, env, "signer", "init")
	require.Zero(t, code, stderr)
	appendEvents := func(n int) {
		asTenant(t, env, "custody_app", fmt.Sprintf("select custody.record_audit_event('phi.access', 'conversations', 'c-1', 'success') from generate_series(1, %d)", n))
	}

	for i := range 20 {
		appendEvents(40)
		if i%5 == 4 {
			code, _, stderr := command(t, env, "anchor")
			require.Zero(t, code, stderr)
			continue
		}
		cmd := exec.Command("pgcustody", "anchor")
		for name, value := range env {
			cmd.Env = append(cmd.Env, name+"="+value)
		}
		require.NoError(t, cmd.Start())
		time.Sleep(time.Duration(rand.IntN(400)) * time.Millisecond) // wherever it is
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	for range 3 {
		d := startWork(t, env, "--seal-every", "100ms", "--anchor-every", "1s")
		for range 5 {
			appendEvents(20)
			time.Sleep(time.Duration(rand.IntN(400)) * time.Millisecond)
		}
		require.NoError(t, d.cmd.Process.Kill())
		d.end()
	}
	// The last one finds jobs that, as far as River knows, still run.
	d := startWork(t, env, "--seal-every", "100ms", "--anchor-every", "1s")
	require.Eventually(t, func() bool {
		var covered, events int64
		asTenant(t, env, "custody_runner", "select coalesce(max(tree_size), 0) from custody.ledger_checkpoints", &covered)
		inSystem(t, env, "select count(*) from custody.audit_entries", &events)
		return covered == events
	}, time.Minute, 100*time.Millisecond, "not all is anchored")
	require.NoError(t, d.cmd.Process.Signal(syscall.SIGTERM))
	begun := time.Now()
	require.Zero(t, d.end(), d.said())
	require.Less(t, time.Since(begun), 8*time.Second, "a sealer at work keeps the daemon from stopping")

	// As an auditor reads the store: every version of every object.
	lines, err := os.ReadFile(filepath.Join(env["PGCUSTODY_SIGNER"], "vkeys"))
	require.NoError(t, err)
	key, err := ledger.ParseVerifierKey(string(lines))
	require.NoError(t, err)
	bucket := strings.TrimPrefix(env["PGCUSTODY_STORE"], "s3://")
	client := stacktest.Shared(t).S3()
	pages := s3.NewListObjectVersionsPaginator(client, &s3.ListObjectVersionsInput{Bucket: &bucket})
	numbers := int64(0)
	var sizes []int64
	for pages.HasMorePages() {
		page, err := pages.NextPage(t.Context())
		require.NoError(t, err)
		require.Empty(t, page.DeleteMarkers)
		seen := map[string]bool{}
		for _, version := range page.Versions {
			if *version.Key == ledger.NewestKey("example.com/custody") {
				continue
			}
			require.False(t, seen[*version.Key], "%s was written twice", *version.Key)
			seen[*version.Key] = true
			number, ok := ledger.ParseCheckpointKey("example.com/custody", *version.Key)
			if !ok {
				continue
			}
			numbers++
			require.Equal(t, numbers, number)
			object, err := client.GetObject(t.Context(), &s3.GetObjectInput{Bucket: &bucket, Key: version.Key})
			require.NoError(t, err)
			signed, err := io.ReadAll(object.Body)
			require.NoError(t, err)
			require.NoError(t, object.Body.Close())
			c, err := ledger.Open(signed, "example.com/custody", []ledger.VerifierKey{key})
			require.NoError(t, err)
			require.Equal(t, number, c.Number)
			sizes = append(sizes, c.Size)
		}
	}
	require.Greater(t, numbers, int64(1)) // as many as other tests' transactions allowed
	file := filepath.Join(t.TempDir(), "proof")
	for i := range sizes[1:] {
		if sizes[i] == 0 {
			continue
		}
		code, _, stderr := command(t, env, "proof", "consistency", fmt.Sprint(sizes[i]), fmt.Sprint(sizes[i+1]), "-o", file)
		require.Zero(t, code, stderr)
		code, _, stderr = command(t, env, "proof", "check", file, "--vkey", key.Key)
		require.Zero(t, code, stderr)
	}
	var findings int64
	inSystem(t, env, "select count(*) from custody.verify_ledger()", &findings)
	require.Zero(t, findings)
	var runs json.RawMessage
	inSystem(t, env, "select coalesce(jsonb_agg(to_jsonb(r)), '[]') from custody_data.job_runs r where r.job in ('seal', 'anchor')", &runs)
	require.JSONEq(t, "[]", string(runs))
}

// inSystem reads one value as the runner in the context of tenant system.
func inSystem(t *testing.T, env map[string]string, query string, into any) {
	t.Helper()
	ctx := t.Context()
	conn, err := pgx.Connect(ctx, env["URL_custody_runner"])
	require.NoError(t, err)
	defer conn.Close(context.WithoutCancel(ctx))
	require.NoError(t, jobs.InContext(ctx, conn, jobs.Scope{Tenant: jobs.SystemTenant, Actor: "tester", Purpose: "test"}, func(tx pgx.Tx) error {
		return tx.QueryRow(ctx, query).Scan(into)
	}))
}
