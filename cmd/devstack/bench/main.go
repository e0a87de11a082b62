// Command bench measures what the README promises in figures: each as a ratio
// to the same work without pgcustody, taken in the same run on the same machine.
//
// It works on a private stack of its own, which is gone afterwards. A figure
// that misses its target is marked in the table; only what could not be measured
// is a failure.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

// figure is one promise and how it is measured. What a figure needs, it makes in
// a database of its own.
type figure struct {
	name    string
	about   string
	measure func(context.Context, *bench) error
}

var figures = []figure{
	{"erasure", "erase_subject against a bare DELETE", measureErasure},
	{"reads", "reads under row-level security against reads without", measureReads},
	{"context", "contexts with a MAC and the line of a read, against plain settings", measureContext},
	{"restore", "reading events back from the archive", measureRestore},
	{"append", "record_audit_event against a bare function", measureAppend},
	{"ledger", "what the audit ledger costs appends; sealing", measureLedger},
	{"proofs", "storage, proofs and verification of the audit ledger of many events", measureProofs},
	{"retention", "deleting a million conversations, and who notices", measureRetention},
	{"detection", "all rules of detection over a day of access events", measureDetection},
	{"archive", "archiving a closed day, against psql, zstd and an upload", measureArchive},
	{"traffic", "live appends while archive and retention work", measureTraffic},
	{"month", "an expired month of the trail, against DELETE", measureMonth},
	{"years", "the daily archive after five years, against that of a young deployment", measureYears},
	{"import", "import of files against COPY of typed rows", measureImport},
	{"sealed", "tables of sealed columns: reading, saving, rotating", measureSealed},
	{"shipping", "shipping the log of a server, against jq", measureShipping},
	{"sealing", "sealed values against pgp_sym_encrypt, and the rotation of keys", measureSealing},
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	var names []string
	for _, f := range figures {
		names = append(names, f.name)
	}
	quick := flag.Bool("quick", false, "small sizes and no fsync: shows that the benchmark runs, not how fast anything is")
	long := flag.Bool("long", false, "the sizes of the design where the usual ones are smaller: 10 million events of a day and of a month")
	only := flag.String("only", "", "comma-separated figures: "+strings.Join(names, ", "))
	dir := flag.String("dir", "", "keep the stack in this folder for the next run; default is one that goes with this run")
	flag.Parse()
	if flag.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flag.Arg(0))
	}
	wanted := names
	if *only != "" {
		wanted = strings.Split(*only, ",")
		for _, name := range wanted {
			if !slices.Contains(names, name) {
				return fmt.Errorf("-only %q: there are %s", name, strings.Join(names, ", "))
			}
		}
	}

	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	b, err := newBench(ctx, *dir, *quick, log)
	if err != nil {
		return err
	}
	b.long = *long
	defer func() { err = errors.Join(err, b.close(context.WithoutCancel(ctx))) }()

	for _, f := range figures {
		if !slices.Contains(wanted, f.name) {
			continue
		}
		started := time.Now()
		b.log.Info("figure", "name", f.name, "about", f.about)
		if err := f.measure(ctx, b); err != nil {
			// What was measured before is not lost.
			b.print(ctx, os.Stdout)
			return fmt.Errorf("%s: %w", f.name, err)
		}
		b.log.Info("figure done", "name", f.name, "duration", time.Since(started).Round(time.Second))
	}
	return b.print(ctx, os.Stdout)
}
