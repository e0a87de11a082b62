package logship

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"pgcustody/jobs/serverlog"
)

// File is a log file as a listing has it.
type File struct {
	Name     string
	Size     int64
	Modified time.Time
}

// Handle is an open log file.
type Handle interface {
	io.ReaderAt
	io.Closer
	// Size now.
	Size() (int64, error)
}

// Source is where log files are.
type Source interface {
	// List returns all files, in any order.
	List(ctx context.Context) ([]File, error)
	// Open opens one; fs.ErrNotExist where it is gone.
	Open(ctx context.Context, name string) (Handle, error)
}

// Dir is a directory, which the runner's process reads.
type Dir string

// List returns its files.
func (d Dir) List(context.Context) ([]File, error) {
	entries, err := os.ReadDir(string(d))
	if err != nil {
		return nil, fmt.Errorf("list logs: %w", err)
	}
	var files []File
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil || !info.Mode().IsRegular() {
			continue // it is gone, or none of the server's
		}
		files = append(files, File{entry.Name(), info.Size(), info.ModTime()})
	}
	return files, nil
}

type dirFile struct{ *os.File }

func (f dirFile) Size() (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// Open opens one of its files.
func (d Dir) Open(_ context.Context, name string) (Handle, error) {
	if name != filepath.Base(name) {
		return nil, fs.ErrNotExist
	}
	file, err := os.Open(filepath.Join(string(d), name))
	if err != nil {
		return nil, err
	}
	return dirFile{file}, nil
}

// Server reads through a connection, where pg_ls_logdir and pg_read_binary_file are
// granted: managed hosts offer no other way.
type Server struct {
	Conn interface {
		Query(context.Context, string, ...any) (pgx.Rows, error)
		QueryRow(context.Context, string, ...any) pgx.Row
	}
}

// List returns the files in log_directory.
func (s Server) List(ctx context.Context) ([]File, error) {
	rows, err := s.Conn.Query(ctx, "select l.name, l.size, l.modification from pg_catalog.pg_ls_logdir() l")
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (f File, err error) {
		err = row.Scan(&f.Name, &f.Size, &f.Modified)
		return f, err
	})
}

// Open returns a file that is read piece by piece.
func (s Server) Open(ctx context.Context, name string) (Handle, error) {
	f := &serverFile{ctx: ctx, server: s, name: name}
	if name != path.Base(name) {
		return nil, fs.ErrNotExist
	}
	_, err := f.Size()
	return f, err
}

type serverFile struct {
	ctx    context.Context //nolint:containedctx // ReadAt has none
	server Server
	name   string
}

func (f *serverFile) Close() error { return nil }

func (f *serverFile) Size() (size int64, err error) {
	var found *int64
	err = f.server.Conn.QueryRow(f.ctx, "select s.size from pg_catalog.pg_stat_file(pg_catalog.current_setting('log_directory') || '/' || $1::text, true) s", f.name).Scan(&found)
	if err == nil && found == nil {
		return 0, fs.ErrNotExist
	}
	if err != nil {
		return 0, err
	}
	return *found, nil
}

func (f *serverFile) ReadAt(p []byte, off int64) (n int, err error) {
	for n < len(p) {
		piece := min(len(p)-n, 1<<20)
		var got []byte
		err := f.server.Conn.QueryRow(f.ctx, "select pg_catalog.pg_read_binary_file(pg_catalog.current_setting('log_directory') || '/' || $1::text, $2::bigint, $3::bigint, true)",
			f.name, off+int64(n), int64(piece)).Scan(&got)
		if err != nil {
			return n, err
		}
		n += copy(p[n:], got)
		if len(got) < piece {
			return n, io.EOF
		}
	}
	return n, nil
}

// suffix of the files of a format.
func suffix(f serverlog.Format) string {
	if f == serverlog.CSV {
		return ".csv"
	}
	return ".json"
}

// FormatName is log_destination's word.
func FormatName(f serverlog.Format) string {
	if f == serverlog.CSV {
		return "csvlog"
	}
	return "jsonlog"
}

// logs are the files of a format, the oldest first. Of files that rotation gave a number
// or a date behind their suffix too.
func logs(files []File, format serverlog.Format) []File {
	files = slices.DeleteFunc(slices.Clone(files), func(f File) bool {
		at := strings.LastIndex(f.Name, suffix(format))
		rest := ""
		if at >= 0 {
			rest = f.Name[at+len(suffix(format)):]
		}
		return at < 0 || rest != "" && rest[0] != '.' && rest[0] != '-' || strings.HasSuffix(rest, ".gz") || strings.HasSuffix(rest, ".zst")
	})
	slices.SortStableFunc(files, func(a, b File) int {
		return cmp.Or(a.Modified.Compare(b.Modified), strings.Compare(a.Name, b.Name))
	})
	return files
}

