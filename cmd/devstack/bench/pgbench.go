package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"time"
)

// script is a transaction that pgbench repeats, as a login of its own.
type script struct {
	name  string
	login string
	text  string
	// beside works until its context ends, which it does with the script.
	beside func(context.Context) error
}

// race lets scripts run one after the other, round after round, and returns the
// transactions per second of each by round. The order changes with the round, so
// that no script always follows the same one.
func (d *database) race(ctx context.Context, scripts []script, clients, rounds int, each time.Duration) ([][]float64, error) {
	tps := make([][]float64, len(scripts))
	for r := range rounds {
		for i := range scripts {
			i = (i + r) % len(scripts)
			n, err := d.pgbench(ctx, scripts[i], clients, each)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", scripts[i].name, err)
			}
			d.log.Debug("round", "script", scripts[i].name, "clients", clients, "tps", n)
			tps[i] = append(tps[i], n)
		}
	}
	return tps, nil
}

// unlockScript unlocks a transaction of a script; pgbench binds the variable.
const unlockScript = "select custody.unlock(decode(:kek, 'hex'));\n"

var tpsLine = regexp.MustCompile(`(?m)^tps = ([0-9.]+)`)

// pgbench repeats one script, whose variable first is 1 where a session begins, and
// returns transactions per second without the time that connecting took.
func (d *database) pgbench(ctx context.Context, s script, clients int, each time.Duration) (tps float64, err error) {
	dir, err := os.MkdirTemp("", "pgcustody-pgbench-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "script.sql")
	if err := os.WriteFile(file, []byte(s.text), 0o600); err != nil {
		return 0, err
	}
	// The key of a stack that is thrown away may stand in the arguments of a process.
	// A quick run goes by transactions: on a busy machine a second may pass without one.
	length := fmt.Sprintf("--time=%d", max(int(each.Seconds()), 1))
	if d.quick {
		length = "--transactions=25"
	}
	cmd := d.pgProgram(ctx, s.login, "pgbench", "--no-vacuum", "--protocol=prepared", "--file="+file, "--define=kek="+hex.EncodeToString(d.kek.Bytes()), "--define=first=1",
		fmt.Sprintf("--client=%d", clients), fmt.Sprintf("--jobs=%d", min(clients, max(runtime.NumCPU()/2, 1))), length)
	if s.beside != nil {
		beside, end := context.WithCancel(ctx)
		ended := make(chan error, 1)
		go func() { ended <- s.beside(beside) }()
		defer func() { end(); err = errors.Join(err, <-ended) }()
	}
	var out, problems bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problems
	if err := cmd.Run(); err != nil {
		return 0, fmt.Errorf("pgbench: %w: %s", err, problems.String())
	}
	found := tpsLine.FindSubmatch(out.Bytes())
	if found == nil {
		return 0, fmt.Errorf("pgbench: no result: %s", out.String())
	}
	return strconv.ParseFloat(string(found[1]), 64)
}
