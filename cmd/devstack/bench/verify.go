package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"filippo.io/age"

	"pgcustody/jobs/agekeys"
	"pgcustody/jobs/ledger"
	"pgcustody/jobs/segment"
	"pgcustody/jobs/store"
	"pgcustody/jobs/verify"
)

const ledgerOrigin = "example.com/bench"

// auditor runs pgcustody as the anchor and as who verifies: against a database and a
// bucket of its own, by the program that stands beside this one.
type auditor struct {
	d      *database
	env    []string
	store  string
	vkey   string
	folder string
}

func (d *database) newAuditor(ctx context.Context) (_ *auditor, err error) {
	a := &auditor{d: d}
	if a.folder, err = os.MkdirTemp("", "pgcustody-bench-"); err != nil {
		return nil, err
	}
	bucket := fmt.Sprintf("bench-%x", time.Now().UnixNano())
	if err := d.stack.NewBucket(ctx, bucket, true); err != nil {
		a.close()
		return nil, err
	}
	signer, err := ledger.InitSigner(filepath.Join(a.folder, "signer"), ledgerOrigin, time.Now()) //nolint:contextcheck // it takes none
	if err != nil {
		a.close()
		return nil, err
	}
	defer signer.Close()
	a.store, a.vkey = "s3://"+bucket, signer.VerifierKeys()[0].Key
	settings := d.stack.Env()
	settings["PGDATABASE"], settings["PGCUSTODY_STORE"], settings["PGCUSTODY_SIGNER"] = d.name, a.store, filepath.Join(a.folder, "signer")
	a.env = os.Environ()
	for name, value := range settings {
		a.env = append(a.env, name+"="+value)
	}
	return a, nil
}

func (a *auditor) close() { _ = os.RemoveAll(a.folder) }

// run runs a command of pgcustody and returns what it printed, how long it took, and
// the most memory that it held.
func (a *auditor) run(ctx context.Context, env []string, args ...string) (out []byte, took time.Duration, memory int64, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, 0, 0, err
	}
	cmd := exec.CommandContext(ctx, filepath.Join(filepath.Dir(self), "pgcustody"), args...)
	cmd.Env = slices.Concat(a.env, env)
	var output, problems bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &problems
	started := time.Now()
	if err := cmd.Start(); err != nil {
		return nil, 0, 0, err
	}
	var allocated int64
	watched := make(chan struct{})
	watching, stop := context.WithCancel(ctx)
	go func() {
		memory, allocated = highWater(watching, cmd.Process.Pid)
		close(watched)
	}()
	err = cmd.Wait()
	took = time.Since(started)
	stop()
	<-watched
	out = output.Bytes()
	if err != nil {
		return out, 0, 0, fmt.Errorf("pgcustody %s: %w: %s%s", strings.Join(args, " "), err, out, problems.String())
	}
	a.d.log.Info("ran", "command", "pgcustody "+strings.Join(args, " "), "duration", took.Round(time.Millisecond), "resident_mib", memory>>20, "allocated_mib", allocated>>20)
	return out, took, memory, nil
}

// highWater is the most memory that a process held, with the pages of its program's
// file, and how much of it the process had allocated, by the time its watcher's context
// ends. What the kernel says of a process that ended has in it what its parent held when
// it began.
func highWater(ctx context.Context, pid int) (resident, allocated int64) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		var kib int64
		status := fmt.Sprintf("/proc/%d/status", pid)
		if _, err := fmt.Sscanf(procLine(status, "RssAnon"), "%d kB", &kib); err == nil {
			allocated = max(allocated, kib<<10)
		}
		if _, err := fmt.Sscanf(procLine(status, "VmHWM"), "%d kB", &kib); err == nil {
			resident = max(resident, kib<<10)
		}
		select {
		case <-ctx.Done():
			return resident, allocated
		case <-tick.C:
		}
	}
}

// verify verifies, which must find nothing.
func (a *auditor) verify(ctx context.Context, env []string, args ...string) (report verify.Report, took time.Duration, memory int64, err error) {
	out, took, memory, err := a.run(ctx, env, append([]string{"verify", "--json", "--vkey", a.vkey}, args...)...)
	if err != nil {
		return report, 0, 0, err
	}
	return report, took, memory, json.Unmarshal(out, &report)
}

