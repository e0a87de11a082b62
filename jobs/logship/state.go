package logship

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/klauspost/compress/zstd"

	"pgcustody/jobs/serverlog"
)

// State is what the lines to come are joined with and checked against.
type State struct {
	Since    time.Time                `json:"since"`
	Latest   time.Time                `json:"latest"`
	Sessions []serverlog.SessionPlace `json:"sessions"`
	Contexts map[string]*Context      `json:"contexts"`
	// Done are files that were read to their end, the newest last.
	Done []Place `json:"done"`
}

// Context is what a transaction said of itself.
type Context struct {
	VXID    string `json:"vxid"`
	Tenant  string `json:"tenant"`
	Actor   string `json:"actor"`
	Purpose string `json:"purpose,omitempty"`
	Subject string `json:"subject,omitempty"`
	Role    string `json:"role,omitempty"`
	Xact    int64  `json:"xact,omitempty"`
}

// doneKept is how many files are remembered: as many as anybody leaves in a directory.
const doneKept = 1000

// known is a file that was read and is this one, or its beginning.
func (s *State) known(file io.ReaderAt, size int64) *Place {
	for i := len(s.Done) - 1; i >= 0; i-- {
		done := &s.Done[i]
		if done.Offset == 0 || size < done.Offset {
			continue
		}
		if found, err := done.Check(file, size); err == nil && len(found) == 0 {
			return done
		}
	}
	return nil
}

// Finish remembers a file that was read to its end.
func (s *State) Finish(place Place) {
	if place.Offset == 0 {
		return
	}
	for _, done := range s.Done {
		if done == place {
			return
		}
	}
	if len(s.Done) == doneKept {
		s.Done = append(s.Done[:0], s.Done[1:]...)
	}
	s.Done = append(s.Done, place)
}

// Marshal writes the state down.
func (s *State) Marshal() ([]byte, error) {
	var b bytes.Buffer
	w := encoders.Get().(*zstd.Encoder) //nolint:forcetypeassert // it has no others
	w.Reset(&b)
	if err := errors.Join(json.NewEncoder(w).Encode(s), w.Close()); err != nil {
		return nil, err
	}
	encoders.Put(w)
	return b.Bytes(), nil
}

// ParseState reads a state; of no bytes, the first.
func ParseState(b []byte) (*State, error) {
	s := &State{Contexts: map[string]*Context{}}
	if len(b) == 0 {
		return s, nil
	}
	r, err := zstd.NewReader(bytes.NewReader(b), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(256<<20))
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if err := json.NewDecoder(r).Decode(s); err != nil {
		return nil, fmt.Errorf("state of the log's source: %w", err)
	}
	if s.Contexts == nil {
		s.Contexts = map[string]*Context{}
	}
	return s, nil
}
