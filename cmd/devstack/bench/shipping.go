package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"filippo.io/age"
	"github.com/jackc/pgx/v5"

	"pgcustody/jobs"
)

// measureShipping ships a large log by the real program on one core, into a directory,
// against jq, which only reads and writes it; and a server's own while it is read as fast
// as it can be, with every read audited.
func measureShipping(ctx context.Context, b *bench) error {
	d, done, err := b.database(ctx, "shipping")
	if err != nil {
		return err
	}
	defer done()
	folder, err := os.MkdirTemp("", "pgcustody-shipping-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(folder)
	size, load := int64(256<<20), 30*time.Second
	if b.quick {
		size, load = 4<<20, 2*time.Second
	}
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		return err
	}
	env := os.Environ()
	settings := d.stack.Env()
	settings["PGDATABASE"], settings["PGCUSTODY_STORE"], settings["PGCUSTODY_STORE_ACCEPT"] = d.name, "file://"+filepath.Join(folder, "store"), "no-lock,no-versioning"
	settings["PGCUSTODY_ARCHIVE_RECIPIENTS"], settings["GOMAXPROCS"] = identity.Recipient().String(), "2"
	for name, value := range settings {
		env = append(env, name+"="+value)
	}
	if err := os.MkdirAll(filepath.Join(folder, "store"), 0o700); err != nil {
		return err
	}
	ship := func(ctx context.Context, source, name string) (took, cpu time.Duration, memory int64, err error) {
		self, err := os.Executable()
		if err != nil {
			return 0, 0, 0, err
		}
		// One core, not one thread of Go's: that looks at the network only every 10 ms while it computes.
		cmd := exec.CommandContext(ctx, "taskset", "--cpu-list", "0", filepath.Join(filepath.Dir(self), "pgcustody"), "logs", "ship", "--log-source", source, "--log-name", name)
		var out bytes.Buffer
		cmd.Env, cmd.Stdout, cmd.Stderr = env, &out, &out
		started := time.Now()
		if err := cmd.Start(); err != nil {
			return 0, 0, 0, err
		}
		held := make(chan int64, 1)
		watching, stop := context.WithCancel(ctx)
		go func() {
			resident, _ := highWater(watching, cmd.Process.Pid)
			held <- resident
		}()
		err = cmd.Wait()
		stop()
		memory = <-held
		if err != nil {
			return 0, 0, 0, fmt.Errorf("pgcustody logs ship: %w: %s", err, out.String())
		}
		return time.Since(started), cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), memory, nil
	}

	for _, kind := range []struct {
		name, note string
		line       func(n int) string
	}{
		{"audited", "every line an audited read, and so a row of access_events", auditedLine},
		{"plain", "lines that are no access events: what the reader, the encoder and the store take", plainLine},
	} {
		dir := filepath.Join(folder, kind.name)
		if err := writeLog(dir, size, kind.line); err != nil {
			return err
		}
		took, cpu, memory, err := ship(ctx, dir, kind.name)
		if err != nil {
			return err
		}
		jq := exec.CommandContext(ctx, "jq", "-c", ".", filepath.Join(dir, "a.json"))
		if err := jq.Run(); err != nil {
			return fmt.Errorf("jq: %w", err)
		}
		jqCPU := jq.ProcessState.UserTime() + jq.ProcessState.SystemTime()
		note := kind.note
		if kind.name == "audited" {
			floor, err := copyFloor(ctx, b, d.name)
			if err != nil {
				return err
			}
			note += fmt.Sprintf(", of which COPY alone, into a bare table with the same indexes, makes %.0f MB/s of log", float64(size)/1e6/floor.Seconds())
		} else {
			bare, err := bareTools(ctx, filepath.Join(dir, "a.json"), size)
			if err != nil {
				return err
			}
			note += bare
		}
		rate := float64(size) / 1e6 / took.Seconds()
		perCore := float64(size) / 1e6 / cpu.Seconds()
		b.add(row{figure: "shipping jsonlog, " + kind.name + ": MB/s, end to end", target: "≥ 100", ratio: fmt.Sprintf("%.0f", rate), verdict: atLeast(rate, 100),
			note: note + fmt.Sprintf("; %d MB, one core, the database beside it", size>>20)})
		b.add(row{figure: "… MB per second of the program's CPU", target: "≥ 100", ratio: fmt.Sprintf("%.0f", perCore), verdict: atLeast(perCore, 100)})
		b.add(row{figure: "… against jq -c .", target: "≥ 3", ratio: fmt.Sprintf("%.1f", jqCPU.Seconds()/took.Seconds()), verdict: atLeast(jqCPU.Seconds()/took.Seconds(), 3), ours: took.Round(time.Millisecond).String(), bare: jqCPU.Round(time.Millisecond).String()})
		b.add(row{figure: "… memory, MiB", target: "≤ 64", ratio: fmt.Sprintf("%.0f", float64(memory)/(1<<20)), verdict: atMost(float64(memory)/(1<<20), 64)})
	}

	// A server that is read as fast as it can be.
	if err := b.super(ctx, d.name, "create table bench_accounts as select i as aid, 0 as abalance from generate_series(1, 100000) i", "create unique index on bench_accounts (aid)",
		"grant select on bench_accounts to custody_app", fmt.Sprintf("alter role custody_app in database %s set pgaudit.log = 'read'", pgx.Identifier{d.name}.Sanitize()),
		fmt.Sprintf("alter role custody_app in database %s set log_error_verbosity = verbose", pgx.Identifier{d.name}.Sanitize())); err != nil {
		return err
	}
	logs := d.stack.LogDir()
	if _, _, _, err := ship(ctx, logs, "load"); err != nil {
		return err
	}
	before := logSize(logs)
	s := script{login: "custody_app", text: "\\set aid random(1, 100000)\nselect abalance from bench_accounts where aid = :aid;\n", beside: func(ctx context.Context) error {
		for ctx.Err() == nil {
			if _, _, _, err := ship(context.WithoutCancel(ctx), logs, "load"); err != nil {
				return err
			}
		}
		return nil
	}}
	tps, err := d.pgbench(ctx, s, 8, load)
	if err != nil {
		return err
	}
	ended := time.Now()
	if _, _, _, err := ship(ctx, logs, "load"); err != nil {
		return err
	}
	behind := time.Since(ended)
	var events, gaps int64
	pool, err := d.pool(ctx, runnerLogin)
	if err != nil {
		return err
	}
	defer pool.Close()
	err = jobs.InContext(ctx, pool, jobs.Scope{Tenant: jobs.SystemTenant, Actor: "bench"}, func(tx pgx.Tx) error {
		return tx.QueryRow(ctx, "select (select count(*) from custody_data.access_events e join custody_data.log_batches b on b.number = e.batch where b.source = 'load' and e.kind = 'statement'), (select count(*) from custody_data.log_findings f where f.source = 'load' and f.kind in ('gap', 'lost_file'))").Scan(&events, &gaps)
	})
	if err != nil {
		return err
	}
	b.add(row{figure: "seconds behind a server at full read load", target: "≤ 10", ratio: fmt.Sprintf("%.1f", behind.Seconds()), verdict: atMost(behind.Seconds(), 10),
		note: fmt.Sprintf("8 clients, %.0f audited reads/s for %s, %d MB of log; %d statements shipped, %d gaps", tps, load, (logSize(logs)-before)>>20, events, gaps)})
	return nil
}

