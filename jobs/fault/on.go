//go:build faults

// Package fault kills the process at a step of its work, so that tests can see what
// the next run makes of it. It does so only in binaries that are built with the tag
// faults, which no release is; in others Point is nothing.
package fault

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

var (
	// PGCUSTODY_FAULT=step#n is the n-th time that the step is passed, #n the n-th
	// point of all; without #n it is the first. PGCUSTODY_FAULT_TRACE names a file to
	// which every point that is passed is appended.
	step, nth = func() (string, int) {
		name, number, counted := strings.Cut(os.Getenv("PGCUSTODY_FAULT"), "#")
		n, err := strconv.Atoi(number)
		if !counted || err != nil {
			n = 1
		}
		return name, n
	}()
	wanted = os.Getenv("PGCUSTODY_FAULT") != ""
	trace  = os.Getenv("PGCUSTODY_FAULT_TRACE")

	mu     sync.Mutex
	passed int
)

// Point is passed before or after a step. It does not return where the process is to
// end.
func Point(name string) {
	mu.Lock()
	defer mu.Unlock()
	if trace != "" {
		file, err := os.OpenFile(trace, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			panic(err)
		}
		fmt.Fprintln(file, name)
		if err := file.Close(); err != nil {
			panic(err)
		}
	}
	if !wanted || step != "" && step != name {
		return
	}
	if passed++; passed == nth {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
}
