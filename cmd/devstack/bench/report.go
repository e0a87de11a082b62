package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5"
)

// row is a line of the table.
type row struct {
	figure string
	target string // "" for a number that nothing was promised of
	ratio  string
	verdict
	ours, bare string
	note       string
}

// verdict on a target.
type verdict string

const (
	met    verdict = "ok"
	missed verdict = "MISSED"
	none   verdict = "-"
)

// atMost judges a ratio or a time that should be small, atLeast one that should be large.
func atMost(measured, limit float64) verdict {
	if measured <= limit {
		return met
	}
	return missed
}

func atLeast(measured, limit float64) verdict {
	if measured >= limit {
		return met
	}
	return missed
}

func (b *bench) add(r row) {
	if r.verdict == "" {
		r.verdict = none
	}
	if b.quick {
		r.verdict = none // sizes are too small to judge by
	}
	b.rows = append(b.rows, r)
	b.log.Info("measured", "figure", r.figure, "ratio", r.ratio, "verdict", string(r.verdict), "ours", r.ours, "bare", r.bare, "note", r.note)
}

// print writes the table and what it was measured on.
func (b *bench) print(ctx context.Context, out io.Writer) error {
	if len(b.rows) == 0 {
		return nil
	}
	machine, err := b.machine(ctx)
	if err != nil {
		return err
	}
	if b.quick {
		fmt.Fprintln(out, "QUICK: small sizes, no fsync. These are not the figures.")
	}
	table := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(table, "FIGURE\tTARGET\tMEASURED\t\tWITH PGCUSTODY\tBARE\tNOTE")
	for _, r := range b.rows {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.figure, dash(r.target), dash(r.ratio), r.verdict, dash(r.ours), dash(r.bare), r.note)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	_, err = fmt.Fprintln(out, "\n"+machine)
	return err
}

func dash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

// machine is the line without which no figure means anything.
func (b *bench) machine(ctx context.Context) (string, error) {
	conn, err := pgx.Connect(ctx, b.stack.SuperURL("postgres"))
	if err != nil {
		return "", err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var version, config string
	if err := conn.QueryRow(ctx, `select current_setting('server_version'), string_agg(name || ' = ' || current_setting(name), ', ' order by name)
		from pg_settings where name in ('fsync', 'synchronous_commit', 'full_page_writes', 'shared_buffers', 'max_wal_size', 'checkpoint_timeout',
		  'work_mem', 'data_checksums', 'wal_level', 'autovacuum', 'ssl')`).Scan(&version, &config); err != nil {
		return "", err
	}
	return fmt.Sprintf("Machine: %d cores (%s), %s memory, %s. Client and server on it together, over TLS.\nPostgres %s: %s, shared_preload_libraries with pgaudit.\nMeasured %s.",
		runtime.NumCPU(), procLine("/proc/cpuinfo", "model name"), memory(), runtime.GOOS+"/"+runtime.GOARCH, version, config,
		time.Now().UTC().Format("2006-01-02 15:04 MST")), nil
}

func memory() string {
	var kb float64
	if _, err := fmt.Sscanf(procLine("/proc/meminfo", "MemTotal"), "%f kB", &kb); err != nil {
		return "unknown"
	}
	return fmt.Sprintf("%.0f GiB", kb/(1<<20))
}

// procLine is the value of a "name: value" line.
func procLine(path, name string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return "unknown"
	}
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return "unknown"
}

func ms(d float64) string { return fmt.Sprintf("%.2f ms", d*1000) }

func perSecond(n float64) string { return fmt.Sprintf("%.0f/s", n) }
