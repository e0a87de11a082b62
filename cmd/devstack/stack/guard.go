package stack

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// An ephemeral stack must go when its process goes, and a process that is killed
// cleans nothing up. So it starts a copy of its own program whose one task is to
// wait for the end of a pipe: the kernel closes the other side for certain.
const guardVariable = "DEVSTACK_GUARD"

func init() {
	if dir := os.Getenv(guardVariable); dir != "" {
		guard(dir)
		os.Exit(0)
	}
}

func guard(dir string) {
	_, _ = io.Copy(io.Discard, os.Stdin)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if s, err := Open(dir); err == nil {
		_ = s.Destroy(ctx)
	}
}

// guards keeps the pipes from being closed by the garbage collector.
var guards struct {
	sync.Mutex
	pipes []*os.File
}

func guardStack(dir string) error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	read, write, err := os.Pipe()
	if err != nil {
		return err
	}
	defer read.Close()
	cmd := exec.Command(exe)
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), guardVariable+"="+dir)
	cmd.Stdin = read
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		write.Close()
		return fmt.Errorf("start the stack's guard: %w", err)
	}
	guards.Lock()
	defer guards.Unlock()
	guards.pipes = append(guards.pipes, write)
	return nil
}