// copyFloor says how long the server takes for the same rows at least.
func copyFloor(ctx context.Context, b *bench, database string) (time.Duration, error) {
	const copied = "do $$ begin execute format('copy %s %%L (format binary)', current_setting('data_directory') || '/bench_floor.copy'); end $$"
	if err := b.super(ctx, database, "create table bench_floor (like custody_data.access_events including indexes including constraints)",
		fmt.Sprintf(copied, "(select * from custody_data.access_events) to")); err != nil {
		return 0, err
	}
	started := time.Now()
	if err := b.super(ctx, database, fmt.Sprintf(copied, "bench_floor from")); err != nil {
		return 0, err
	}
	took := time.Since(started)
	return took, b.super(ctx, database, "drop table bench_floor")
}

// bareTools says what others take to only read, to hash and to compress the same bytes.
func bareTools(ctx context.Context, file string, size int64) (note string, err error) {
	note = "; MB per second of CPU with the same file:"
	for _, tool := range [][]string{{"cat"}, {"sha256sum"}, {"zstd", "-1", "--single-thread", "-c", "-q"}} {
		cmd := exec.CommandContext(ctx, tool[0], append(tool[1:], file)...)
		if err := cmd.Run(); err != nil {
			return "", fmt.Errorf("%s: %w", tool[0], err)
		}
		note += fmt.Sprintf(" %s %.0f,", tool[0], float64(size)/1e6/max(cmd.ProcessState.UserTime()+cmd.ProcessState.SystemTime(), time.Millisecond).Seconds())
	}
	return strings.TrimSuffix(note, ","), nil
}

