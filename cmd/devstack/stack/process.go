package stack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process names a running program. Its number alone does not: numbers are
// reused. Number, start time and program together are not.
type process struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks after boot
	Exe   string `json:"exe"`
}

// identify returns the process that has a number now, provided that it runs exe.
func identify(pid int, exe string) (process, bool) {
	start, ok := startTime(pid)
	p := process{PID: pid, Start: start, Exe: exe}
	return p, ok && p.alive()
}

// alive tells whether exactly this process still runs.
func (p process) alive() bool {
	if p.PID <= 1 {
		return false
	}
	start, ok := startTime(p.PID)
	if !ok || start != p.Start {
		return false
	}
	// After an upgrade of the package the program of a running server is gone.
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", p.PID))
	return err == nil && strings.TrimSuffix(exe, " (deleted)") == p.Exe
}

// starting tells whether the process is there, be it still the shell that is
// about to become the program.
func (p process) starting() bool {
	start, ok := startTime(p.PID)
	return ok && start == p.Start
}

// startTime reads when a process started. A zombie does not count as one.
func startTime(pid int) (uint64, bool) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, false
	}
	// The program's name, in parentheses, may hold anything.
	_, rest, ok := bytes.Cut(stat[bytes.LastIndexByte(stat, ')')+1:], []byte(" "))
	fields := strings.Fields(string(rest))
	if !ok || len(fields) < 20 || fields[0] == "Z" || fields[0] == "X" {
		return 0, false
	}
	start, err := strconv.ParseUint(fields[19], 10, 64) // field 22 of the line
	return start, err == nil
}

// signals say how a program is stopped: kindly first.
type signals struct {
	kind, hard syscall.Signal
	patience   time.Duration
}

// stop stops the process, if it still runs, and waits until it is gone.
func (p process) stop(ctx context.Context, with signals) error {
	if !p.alive() {
		return nil
	}
	// The handle stays with the process that it was made for, so nothing else can
	// slip under its number between the check and the signal.
	handle, err := os.FindProcess(p.PID)
	if err != nil {
		return err
	}
	defer handle.Release()
	gone := func() error {
		if p.alive() {
			return fmt.Errorf("process %d (%s) does not stop", p.PID, p.Exe)
		}
		return nil
	}
	for _, signal := range []syscall.Signal{with.kind, with.hard} {
		if gone() == nil {
			return nil
		}
		if err := handle.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return fmt.Errorf("signal process %d (%s): %w", p.PID, p.Exe, err)
		}
		if err = retry(ctx, with.patience, gone); err == nil {
			return nil
		}
	}
	return gone()
}

// launch starts a program that outlives this one. The shell in between ends at
// once, so the program is nobody's child here: it needs no waiting for and
// leaves no zombie when it ends.
func launch(log string, env []string, exe string, args ...string) (process, error) {
	cmd := exec.Command("/bin/sh", append([]string{"-c", `log=$1; shift; "$@" </dev/null >>"$log" 2>&1 & echo $!`, "sh", log, exe}, args...)...)
	cmd.Dir = filepath.Dir(log)
	cmd.Env = env
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // no signals from our terminal
	out, err := cmd.Output()
	if err != nil {
		return process{}, fmt.Errorf("start %s: %w", exe, err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil {
		return process{}, fmt.Errorf("start %s: %w", exe, err)
	}
	start, _ := startTime(pid)
	return process{PID: pid, Start: start, Exe: exe}, nil
}

// tail returns the end of a log, for an error message.
func tail(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	const most = 2000
	return strings.TrimSpace(string(text[max(0, len(text)-most):]))
}
