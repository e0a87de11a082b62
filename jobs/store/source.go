package store

import (
	"context"
	"io"
)

// source is what is put. It ends when its context does, and tells its own failures from
// those of who reads it, and from its end: a source may fail with io.ErrUnexpectedEOF,
// which to io.ReadFull means that all is well, and half an object would be stored.
type source struct {
	ctx  context.Context
	from io.Reader
	err  error
}

func (s *source) Read(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := s.from.Read(p)
	if err != nil && err != io.EOF { //nolint:errorlint // a wrapped one is no end
		s.err = err
		return n, &failedSource{err}
	}
	return n, err
}

type failedSource struct{ err error }

func (f *failedSource) Error() string { return f.err.Error() }
func (f *failedSource) Unwrap() error { return f.err }

// error is what a Put returns that could not read on.
func (s *source) error(ctx context.Context, to place, key string) error {
	if ctx.Err() != nil {
		return to.error(ctx, "put", key, ctx.Err())
	}
	return &Error{Op: "put", Object: to.objectURL(key), Kind: ErrSource, Err: s.err}
}

// readPart fills a part from a source, and tells whether the source ends with it.
func readPart(from *source, part []byte) (n int, last bool, err error) {
	n, err = io.ReadFull(from, part)
	switch err {
	case nil:
		return n, false, nil
	case io.EOF, io.ErrUnexpectedEOF: // ReadFull's own
		return n, true, nil
	}
	return n, true, err
}
