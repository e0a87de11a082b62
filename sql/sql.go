// Package sql carries the database side of pgcustody and brings a database to it.
//
// The SQL files beside this one are embedded. In the order in which they run:
//
//	bootstrap.sql    roles, schemas and their owner; each time, as the login itself
//	versions.sql     where the migrator records what it did; once
//	00001_….sql …    versioned files, by goose; each once, each in its own transaction
//	routines/*.sql   functions, views, their grants and comments; all in one transaction,
//	                 whenever one of them or the version changed
//	River's own      migrations of the job queue, by rivermigrate, then river.sql: grants on it
//	pgaudit.sql      settings that need more rights than the login may have; reported, not
//	                 failed on, when it has not
//
// Everything but bootstrap.sql and pgaudit.sql runs as custody_owner.
package sql

import (
	"bufio"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
)

//go:embed *.sql routines/*.sql
var embedded embed.FS

// Files returns the SQL files that this binary was built with.
func Files() fs.FS { return embedded }

// migration is one versioned file.
type migration struct {
	version  int64
	name     string // as in 00003_records
	up       string // what runs, without goose's annotations
	breaking bool   // binaries that do not know this file must not go on
	sha256   string
}

// file is a file that runs as a whole.
type file struct{ name, text string }

// bundle is a read and checked set of SQL files.
type bundle struct {
	fsys       fs.FS
	bootstrap  file
	versions   file
	migrations []migration // by version
	routines   []file      // by name
	river      file
	pgaudit    file // text is empty where there is none
}

// load reads the files below fsys and refuses what the migrator does not support.
func load(fsys fs.FS) (*bundle, error) {
	b := &bundle{fsys: fsys}
	for _, f := range []struct {
		name     string
		to       *file
		optional bool
	}{
		{"bootstrap.sql", &b.bootstrap, false},
		{"versions.sql", &b.versions, false},
		{"river.sql", &b.river, false},
		{"pgaudit.sql", &b.pgaudit, true},
	} {
		text, err := fs.ReadFile(fsys, f.name)
		if err != nil && !(f.optional && errors.Is(err, fs.ErrNotExist)) {
			return nil, fmt.Errorf("read SQL files: %w", err)
		}
		*f.to = file{f.name, string(text)}
	}

	versioned, err := fs.Glob(fsys, "[0-9]*.sql")
	if err != nil {
		return nil, fmt.Errorf("read SQL files: %w", err)
	}
	for _, name := range versioned {
		m, err := loadMigration(fsys, name)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		b.migrations = append(b.migrations, m)
	}
	slices.SortFunc(b.migrations, func(x, y migration) int { return int(x.version - y.version) })
	for i, m := range b.migrations {
		if m.version != int64(i+1) {
			return nil, fmt.Errorf("%s.sql: version %d stands where %d was expected", m.name, m.version, i+1)
		}
	}
	if len(b.migrations) == 0 {
		return nil, errors.New("no versioned SQL files")
	}

	names, err := fs.Glob(fsys, "routines/*.sql")
	if err != nil {
		return nil, fmt.Errorf("read SQL files: %w", err)
	}
	slices.Sort(names)
	for _, name := range names {
		text, err := fs.ReadFile(fsys, name)
		if err != nil {
			return nil, fmt.Errorf("read SQL files: %w", err)
		}
		b.routines = append(b.routines, file{name, string(text)})
	}
	return b, nil
}

func loadMigration(fsys fs.FS, name string) (migration, error) {
	m := migration{name: strings.TrimSuffix(path.Base(name), ".sql")}
	text, err := fs.ReadFile(fsys, name)
	if err != nil {
		return m, err
	}
	number, _, ok := strings.Cut(m.name, "_")
	if m.version, err = strconv.ParseInt(number, 10, 64); err != nil || !ok || m.version < 1 {
		return m, errors.New("the name must be a version, an underscore and a title")
	}
	m.sha256 = digest(string(text))

	var up strings.Builder
	section := ""
	lines := bufio.NewScanner(strings.NewReader(string(text)))
	lines.Buffer(nil, 4<<20)
	for lines.Scan() {
		line := lines.Text()
		comment, isComment := strings.CutPrefix(line, "--")
		annotation, isAnnotation := strings.CutPrefix(strings.TrimSpace(comment), "+goose ")
		switch {
		case isComment && isAnnotation:
			switch annotation {
			case "Up", "Down":
				section = annotation
			case "StatementBegin", "StatementEnd":
			default:
				// A file outside a transaction can stop half-way, and one that
				// reads the environment is not the file that was reviewed.
				return m, fmt.Errorf("annotation %q is not supported", annotation)
			}
		case section == "" && isComment && strings.HasPrefix(strings.TrimSpace(comment), "breaking:"):
			switch value := strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(comment), "breaking:")); value {
			case "yes":
				m.breaking = true
			case "no":
			default:
				return m, fmt.Errorf("breaking: %q is neither yes nor no", value)
			}
		case section == "Up":
			up.WriteString(line)
			up.WriteByte('\n')
		}
	}
	if err := lines.Err(); err != nil {
		return m, err
	}
	if section == "" {
		return m, errors.New("no section +goose Up")
	}
	m.up = strings.TrimSpace(up.String())
	return m, nil
}

// latest is the newest version that the files know.
func (b *bundle) latest() int64 { return b.migrations[len(b.migrations)-1].version }

// find returns the file of a version, or nil.
func (b *bundle) find(version int64) *migration {
	if version < 1 || version > b.latest() {
		return nil
	}
	return &b.migrations[version-1]
}

// routinesDigest changes when a routine does, or the tables below them.
func (b *bundle) routinesDigest() string {
	parts := []string{strconv.FormatInt(b.latest(), 10)}
	for _, r := range b.routines {
		parts = append(parts, r.name, r.text)
	}
	return digest(parts...)
}

// riverDigest changes when River's migrations do, or our grants on them.
func (b *bundle) riverDigest() string {
	parts := []string{b.river.text}
	for _, m := range riverMigrations() {
		parts = append(parts, m.SQLUp)
	}
	return digest(parts...)
}

// digest hashes parts so that no two lists of them run into one another.
func digest(parts ...string) string {
	h := sha256.New()
	for _, part := range parts {
		fmt.Fprintf(h, "%d:%s", len(part), part)
	}
	return hex.EncodeToString(h.Sum(nil))
}
