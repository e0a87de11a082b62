package retrieve

import (
	"errors"
	"io"

	"filippo.io/age"

	"pgcustody/jobs/segment"
)

const (
	// chunkBytes of lines are handed over at a time, by a few chunks in turn. The first
	// one is smaller, so that whoever waits sees something soon.
	chunkBytes = 256 << 10
	firstBytes = 16 << 10
	chunksUsed = 6
	// hashers work beside whoever decrypts and whoever takes the lines: hashing costs
	// the most.
	hashers = 2
)

// chunk is a piece of an object: whole lines, and what is known of each.
type chunk struct {
	text  []byte
	lines []line
	// hashed is told when hashes and entries are there.
	hashed chan struct{}
}

type line struct {
	from, end int
	hash      segment.SHA256
	entry     segment.Entry
	readable  bool
}

func (c *chunk) lineText(l *line) []byte { return c.text[l.from:l.end:l.end] }

func (c *chunk) hash(hasher *segment.Hasher) {
	for i := range c.lines {
		l := &c.lines[i]
		text := c.lineText(l)
		l.hash = hasher.Leaf(text)
		l.entry, l.readable = segment.ParseEntry(text)
	}
	c.hashed <- struct{}{}
}

// chunks reads an object beside whoever takes its lines.
type chunks struct {
	// full has the chunks in order and is closed at the end; sums and err are to be read
	// then. Of each hashed must be waited for, and it is given back to free.
	full, free chan *chunk
	sums       segment.Sums
	err        error

	work    chan *chunk
	stopped chan struct{}
}

var errStopped = errors.New("stopped")

func newChunks(object io.Reader, identities []age.Identity) *chunks {
	c := &chunks{full: make(chan *chunk, chunksUsed), free: make(chan *chunk, chunksUsed), work: make(chan *chunk, chunksUsed), stopped: make(chan struct{})}
	for range chunksUsed {
		c.free <- &chunk{hashed: make(chan struct{}, 1)}
	}
	for range hashers {
		go func() {
			hasher := segment.NewHasher()
			for chunk := range c.work {
				chunk.hash(hasher)
			}
		}()
	}
	go c.read(object, identities)
	return c
}

func (c *chunks) read(object io.Reader, identities []age.Identity) {
	defer close(c.full)
	defer close(c.work)
	var here *chunk
	limit := firstBytes
	hand := func() {
		// Both have room for all that there are.
		c.work <- here
		c.full <- here
		here, limit = nil, chunkBytes
	}
	c.sums, c.err = segment.Read(object, identities, func(text []byte) error {
		if here == nil {
			select {
			case here = <-c.free:
				here.text, here.lines = here.text[:0], here.lines[:0]
			case <-c.stopped:
				return errStopped
			}
		}
		from := len(here.text)
		here.text = append(here.text, text...)
		here.lines = append(here.lines, line{from: from, end: len(here.text)})
		if len(here.text) >= limit {
			hand()
		}
		return nil
	})
	if here != nil {
		hand()
	}
}

// stop ends the reading, if it goes on, and waits for it.
func (c *chunks) stop(object io.Closer) {
	close(c.stopped)
	_ = object.Close() // a read that waits for the network ends
	for left := range c.full {
		<-left.hashed
	}
}
