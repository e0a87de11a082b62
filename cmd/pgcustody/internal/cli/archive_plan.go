package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5"

	"pgcustody/db"
)

// archivePlan is what a run would do now.
type archivePlan struct {
	Segments []plannedSegment `json:"segments"`
	Months   []plannedMonth   `json:"months"`
	Expired  []plannedExpiry  `json:"lock_ended"`
	Totals   archiveTotals    `json:"totals"`
}

type plannedSegment struct {
	Day    string `json:"day"`
	Part   int32  `json:"part,omitempty"` // 0: not opened yet
	Events int64  `json:"events"`
	// StoredBytes is an estimate, by what events of other days took; 0 where there are none.
	StoredBytes int64     `json:"stored_bytes"`
	RetainUntil time.Time `json:"retain_until"`
}

type plannedMonth struct {
	Partition string     `json:"partition"`
	From      *time.Time `json:"from"` // null: attached by hand, without bounds
	To        *time.Time `json:"to"`
	State     string     `json:"state"`
	Events    int64      `json:"events"`
	Kept      int64      `json:"events_kept"` // stay in Postgres when the month goes
	Bytes     int64      `json:"bytes"`       // on disk
	HeldBy    []string   `json:"held_by"`     // references of holds
	Detail    string     `json:"detail,omitempty"`
}

type plannedExpiry struct {
	Day         string    `json:"day"`
	Part        int32     `json:"part"`
	Events      int64     `json:"events"`
	StoredBytes int64     `json:"stored_bytes"`
	RetainUntil time.Time `json:"retain_until"`
	State       string    `json:"state"`
}

type archiveTotals struct {
	Segments            int64   `json:"segments"`
	Objects             int64   `json:"objects"`
	Events              int64   `json:"events"`
	PlainBytes          int64   `json:"plain_bytes"`
	StoredBytes         int64   `json:"stored_bytes"`
	Ratio               float64 `json:"compression_ratio"`
	Open                int64   `json:"open_segments"`
	Held                int64   `json:"held_segments"`
	Expired             int64   `json:"expired_segments"`
	OldestUnarchivedDay string  `json:"oldest_unarchived_day,omitempty"`
}

func (a *archive) plan(ctx context.Context) error {
	plan := archivePlan{Segments: []plannedSegment{}, Months: []plannedMonth{}, Expired: []plannedExpiry{}}
	err := a.inSystem(ctx, "plan", func(tx pgx.Tx) error {
		queries := db.New()
		totals, err := queries.ArchiveTotals(ctx, tx)
		if err != nil {
			return err
		}
		plan.Totals = archiveTotals{totals.Segments, totals.Objects, totals.Events, totals.PlainBytes, totals.StoredBytes,
			float64(totals.PlainBytes) / float64(max(totals.StoredBytes, 1)), totals.OpenSegments, totals.HeldSegments, totals.ExpiredSegments, totals.OldestUnarchivedDay}
		due, err := queries.ArchiveDue(ctx, tx)
		if err != nil {
			return err
		}
		for _, s := range due {
			plan.Segments = append(plan.Segments, plannedSegment{s.Day.Format(time.DateOnly), s.Part, s.Rows,
				s.Rows * totals.StoredBytes / max(totals.Events, 1), s.RetainUntil.UTC()})
		}
		months, err := queries.PlanMonths(ctx, tx, nil)
		if err != nil {
			return err
		}
		for _, m := range months {
			plan.Months = append(plan.Months, plannedMonth{m.PartitionName, utc(m.RangeFrom), utc(m.RangeTo), m.State, m.Rows, m.RowsKept, m.Bytes, m.HeldBy, m.Detail})
		}
		expired, err := queries.PlanExpiry(ctx, tx, nil)
		for _, e := range expired {
			plan.Expired = append(plan.Expired, plannedExpiry{e.Day.Format(time.DateOnly), e.Part, e.Events, e.StoredBytes, e.RetainUntil.UTC(), e.State})
		}
		return err
	})
	if err != nil {
		return err
	}
	return a.Print(plan, plan.print)
}

func (p archivePlan) print(out io.Writer) {
	table := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	if len(p.Segments) == 0 {
		fmt.Fprintln(out, "nothing to archive")
	} else {
		fmt.Fprintln(table, "ARCHIVE\tEVENTS\tABOUT\tLOCKED UNTIL")
		for _, s := range p.Segments {
			about := "-"
			if s.StoredBytes > 0 {
				about = sizeText(s.StoredBytes)
			}
			fmt.Fprintf(table, "%s\t%d\t%s\t%s\n", s.Day, s.Events, about, s.RetainUntil.Format(time.DateOnly))
		}
		_ = table.Flush()
	}
	fmt.Fprintln(out)
	fmt.Fprintln(table, "MONTH\tSTATE\tEVENTS\tSTAY\tON DISK\tHELD BY\tDETAIL")
	for _, m := range p.Months {
		name := m.Partition
		if m.From != nil && m.State != "foreign" {
			name = m.From.Format("2006-01")
		}
		fmt.Fprintf(table, "%s\t%s\t%d\t%d\t%s\t%s\t%s\n", name, m.State, m.Events, m.Kept, sizeText(m.Bytes), cmp.Or(strings.Join(m.HeldBy, ", "), "-"), m.Detail)
	}
	_ = table.Flush()
	if len(p.Expired) > 0 {
		fmt.Fprintln(out)
		fmt.Fprintln(table, "LOCK ENDED\tSEGMENT\tSTATE\tEVENTS\tSTORED")
		for _, e := range p.Expired {
			fmt.Fprintf(table, "%s\t%s.%d\t%s\t%d\t%s\n", e.RetainUntil.Format(time.DateOnly), e.Day, e.Part, e.State, e.Events, sizeText(e.StoredBytes))
		}
		_ = table.Flush()
	}
	if t := p.Totals; t.Segments > 0 {
		fmt.Fprintf(out, "\nthe archive holds %d events in %d segments, %d objects: %s stored, 1 to %.1f of %s\n",
			t.Events, t.Segments, t.Objects, sizeText(t.StoredBytes), t.Ratio, sizeText(t.PlainBytes))
	}
}