// Choose tells which format there is: jsonlog, or csvlog where only that is written. A
// server that writes both does so at once: a file of jsonlog that has been left behind,
// or is none, says nothing.
func Choose(files []File) (serverlog.Format, bool) {
	json, csv := logs(files, serverlog.JSON), logs(files, serverlog.CSV)
	if len(csv) > 0 && (len(json) == 0 || csv[len(csv)-1].Modified.Sub(json[len(json)-1].Modified) > time.Minute) {
		return serverlog.CSV, true
	}
	return serverlog.JSON, len(json) > 0
}

// Place is how far a source was read.
type Place struct {
	File string
	serverlog.FilePlace
}

// Position is what is to be read next.
type Position struct {
	Place    Place
	File     Handle
	Size     int64
	Complete bool // it will not grow
	Next     string
	Newest   bool // nothing comes behind Next
	Findings []Finding
}

// Locate finds the file that a place is in, whatever its name is now, and what comes
// behind it. last is the time of the last line that was read. It returns nil where
// there is no log at all.
func Locate(ctx context.Context, src Source, format serverlog.Format, place Place, last time.Time, state *State) (*Position, error) {
	files, err := src.List(ctx)
	if err != nil {
		return nil, err
	}
	files = logs(files, format)
	if len(files) == 0 {
		if place.File == "" {
			return nil, nil
		}
		return nil, fmt.Errorf("no log file is left: %w", fs.ErrNotExist)
	}
	p := &Position{}
	at := -1
	if place.File != "" {
		if at, err = p.find(ctx, src, files, place); err != nil {
			return nil, err
		}
	}
	if at < 0 {
		// The oldest that has something new.
		at = 0
		if place.File != "" {
			at = slices.IndexFunc(files, func(f File) bool { return f.Modified.After(last) })
			if at < 0 {
				at = len(files) - 1
			}
		}
		if err := p.open(ctx, src, files[at].Name, serverlog.FilePlace{}); err != nil {
			return nil, err
		}
	}
	return p, p.settle(ctx, src, files[at:], state)
}

func (p *Position) open(ctx context.Context, src Source, name string, place serverlog.FilePlace) error {
	if p.File != nil {
		_ = p.File.Close()
	}
	file, err := src.Open(ctx, name)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	p.File, p.Place = file, Place{name, place}
	p.Size, err = file.Size()
	return err
}

// find looks for the file of a place: under its name, else under any.
func (p *Position) find(ctx context.Context, src Source, files []File, place Place) (at int, err error) {
	order := slices.Clone(files)
	slices.SortStableFunc(order, func(a, b File) int {
		rank := func(f File) int {
			if f.Name == place.File {
				return 0
			}
			return 1
		}
		return rank(a) - rank(b)
	})
	kind, expected, found := "lost_file", place.Offset, int64(0)
	for _, f := range order {
		// A place at the beginning of a file says nothing about what stands in it.
		if place.Offset == 0 && f.Name != place.File {
			continue
		}
		if err := p.open(ctx, src, f.Name, place.FilePlace); err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			return 0, err
		}
		what, err := place.Check(p.File, p.Size)
		if err != nil {
			return 0, fmt.Errorf("check log file: %w", err)
		}
		if len(what) == 0 {
			return slices.IndexFunc(files, func(g File) bool { return g.Name == f.Name }), nil
		}
		if f.Name == place.File {
			kind, expected, found = "replaced", place.Offset, p.Size
			if what[0].Kind == serverlog.Truncated {
				kind = "truncated"
			}
		}
	}
	if p.File != nil {
		_ = p.File.Close()
		p.File = nil
	}
	p.Findings = append(p.Findings, Finding{Kind: kind, From: expected, To: found, N: 1, Detail: map[string]string{"file": place.File}})
	return -1, nil
}

// settle goes on to the next file where this one has been read and another follows.
func (p *Position) settle(ctx context.Context, src Source, files []File, state *State) (err error) {
	for i := range files {
		p.Complete, p.Next = i+1 < len(files), ""
		if p.Place.Offset == 0 {
			if known := state.known(p.File, p.Size); known != nil {
				p.Findings = append(p.Findings, Finding{Kind: "repeat", From: 0, To: known.Offset, N: 1, Detail: map[string]string{"file": p.Place.File, "same_as": known.File}})
				p.Place.FilePlace = known.FilePlace
			}
		}
		if !p.Complete {
			return nil
		}
		p.Next, p.Newest = files[i+1].Name, i+2 == len(files)
		// It may have grown between the listing and the beginning of the next one.
		if p.Size, err = p.File.Size(); err != nil || p.Place.Offset < p.Size {
			return err
		}
		state.Finish(p.Place)
		if err := p.open(ctx, src, p.Next, serverlog.FilePlace{}); err != nil {
			return err
		}
	}
	return nil
}
