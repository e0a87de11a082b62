package main

import (
	"context"
	"fmt"
	"time"
)

// measureYears archives the same new day in a deployment that has archived every day
// for five years, and in one that has archived none.
func measureYears(ctx context.Context, b *bench) error {
	days, each, events, rounds := 1826, 20, 200_000, 5
	if b.quick {
		days, each, events, rounds = 70, 2, 500, 1
	}
	young, doneYoung, err := b.database(ctx, "young")
	if err != nil {
		return err
	}
	defer doneYoung()
	old, doneOld, err := b.database(ctx, "years")
	if err != nil {
		return err
	}
	defer doneOld()
	var archivists []*archivist
	for _, d := range []*database{young, old} {
		a, err := d.newArchivist(ctx)
		if err != nil {
			return err
		}
		defer a.close(ctx)
		archivists = append(archivists, a)
	}

	a := archivists[1]
	yesterday := today().AddDate(0, 0, -1)
	if err := a.events(ctx, yesterday.AddDate(0, 0, -days), yesterday, days*each); err != nil {
		return err
	}
	run, took, _, err := a.archive(ctx)
	if err != nil {
		return err
	}
	if run.Counts["segments"] < int64(days) {
		return fmt.Errorf("%d segments archived, expected %d", run.Counts["segments"], days)
	}
	old.log.Info("the past is archived", "segments", run.Counts["segments"], "duration", took.Round(time.Second))
	// As it was: each the day after, and the months of before have left.
	if err := old.load(ctx,
		triggersOff("archive_segments"),
		`update custody_data.archive_segments set opened_at = least(opened_at, (day + 1)::timestamptz), recorded_at = least(recorded_at, (day + 1)::timestamptz + interval '1 hour')`,
		triggersOn("archive_segments"), "vacuum (analyze) custody_data.archive_segments"); err != nil {
		return err
	}
	for {
		run, _, _, err := a.archive(ctx)
		if err != nil {
			return err
		}
		if run.Counts["months_dropped"] == 0 {
			break
		}
		old.log.Info("months dropped", "count", run.Counts["months_dropped"])
	}

	measured := make([][]float64, 2)
	for round := range rounds {
		for i := range archivists {
			i = (i + round) % 2
			if err := archivists[i].events(ctx, yesterday, today(), events); err != nil {
				return err
			}
			run, took, _, err := archivists[i].archive(ctx)
			if err != nil {
				return err
			}
			if run.Counts["events"] < int64(events) {
				return fmt.Errorf("%d events archived, expected %d", run.Counts["events"], events)
			}
			measured[i] = append(measured[i], took.Seconds())
		}
	}
	r := median(ratios(measured[1], measured[0]))
	b.add(row{figure: fmt.Sprintf("daily archive with %d days archived before", days), target: "≤ 1.20", ratio: fmt.Sprintf("%.2f", r), verdict: atMost(r, 1.2),
		ours: ms(median(measured[1])), bare: ms(median(measured[0])),
		note: fmt.Sprintf("pgcustody archive run for a day of %d events, against the same in a deployment that archived nothing before; median of %d rounds", events, rounds)})
	return nil
}
