package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/jackc/pgx/v5"

	"pgcustody/jobs"
	"pgcustody/jobs/importer"
	"pgcustody/jobs/importer/sample"
)

// measureImport imports a file of a million lines, and then copies the rows that
// came of it, typed, into a bare table with the same indexes.
func measureImport(ctx context.Context, b *bench) error {
	rows, rounds := 1_000_000, 3
	if b.quick {
		rows, rounds = 2000, 1
	}
	dir, err := os.MkdirTemp("", "pgcustody-import-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if _, err := sample.Write(dir, sample.Options{Seed: 1, People: max(rows/100, 1), Conversations: rows, Events: rows, Span: 60 * 24 * time.Hour}); err != nil {
		return err
	}
	for _, table := range []string{"audit_logs", "conversations"} {
		var ours, bare []float64
		for range rounds {
			o, c, err := b.importOnce(ctx, dir, table, rows)
			if err != nil {
				return fmt.Errorf("%s: %w", table, err)
			}
			ours, bare = append(ours, float64(rows)/o), append(bare, float64(rows)/c)
		}
		r := median(ratios(ours, bare))
		b.add(row{figure: "import of " + table, target: "≥ 0.40", ratio: fmt.Sprintf("%.2f", r), verdict: atLeast(r, 0.4),
			ours: perSecond(median(ours)), bare: perSecond(median(bare)),
			note: fmt.Sprintf("%d rows against a binary COPY of them, typed, median of %d rounds", rows, rounds)})
	}
	return nil
}

func (b *bench) importOnce(ctx context.Context, dir, table string, rows int) (ours, bare float64, err error) {
	d, done, err := b.database(ctx, "import")
	if err != nil {
		return 0, 0, err
	}
	defer done()
	if err := d.load(ctx, partitions("now() - interval '3 months'", "now()")); err != nil {
		return 0, 0, err
	}
	pool, err := d.pool(ctx, runnerLogin)
	if err != nil {
		return 0, 0, err
	}
	defer pool.Close()
	unlock := &jobs.Unlocker{Ring: jobs.Keyring{Pool: pool, Provider: b.provider, Actor: "officer"}}
	started := time.Now()
	reports, err := importer.Run(ctx, importer.Config{Database: pool, Unlock: unlock, Tenant: tenant, RegisterVocabulary: true}, []string{filepath.Join(dir, table+".jsonl")})
	if err != nil {
		return 0, 0, err
	}
	ours = time.Since(started).Seconds()
	if reports[0].RowsAdded != int64(rows) {
		return 0, 0, fmt.Errorf("%d of %d rows were imported", reports[0].RowsAdded, rows)
	}

	// Typed rows, as a COPY of them would come from elsewhere.
	typed := filepath.Join(dir, table+".typed")
	defer os.Remove(typed)
	if table == "audit_logs" {
		err = d.load(ctx, bareTrail...)
	} else {
		err = d.load(ctx, "create table bench.conversations (like custody_data.conversations including defaults including indexes)")
	}
	if err != nil {
		return 0, 0, err
	}
	conn, err := pgx.Connect(ctx, d.stack.SuperURL(d.name))
	if err != nil {
		return 0, 0, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	file, err := os.Create(typed)
	if err != nil {
		return 0, 0, err
	}
	defer file.Close()
	where := ""
	if table == "audit_logs" {
		where = " where import_id is not null"
	}
	if _, err := conn.PgConn().CopyTo(ctx, file, "copy (select * from custody_data."+table+where+") to stdout (format binary)"); err != nil {
		return 0, 0, err
	}
	if _, err := file.Seek(0, 0); err != nil {
		return 0, 0, err
	}
	if err := d.load(ctx, "checkpoint"); err != nil {
		return 0, 0, err
	}
	started = time.Now()
	tag, err := conn.PgConn().CopyFrom(ctx, file, "copy bench."+table+" from stdin (format binary)")
	if err != nil {
		return 0, 0, err
	}
	if tag.RowsAffected() != int64(rows) {
		return 0, 0, fmt.Errorf("%d of %d rows were copied", tag.RowsAffected(), rows)
	}
	return ours, time.Since(started).Seconds(), nil
}
