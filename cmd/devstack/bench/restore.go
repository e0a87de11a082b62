package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// rarePerson has events on a few of the archived days.
const rarePerson = "5d1f0d8e-0000-4000-8000-000000000001"

// measureRestore archives many days and reads one of them back, and one person's events
// out of all.
func measureRestore(ctx context.Context, b *bench) error {
	d, done, err := b.database(ctx, "restore")
	if err != nil {
		return err
	}
	defer done()
	days, perDay, large, rounds := 1000, 300, 1_000_000, 3
	if b.quick {
		days, perDay, large, rounds = 20, 50, 2000, 1
	}
	a, err := d.newAuditor(ctx)
	if err != nil {
		return err
	}
	defer a.close()

	first := time.Now().UTC().Truncate(24*time.Hour).AddDate(0, 0, -days)
	theDay := first.AddDate(0, 0, days/2)
	events := func(from time.Time, n int, at, actor string) string {
		return fmt.Sprintf(`insert into custody_data.audit_logs (tenant_id, log_entry_id, occurred_at, actor_id, subject_id, action, resource_type, resource_id, metadata, import_id)
			select '%s', gen_random_uuid(), '%s'::timestamptz + %s, %s, md5('subject-' || abs(hashint4(n + 1)) %% 5000)::uuid, 'phi.access', 'document', 'file-' || n, jsonb_build_object('count', n %% 10, 'source', 'benchmark'), '00000000-0000-4000-8000-00000000f11e'
			from generate_series(0, %d) n`, tenant, from.Format(time.RFC3339), at, actor, n-1)
	}
	held := 0
	statements := []string{
		fmt.Sprintf("insert into custody_data.identities (tenant_id, identity_id, kind, user_id) values ('%s', '%s', 'person', 'rare')", tenant, rarePerson),
		fmt.Sprintf("select custody.ensure_audit_partitions('%s', now())", first.Format(time.RFC3339)),
		events(first, days*perDay, fmt.Sprintf("(n %% %d) * interval '1 day' + n / %[1]d * interval '1 minute'", days), "md5('actor-' || abs(hashint4(n)) % 1000)::uuid"),
		events(theDay, large, fmt.Sprintf("n * interval '%d microseconds'", int64(24*time.Hour/time.Microsecond)/int64(large)), "md5('actor-' || abs(hashint4(n)) % 1000)::uuid"),
	}
	for n := 7; n < days; n += days / 10 {
		statements = append(statements, events(first.AddDate(0, 0, n), 3, "n * interval '1 hour'", "'"+rarePerson+"'"))
		held++
	}
	if err := d.load(ctx, statements...); err != nil {
		return err
	}
	// All of them, so that each day is one segment: the archive seals a million at a time.
	s, err := d.newSealer(ctx)
	if err != nil {
		return err
	}
	_, err = s.seal(ctx)
	s.close(context.WithoutCancel(ctx))
	if err != nil {
		return err
	}
	started := time.Now()
	if _, _, _, err := a.run(ctx, nil, "archive", "run"); err != nil {
		return err
	}
	var segments int
	if err := d.ask(ctx, "select count(*) from custody_data.archive_segments where recorded_at is not null", &segments); err != nil {
		return err
	}
	if segments != days {
		return fmt.Errorf("%d segments were archived, not %d", segments, days)
	}
	d.log.Info("archived", "segments", segments, "duration", time.Since(started).Round(time.Second))

	want := perDay + large
	if (days/2-7)%(days/10) == 0 {
		want += 3
	}
	var toFirst, rates []float64
	var memory int64
	for range rounds {
		read, err := a.restore(ctx, "--from", theDay.Format(time.DateOnly), "--to", theDay.AddDate(0, 0, 1).Format(time.DateOnly))
		if err != nil {
			return err
		}
		if read.lines != want {
			return fmt.Errorf("%d events of the day came back, not %d", read.lines, want)
		}
		memory = max(memory, read.memory)
		toFirst = append(toFirst, read.first.Seconds())
		rates = append(rates, float64(read.lines)/read.took.Seconds())
	}
	note := fmt.Sprintf("%d events to standard output, each held against its leaf; pgcustody archive restore from start to end, median of %d", want, rounds)
	b.add(row{figure: fmt.Sprintf("restore of one day out of %d segments: first event", segments), target: "< 1 s", ratio: ms(median(toFirst)), verdict: atMost(median(toFirst), 1), note: "from the start of the process"})
	b.add(row{figure: "… events", target: "≥ 200000/s", ratio: perSecond(median(rates)), verdict: atLeast(median(rates), 200_000), note: note})
	b.add(row{figure: "… memory", ratio: fmt.Sprintf("%d MiB", memory>>20), note: "of the process at most"})

	read, err := a.restore(ctx, "--from", first.Format(time.DateOnly), "--to", first.AddDate(0, 0, days).Format(time.DateOnly), "--tenant", tenant, "--user", "rare")
	if err != nil {
		return err
	}
	if read.lines != 3*held {
		return fmt.Errorf("%d events of the person came back, not %d", read.lines, 3*held)
	}
	var fetched int
	if err := d.ask(ctx, "select segments_read from custody_data.archive_restores where identity_id is not null order by begun_at desc limit 1", &fetched); err != nil {
		return err
	}
	b.add(row{figure: fmt.Sprintf("restore of one person's events out of %d segments: segments read", segments), target: fmt.Sprintf("%d that hold some, 1 %% more", held),
		ratio: fmt.Sprint(fetched), verdict: atMost(float64(fetched), float64(held)+0.01*float64(segments)),
		ours: read.took.Round(time.Millisecond).String(), note: fmt.Sprintf("%d events; of a filter of people about one in a thousand says yes for nothing", read.lines)})
	return nil
}

// ask reads one value as a superuser.
func (d *database) ask(ctx context.Context, statement string, value any) error {
	conn, err := pgx.Connect(ctx, d.stack.SuperURL(d.name))
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	return conn.QueryRow(ctx, statement).Scan(value)
}

// restored is what came back, and when.
type restored struct {
	lines       int
	first, took time.Duration
	memory      int64 // of the process at most
}

// restore reads events back to standard output.
func (a *auditor) restore(ctx context.Context, args ...string) (r restored, err error) {
	self, err := os.Executable()
	if err != nil {
		return r, err
	}
	cmd := exec.CommandContext(ctx, filepath.Join(filepath.Dir(self), "pgcustody"),
		append([]string{"archive", "restore", "--reason", "benchmark", "--identity", a.d.stack.ArchiveIdentity()}, args...)...)
	cmd.Env = slices.Clone(a.env)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return r, err
	}
	started := time.Now()
	if err := cmd.Start(); err != nil {
		return r, err
	}
	lines := bufio.NewReaderSize(out, 1<<20)
	for {
		_, err := lines.ReadSlice('\n')
		if err == io.EOF {
			break
		}
		if err != nil {
			return r, err
		}
		if r.lines++; r.lines == 1 {
			r.first = time.Since(started)
		}
	}
	if err := cmd.Wait(); err != nil {
		return r, err
	}
	r.took, r.memory = time.Since(started), cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss<<10
	return r, nil
}
