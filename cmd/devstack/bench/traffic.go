package main

import (
	"context"
	"fmt"
	"runtime"
	"time"
)

// measureTraffic appends events one by one at a steady pace, alone, and while the
// archive archives a day, and while retention deletes conversations.
func measureTraffic(ctx context.Context, b *bench) error {
	d, done, err := b.database(ctx, "traffic")
	if err != nil {
		return err
	}
	defer done()
	persons, expired, events, idle := 10_000, 500_000, 2_000_000, 30*time.Second
	if b.quick {
		persons, expired, events, idle = 100, 5000, 2000, time.Second
	}
	a, err := d.newArchivist(ctx)
	if err != nil {
		return err
	}
	defer a.close(ctx)
	if err := d.load(ctx, people("person-", persons)); err != nil {
		return err
	}
	if err := d.load(ctx, expiredConversations(persons, expired)...); err != nil {
		return err
	}
	yesterday := today().AddDate(0, 0, -1)
	if err := a.events(ctx, yesterday, today(), events); err != nil {
		return err
	}

	live := &saver{d: d, call: func(client, n int) (string, []any) {
		return "select custody.record_audit_event('phi.access', 'health_record', $1, 'success', '{\"count\":3,\"source\":\"web\"}', $2)",
			[]any{fmt.Sprintf("live-%d-%d", client, n), fmt.Sprintf("person-%d", n%persons+1)}
	}}
	if err := live.start(ctx, 4, 10*time.Millisecond); err != nil {
		return err
	}
	defer func() { _ = live.stop() }()
	rest := func() error {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(idle):
			return nil
		}
	}
	live.measure() // what came before warmed the sessions
	if err := rest(); err != nil {
		return err
	}
	quiet := live.measure()

	// One after the other, as the daemon has them, and on as many cores.
	cores := fmt.Sprint(max(runtime.NumCPU()/4, 1))
	a.env = append(a.env, "GOMAXPROCS="+cores)
	run, archived, _, err := a.archive(ctx)
	if err != nil {
		return err
	}
	archiving := live.measure()
	if err := rest(); err != nil {
		return err
	}
	quiet = append(quiet, live.measure()...)
	_, deleted, _, err := a.run(ctx, nil, "run", "retention")
	if err != nil {
		return err
	}
	deleting := live.measure()
	if err := live.stop(); err != nil {
		return err
	}
	if run.Counts["events"] < int64(events) {
		return fmt.Errorf("%d events archived, expected %d", run.Counts["events"], events)
	}
	for _, m := range []struct {
		figure, note string
		busy         []float64
	}{
		{"live appends during archive, p99", fmt.Sprintf("%d events archived in %s", run.Counts["events"], archived.Round(time.Second)), archiving},
		{"live appends during retention, p99", fmt.Sprintf("%d conversations deleted in %s", expired, deleted.Round(time.Second)), deleting},
	} {
		r := quantile(m.busy, 0.99) / quantile(quiet, 0.99)
		b.add(row{figure: m.figure, target: "≤ 1.50", ratio: fmt.Sprintf("%.2f", r), verdict: atMost(r, 1.5), ours: ms(quantile(m.busy, 0.99)), bare: ms(quantile(quiet, 0.99)),
			note: fmt.Sprintf("record_audit_event of 4 clients, 100 calls a second each at most, %d and %d calls, medians %s and %s; %s by a worker with GOMAXPROCS=%s, as the daemon has it",
				len(m.busy), len(quiet), ms(median(m.busy)), ms(median(quiet)), m.note, cores)})
	}
	return nil
}
