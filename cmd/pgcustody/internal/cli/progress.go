package cli

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"pgcustody/jobs"
)

// progress draws one line that says how far the jobs are, on a terminal only.
type progress struct {
	mu    sync.Mutex
	out   io.Writer
	drawn time.Time
	width int
	now   func() time.Time
}

// newProgress is nil, and draws nothing, where standard error is no terminal or
// the output is for a machine.
func (a *App) newProgress() *progress {
	if !a.Terminal || a.JSON {
		return nil
	}
	return &progress{out: a.Err, now: time.Now}
}

const (
	barWidth = 24
	redraw   = 100 * time.Millisecond
)

// Show draws p, at most ten times a second, and always when it is the last.
func (b *progress) Show(p jobs.Progress) {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	last := p.Total > 0 && p.Done >= p.Total
	if !last && b.now().Sub(b.drawn) < redraw {
		return
	}
	b.drawn = b.now()
	line := fmt.Sprintf("%s: %d %s", p.Job, p.Done, p.Unit)
	if p.Total > 0 {
		filled := int(min(p.Done, p.Total) * barWidth / p.Total)
		line = fmt.Sprintf("%s [%s%s] %d/%d %s", p.Job, strings.Repeat("#", filled), strings.Repeat(".", barWidth-filled), p.Done, p.Total, p.Unit)
	}
	pad := max(b.width-len(line), 0)
	b.width = len(line)
	fmt.Fprintf(b.out, "\r%s%s", line, strings.Repeat(" ", pad))
}

// Done takes the line away.
func (b *progress) Done() {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.width > 0 {
		fmt.Fprintf(b.out, "\r%s\r", strings.Repeat(" ", b.width))
		b.width = 0
	}
}
