package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"
)

// measureArchive archives a closed day with encryption, lock and read-back, and then
// does with the same lines what somebody would without pgcustody: copies them by psql
// through zstd into a file, and uploads that.
func measureArchive(ctx context.Context, b *bench) error {
	d, done, err := b.database(ctx, "archive")
	if err != nil {
		return err
	}
	defer done()
	events, rounds := 2_000_000, 3
	switch {
	case b.quick:
		events, rounds = 2000, 1
	case b.long:
		events, rounds = 10_000_000, 1
	}
	a, err := d.newArchivist(ctx)
	if err != nil {
		return err
	}
	defer a.close(ctx)

	var ours, bare []float64
	var memory int64
	var ratio float64
	for round := range rounds {
		from := today().AddDate(0, 0, round-rounds) // the last is yesterday
		if err := a.events(ctx, from, from.AddDate(0, 0, 1), events); err != nil {
			return err
		}
		run, took, held, err := a.archive(ctx)
		if err != nil {
			return err
		}
		if run.Counts["events"] < int64(events) {
			return fmt.Errorf("%d events archived, expected %d", run.Counts["events"], events)
		}
		ours, memory = append(ours, float64(run.Counts["events"])/took.Seconds()), max(memory, held)
		ratio = float64(run.Counts["plain_bytes"]) / float64(run.Bytes)
		plain, size, err := d.plainArchive(ctx, a.folder, from)
		if err != nil {
			return err
		}
		bare = append(bare, float64(events)/plain.Seconds())
		d.log.Info("round", "ours", took.Round(time.Millisecond), "bare", plain.Round(time.Millisecond), "bytes", size, "counts", run.Counts)
	}
	r := median(ratios(ours, bare))
	b.add(row{figure: fmt.Sprintf("archiving a day of %d events, read back", events), target: "≥ 0.80", ratio: fmt.Sprintf("%.2f", r), verdict: atLeast(r, 0.8),
		ours: perSecond(median(ours)), bare: perSecond(median(bare)),
		note: fmt.Sprintf("pgcustody archive run from start to end (check of the store, leaves, zstd, age, lock, read-back, index), 1 to %.1f, against psql copy | zstd -3 -T1 > file and a plain upload of it; median of %d rounds", ratio, rounds)})
	mib := float64(memory) / (1 << 20)
	verdict := atMost(mib, 64)
	b.add(row{figure: "… memory of the worker", target: "< 64 MiB", ratio: fmt.Sprintf("%.0f MiB", mib), verdict: verdict, note: "resident at most, the pages of its program among it; promised of 10 million events (-long)"})
	return nil
}

// plainArchive is the peer, with the lines as the same login sees them.
func (d *database) plainArchive(ctx context.Context, folder string, day time.Time) (took time.Duration, size int64, err error) {
	file := filepath.Join(folder, "plain.zst")
	psql := d.pgProgram(ctx, runnerLogin, "psql", "-X", "-q", "-1", "-v", "ON_ERROR_STOP=1",
		"-c", "do $$ begin perform custody.set_context('system', 'benchmark', 'figure'); end $$",
		"-c", fmt.Sprintf("copy (select e.entry from custody.audit_entries e where e.occurred_at >= '%s' and e.occurred_at < '%s') to stdout",
			day.Format(time.RFC3339), day.AddDate(0, 0, 1).Format(time.RFC3339)))
	cmd := exec.CommandContext(ctx, "bash", append([]string{"-c", `set -o pipefail; file=$1; shift; "$@" | zstd -q -3 -T1 > "$file"`, "bash", file}, psql.Args...)...)
	cmd.Env, cmd.Stderr = psql.Env, os.Stderr

	bucket := fmt.Sprintf("bench-plain-%x", time.Now().UnixNano())
	if err := d.stack.NewBucket(ctx, bucket, false); err != nil {
		return 0, 0, err
	}
	started := time.Now()
	if err := cmd.Run(); err != nil {
		return 0, 0, fmt.Errorf("psql | zstd: %w", err)
	}
	upload, err := os.Open(file)
	if err != nil {
		return 0, 0, err
	}
	defer upload.Close()
	if _, err := d.stack.S3().PutObject(ctx, &s3.PutObjectInput{Bucket: &bucket, Key: aws.String("day.jsonl.zst"), Body: upload}); err != nil {
		return 0, 0, err
	}
	took = time.Since(started)
	info, err := upload.Stat()
	if err != nil {
		return 0, 0, err
	}
	return took, info.Size(), nil
}