// writeLog writes a log of a size.
func writeLog(dir string, size int64, line func(int) string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	file, err := os.Create(filepath.Join(dir, "a.json"))
	if err != nil {
		return err
	}
	defer file.Close()
	var chunk bytes.Buffer
	written := int64(0)
	for n := 0; written < size; n++ {
		chunk.WriteString(line(n))
		if chunk.Len() > 1<<20 {
			written += int64(chunk.Len())
			if _, err := chunk.WriteTo(file); err != nil {
				return err
			}
		}
	}
	return file.Close()
}

// auditedLine is what the server writes of a read of pgbench's; of 16 sessions in turn.
func auditedLine(n int) string {
	return strings.TrimSuffix(logLine(n, fmt.Sprintf("AUDIT: SESSION,%d,1,READ,SELECT,,,SELECT abalance FROM pgbench_accounts WHERE aid = $1;,<not logged>", n/16+1)), "}\n") +
		",\"func_name\":\"log_audit_event\",\"file_name\":\"pgaudit.c\",\"file_line_num\":783}\n"
}

func plainLine(n int) string {
	return strings.TrimSuffix(logLine(n, "automatic analyze of table \\\"custody.public.pgbench_history\\\"; avg read rate: 0.000 MB/s, avg write rate: 0.000 MB/s"), "}\n") +
		",\"func_name\":\"do_analyze_rel\",\"file_name\":\"analyze.c\",\"file_line_num\":783}\n"
}

func logLine(n int, message string) string {
	at := time.Date(2026, 11, 21, 22, 0, 0, 0, time.UTC).Add(time.Duration(n) * 50 * time.Microsecond)
	return fmt.Sprintf(`{"timestamp":"%s UTC","user":"custody_app","dbname":"bench_shipping","pid":%d,"remote_host":"127.0.0.1","remote_port":%d,"session_id":"6b021e4d.%x","line_num":%d,`+
		`"ps":"SELECT","session_start":"2026-11-21 21:59:59 UTC","vxid":"%d/%d","txid":0,"error_severity":"LOG","message":"%s","application_name":"pgbench","backend_type":"client backend","query_id":-5817492036918223000}`+"\n",
		at.Format("2006-01-02 15:04:05.000"), 4000+n%16, 40000+n%16, 4000+n%16, n/16+1, 3+n%16, n/16+1, message)
}

func logSize(dir string) (size int64) {
	names, _ := filepath.Glob(filepath.Join(dir, "*.json"))
	for _, name := range names {
		if info, err := os.Stat(name); err == nil {
			size += info.Size()
		}
	}
	return size
}
