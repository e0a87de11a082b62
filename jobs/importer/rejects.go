package importer

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
)

// Rejects is a new file of mode 0600 that takes lines which cannot be imported, as JSON Lines of their own. A nil
// *Rejects takes none.
type Rejects struct {
	file  *os.File
	out   *bufio.Writer
	size  int64 // bytes given to out
	lines int64
}

// A rejectedLine is one line of a rejects file.
type rejectedLine struct {
	File    string `json:"file"`
	Table   string `json:"table"`
	Line    int64  `json:"line"`
	Field   string `json:"field,omitempty"`
	Code    string `json:"code"`
	Problem string `json:"problem"`
	// The line itself: as text, or where it is not UTF-8 as bytes in base64.
	Original       *string `json:"original,omitempty"`
	OriginalBase64 []byte  `json:"original_base64,omitempty"`
	Truncated      bool    `json:"truncated,omitempty"`
}

// CreateRejects makes the file, which must not be there yet: it may hold personal data of an earlier import.
func CreateRejects(path string) (*Rejects, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	switch {
	case errors.Is(err, os.ErrExist):
		return nil, &FileError{File: path, Problem: "is there already; rejects go into a new file"}
	case err != nil:
		return nil, &FileError{File: path, Problem: "cannot be made"}
	}
	return &Rejects{file: f, out: bufio.NewWriter(f)}, nil
}

// Lines is how many lines the file holds.
func (r *Rejects) Lines() int64 {
	if r == nil {
		return 0
	}
	return r.lines
}

// Close closes the file, and removes it when nothing was rejected.
func (r *Rejects) Close() error {
	if r == nil {
		return nil
	}
	err := errors.Join(r.out.Flush(), r.file.Close())
	if r.lines == 0 && err == nil {
		err = os.Remove(r.file.Name())
	}
	if err != nil {
		return fmt.Errorf("close rejects: %w", err)
	}
	return nil
}

func (r *Rejects) add(f file, bad badLine) error {
	line := rejectedLine{File: f.path, Table: f.table.name, Line: bad.line, Field: bad.field, Code: bad.code, Problem: bad.problem.text}
	text := bytes.TrimSuffix(bad.text, []byte{'\r'})
	line.Truncated = len(text) > maxLine
	if utf8.Valid(text) {
		s := string(text)
		line.Original = &s
	} else {
		line.OriginalBase64 = text
	}
	var encoded bytes.Buffer
	encoder := json.NewEncoder(&encoded)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(line); err != nil {
		return fmt.Errorf("write rejects: %w", err)
	}
	if _, err := r.out.Write(encoded.Bytes()); err != nil {
		return fmt.Errorf("write rejects: %w", err)
	}
	r.size += int64(encoded.Len())
	r.lines++
	return nil
}

// A rejectsMark is a place in the file to go back to.
type rejectsMark struct{ size, lines int64 }

func (r *Rejects) mark() rejectsMark {
	if r == nil {
		return rejectsMark{}
	}
	return rejectsMark{r.size, r.lines}
}

// rollback takes out what an import that failed has added.
func (r *Rejects) rollback(to rejectsMark) error {
	if r == nil {
		return nil
	}
	err := r.out.Flush()
	if err == nil {
		err = r.file.Truncate(to.size)
	}
	if err == nil {
		_, err = r.file.Seek(to.size, io.SeekStart)
	}
	if err != nil {
		return fmt.Errorf("take rejects back: %w", err)
	}
	r.out.Reset(r.file)
	r.size, r.lines = to.size, to.lines
	return nil
}

// sync has what was added on disk.
func (r *Rejects) sync() error {
	if r == nil {
		return nil
	}
	if err := errors.Join(r.out.Flush(), r.file.Sync()); err != nil {
		return fmt.Errorf("write rejects: %w", err)
	}
	return nil
}

// rejectRefused writes the lines that the database refused. It goes through the file a second time, because memory
// does not keep it, and makes sure that it is the same file.
func (cfg *Config) rejectRefused(ctx context.Context, tx pgx.Tx, f file, source io.ReadSeeker, sum string) error {
	rows, err := tx.Query(ctx, "select line, code, field, problem from pg_temp.import_refusals order by line")
	if err != nil {
		return fmt.Errorf("read refused lines: %w", err)
	}
	defer rows.Close()
	if _, err := source.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("read again: %w", err)
	}
	digest := sha256.New()
	in := bufio.NewReaderSize(io.TeeReader(source, digest), blockSize)
	var b block
	at, lastLine := int64(0), int64(0)
	for rows.Next() {
		var bad badLine
		if err := rows.Scan(&bad.line, &bad.code, &bad.field, &bad.problem.text); err != nil {
			return fmt.Errorf("read refused lines: %w", err)
		}
		if bad.line == lastLine {
			continue
		}
		lastLine = bad.line
		for ; at < bad.line; at++ {
			b.lines = b.lines[:0]
			if err := b.fillLine(in); err != nil && err != io.EOF {
				return fmt.Errorf("read again: %w", err)
			}
		}
		bad.text = bytes.TrimSuffix(b.lines, []byte{'\n'})
		if err := cfg.Rejects.add(f, bad); err != nil {
			return err
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("read refused lines: %w", err)
	}
	if _, err := io.Copy(io.Discard, in); err != nil {
		return fmt.Errorf("read again: %w", err)
	}
	if hex.EncodeToString(digest.Sum(nil)) != sum {
		return fileChanged(f)
	}
	return nil
}
