package main

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"pgcustody/jobs"
)

// measureMonth lets an archived month of the trail go, and deletes the same rows from
// a bare table of the same columns and indexes.
func measureMonth(ctx context.Context, b *bench) error {
	d, done, err := b.database(ctx, "month")
	if err != nil {
		return err
	}
	defer done()
	events := 2_000_000
	switch {
	case b.quick:
		events = 3000
	case b.long:
		events = 10_000_000
	}
	a, err := d.newArchivist(ctx)
	if err != nil {
		return err
	}
	defer a.close(ctx)
	now := today()
	from := time.Date(now.Year(), now.Month()-5, 1, 0, 0, 0, 0, time.UTC)
	to := from.AddDate(0, 1, 0)
	if err := a.events(ctx, from, to, events); err != nil {
		return err
	}
	if _, _, _, err := a.archive(ctx); err != nil {
		return err
	}
	// As a week later.
	if err := d.load(ctx,
		triggersOff("archive_segments"),
		"update custody_data.archive_segments set opened_at = opened_at - interval '8 days', recorded_at = recorded_at - interval '8 days'",
		triggersOn("archive_segments")); err != nil {
		return err
	}
	if err := d.load(ctx, bareTrail...); err != nil {
		return err
	}
	if err := d.load(ctx,
		fmt.Sprintf("insert into bench.audit_logs select * from custody_data.audit_logs where occurred_at >= '%s' and occurred_at < '%s'", from.Format(time.RFC3339), to.Format(time.RFC3339)),
		"vacuum (analyze) bench.audit_logs", "checkpoint"); err != nil {
		return err
	}

	super, err := pgx.Connect(ctx, d.stack.SuperURL(d.name))
	if err != nil {
		return err
	}
	defer super.Close(context.WithoutCancel(ctx))
	started := time.Now()
	tag, err := super.Exec(ctx, "delete from bench.audit_logs where occurred_at >= $1 and occurred_at < $2", from, to)
	if err != nil {
		return err
	}
	bare := time.Since(started)
	if tag.RowsAffected() < int64(events) {
		return fmt.Errorf("%d rows deleted, expected %d", tag.RowsAffected(), events)
	}

	runner, err := pgx.Connect(ctx, d.stack.URL(runnerLogin, d.name))
	if err != nil {
		return err
	}
	defer runner.Close(context.WithoutCancel(ctx))
	watch := make(chan time.Duration, 1)
	watching, stop := context.WithCancel(ctx)
	defer stop()
	go func() { watch <- d.heldExclusively(watching, super) }()
	var dropped int64
	started = time.Now()
	err = jobs.InContext(ctx, runner, jobs.Scope{Tenant: "system", Actor: "benchmark", Purpose: "figure"}, func(tx pgx.Tx) error {
		return tx.QueryRow(ctx, "select coalesce(sum(d.rows_dropped), 0) from custody.drop_archived_partitions(1) d").Scan(&dropped)
	})
	took := time.Since(started)
	stop()
	held := <-watch
	if err != nil {
		return err
	}
	if dropped < int64(events) {
		return fmt.Errorf("%d events dropped, expected %d", dropped, events)
	}
	b.add(row{figure: fmt.Sprintf("an expired month of %d events is gone, from its lock to the commit", dropped), target: "< 1 s", ratio: fmt.Sprintf("%.3f s", held.Seconds()), verdict: atMost(held.Seconds(), 1),
		ours: held.Round(time.Millisecond).String(), bare: bare.Round(time.Millisecond).String(),
		note: "how long ACCESS EXCLUSIVE was held on the trail, looked at every millisecond; against DELETE of the same rows from a bare table, without the vacuum after it"})
	b.add(row{figure: "… with holding its events against their leaves before that", ratio: fmt.Sprintf("%.1f s", took.Seconds()), ours: perSecond(float64(dropped) / took.Seconds()), bare: perSecond(float64(events) / bare.Seconds()),
		note: "under a lock that only imports of old events wait for"})
	return nil
}

// heldExclusively watches until its context ends for how long anybody has the trail
// to itself.
func (d *database) heldExclusively(ctx context.Context, conn *pgx.Conn) time.Duration {
	var first, last time.Time
	for ctx.Err() == nil {
		var held bool
		err := conn.QueryRow(ctx, "select exists (select from pg_locks l where l.relation = 'custody_data.audit_logs'::regclass and l.mode = 'AccessExclusiveLock' and l.granted)").Scan(&held)
		if err == nil && held {
			last = time.Now()
			if first.IsZero() {
				first = last
			}
		}
		time.Sleep(time.Millisecond)
	}
	if first.IsZero() {
		return 0
	}
	return last.Sub(first) + time.Millisecond
}
