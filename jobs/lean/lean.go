// Package lean keeps the heap small while work goes on that reads or writes very much
// by buffers that are used again and again: there is little garbage, and by default it
// would be let grow to as much as the buffers are.
package lean

import (
	"runtime/debug"
	"sync"
)

// percent of what is in use that garbage may come to.
const percent = 10

var (
	mu     sync.Mutex
	users  int
	before int
)

// Heap keeps garbage small until what it returns is called, for this user and every
// other one of the process.
func Heap() (done func()) {
	mu.Lock()
	defer mu.Unlock()
	if users++; users == 1 {
		before = debug.SetGCPercent(percent)
	}
	return func() {
		mu.Lock()
		defer mu.Unlock()
		if users--; users == 0 {
			debug.SetGCPercent(before)
		}
	}
}