// archivist runs the archive of a database into a bucket of its own.
type archivist struct {
	*auditor
	sealer *sealer
}

func (d *database) newArchivist(ctx context.Context) (*archivist, error) {
	auditor, err := d.newAuditor(ctx)
	if err != nil {
		return nil, err
	}
	sealer, err := d.newSealer(ctx)
	if err != nil {
		auditor.close()
		return nil, err
	}
	return &archivist{auditor, sealer}, nil
}

func (a *archivist) close(ctx context.Context) {
	a.sealer.close(context.WithoutCancel(ctx))
	a.auditor.close()
}

// archiveRun is what the record of a run says.
type archiveRun struct {
	Counts map[string]int64 `json:"counts"`
	Bytes  int64            `json:"bytes"`
}

func (a *archivist) archive(ctx context.Context) (run archiveRun, took time.Duration, memory int64, err error) {
	out, took, memory, err := a.run(ctx, nil, "archive", "run", "--json")
	if err != nil {
		return run, 0, 0, err
	}
	var runs struct {
		Runs []archiveRun `json:"runs"`
	}
	if err := json.Unmarshal(out, &runs); err != nil {
		return run, 0, 0, err
	}
	if len(runs.Runs) != 1 {
		return run, 0, 0, fmt.Errorf("archive run: %d records: %s", len(runs.Runs), out)
	}
	return runs.Runs[0], took, memory, nil
}

func today() time.Time { return time.Now().UTC().Truncate(24 * time.Hour) }

// loaders is how many connections load events at once.
const eventLoaders = 4

// events writes events of a span of time, as if they had been appended then, and
// seals them.
func (a *archivist) events(ctx context.Context, from, to time.Time, count int) error {
	started := time.Now()
	d := a.d
	text := func(at time.Time) string { return "'" + at.Format(time.RFC3339) + "'" }
	if err := d.load(ctx, partitions(text(from), text(to.Add(-time.Second)))); err != nil {
		return err
	}
	group, loading := errgroup.WithContext(ctx)
	share := (count + eventLoaders - 1) / eventLoaders
	for first := 0; first < count; first += share {
		conn, err := pgx.Connect(loading, d.stack.SuperURL(d.name))
		if err != nil {
			return errors.Join(err, group.Wait())
		}
		// Transactions are numbered as time goes, however long each takes.
		if _, err := conn.Exec(loading, "begin; select pg_current_xact_id()"); err != nil {
			return errors.Join(err, conn.Close(ctx), group.Wait())
		}
		group.Go(func() error {
			defer conn.Close(context.WithoutCancel(loading))
			_, err := conn.Exec(loading, fmt.Sprintf(`insert into custody_data.audit_logs
				(tenant_id, log_entry_id, occurred_at, recorded_at, actor_id, subject_id, action, resource_type, resource_id, result, purpose, metadata)
				select '%[1]s', custody_data.new_entry_id(), t.at, t.at + interval '1 ms', md5('actor-' || n %% 64)::uuid, md5('person-' || n %% 10000)::uuid,
				  'phi.access', 'health_record', 'record-' || n, 'success', 'care', '{"count":3,"source":"web"}'
				from generate_series(%[2]d, %[3]d) n cross join lateral (select %[4]s::timestamptz + (n / %[5]d.0) * (%[6]s::timestamptz - %[4]s::timestamptz) as at) t;
				commit`, tenant, first, min(first+share, count)-1, text(from), count, text(to)))
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if err := d.load(ctx, "vacuum (analyze) custody_data.audit_logs"); err != nil {
		return err
	}
	loaded := time.Since(started)
	sealed, err := a.sealer.seal(ctx)
	if err != nil {
		return err
	}
	if sealed < int64(count) {
		return fmt.Errorf("%d events sealed, expected %d", sealed, count)
	}
	d.log.Info("events loaded and sealed", "count", count, "load", loaded.Round(time.Second), "seal", (time.Since(started) - loaded).Round(time.Second))
	return d.load(ctx, "checkpoint")
}