// ledgerVerification verifies the database on one core, then archives it and verifies the bucket alone.
func (d *database) ledgerVerification(ctx context.Context, a *auditor) error {
	report, took, memory, err := a.verify(ctx, []string{"PGUSER=custody_dump", "PGPASSWORD=" + d.stack.Passwords["custody_dump"], "GOMAXPROCS=1"})
	if err != nil {
		return err
	}
	rate := float64(report.Events) / took.Seconds()
	d.add(row{figure: "verification of the database, events", target: "≥ 200000/s", ratio: perSecond(rate), verdict: atLeast(rate, 200_000), ours: took.Round(time.Second / 10).String(),
		note: fmt.Sprintf("%d events in one thread, a server process beside it; pgcustody verify from start to end", report.Events)})
	mib := float64(memory) / (1 << 20)
	d.add(row{figure: "… memory", target: "< 64 MiB", ratio: fmt.Sprintf("%.0f MiB", mib), verdict: atMost(mib, 64), note: "of the process at most"})

	for _, command := range [][]string{{"archive", "run"}, {"anchor"}} {
		if _, _, _, err := a.run(ctx, nil, command...); err != nil {
			return err
		}
	}
	if report, took, memory, err = a.verify(ctx, nil, "--from-objects", "--identity", a.d.stack.ArchiveIdentity()); err != nil {
		return err
	}
	files, size, err := a.fetch(ctx)
	if err != nil {
		return err
	}
	started := time.Now()
	cmd := exec.CommandContext(ctx, "sh", append([]string{"-c", `zstd -qdc "$@" | sha256sum`, "sh"}, files...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("zstd and sha256sum: %w: %s", err, out)
	}
	bare := time.Since(started)
	r := bare.Seconds() / took.Seconds()
	d.add(row{figure: "verification of the bucket, against zstd -dc | sha256sum", target: "≥ 0.60", ratio: fmt.Sprintf("%.2f", r), verdict: atLeast(r, 0.6),
		ours: took.Round(time.Second / 10).String(), bare: bare.Round(time.Second / 10).String(),
		note: fmt.Sprintf("%d archived events in %d segments of %d bytes, tiles and checkpoints too, read from the store; the other reads the segments from files. Memory %d MiB", report.Archived, len(files), size, memory>>20)})
	return nil
}

// fetch copies the segments into files, as they are compressed.
func (a *auditor) fetch(ctx context.Context) (files []string, size int64, err error) {
	for name, value := range a.d.stack.Env() {
		if strings.HasPrefix(name, "AWS_") {
			if err := os.Setenv(name, value); err != nil {
				return nil, 0, err
			}
		}
	}
	from, err := store.OpenURL(ctx, a.store)
	if err != nil {
		return nil, 0, err
	}
	identities, err := agekeys.ReadIdentities("archive", a.d.stack.ArchiveIdentity())
	if err != nil {
		return nil, 0, err
	}
	for object, err := range from.List(ctx, segment.Prefix) {
		if err != nil {
			return nil, 0, err
		}
		if name, err := segment.ParseKey(object.Key); err != nil || object.Key != name.ObjectKey() {
			continue
		}
		file := filepath.Join(a.folder, strconv.Itoa(len(files))+".zst")
		n, err := openObject(ctx, from, object.Key, identities, file)
		if err != nil {
			return nil, 0, err
		}
		files, size = append(files, file), size+n
	}
	return files, size, nil
}

// openObject copies what an object of the archive holds, still compressed, into a file.
func openObject(ctx context.Context, from store.Store, key string, identities []age.Identity, file string) (size int64, err error) {
	object, err := from.Get(ctx, key, "")
	if err != nil {
		return 0, err
	}
	defer object.Close()
	to, err := os.Create(file)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, to.Close()) }()
	compressed, err := age.Decrypt(object, identities...)
	if err != nil {
		return 0, err
	}
	return io.Copy(to, compressed)
}
