package retrieve

import (
	"errors"
	"io"
	"iter"

	"filippo.io/age"

	"pgcustody/jobs/segment"
)

const (
	// chunkBytes of lines are handed over at a time, by a few chunks in turn. The first
	// ones are smaller, so that whoever waits sees something soon.
	chunkBytes = 256 << 10
	firstBytes = 16 << 10
	chunksUsed = 4
)

// chunk is a piece of an object: whole lines.
type chunk struct {
	text []byte
	ends []int
}

func (c *chunk) lines() iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		from := 0
		for _, end := range c.ends {
			if !yield(c.text[from:end:end]) {
				return
			}
			from = end
		}
	}
}

// chunks reads an object beside whoever takes its lines.
type chunks struct {
	// full is closed at the end; sums and err are to be read then.
	full, free chan *chunk
	sums       segment.Sums
	err        error
	stopped    chan struct{}
}

var errStopped = errors.New("stopped")

func newChunks(object io.Reader, identities []age.Identity) *chunks {
	c := &chunks{full: make(chan *chunk, chunksUsed), free: make(chan *chunk, chunksUsed), stopped: make(chan struct{})}
	for range chunksUsed {
		c.free <- &chunk{}
	}
	go c.read(object, identities)
	return c
}

func (c *chunks) read(object io.Reader, identities []age.Identity) {
	defer close(c.full)
	var here *chunk
	limit := firstBytes
	c.sums, c.err = segment.Read(object, identities, func(line []byte) error {
		if here == nil {
			select {
			case here = <-c.free:
				here.text, here.ends = here.text[:0], here.ends[:0]
			case <-c.stopped:
				return errStopped
			}
		}
		here.text = append(here.text, line...)
		here.ends = append(here.ends, len(here.text))
		if len(here.text) >= limit {
			c.full <- here // has room for all that there are
			here, limit = nil, chunkBytes
		}
		return nil
	})
	if here != nil {
		c.full <- here
	}
}

// stop ends the reading, if it goes on, and waits for it.
func (c *chunks) stop(object io.Closer) {
	close(c.stopped)
	_ = object.Close() // a read that waits for the network ends
	for range c.full { //nolint:revive // what is left is of no use
	}
}
