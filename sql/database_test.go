package sql_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"pgcustody/cmd/devstack/stack"
	"pgcustody/cmd/devstack/stack/stacktest"
	"pgcustody/sql"
)

// upEnv and sealEnv make the test binary a process that migrates or seals, for a test to kill.
const (
	upEnv   = "PGCUSTODY_TEST_UP"
	sealEnv = "PGCUSTODY_TEST_SEAL"
)

func TestMain(m *testing.M) {
	if url := os.Getenv(upEnv); url != "" {
		_, err := sql.Up(context.Background(), sql.Config{URL: url})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if url := os.Getenv(sealEnv); url != "" {
		_, err := sealUntil(context.Background(), url)
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

// database is an empty one of its own, owned by the migration login.
type database struct {
	name  string
	url   string // the migration login
	super string // a superuser
	stack *stack.Stack
}

var (
	databases    atomic.Int64
	openMigrator sync.Once
)

func newDatabase(t *testing.T) *database {
	t.Helper()
	s := stacktest.Shared(t)
	name := fmt.Sprintf("sql_test_%d_%d", os.Getpid(), databases.Add(1))
	openMigrator.Do(func() {
		// Another package's tests may do the same at this moment, to the same row.
		require.Eventually(t, func() bool { return s.OpenMigrator(t.Context()) == nil }, 10*time.Second, 10*time.Millisecond)
	})
	require.NoError(t, s.CreateDatabase(t.Context(), name, ""))
	t.Cleanup(func() { require.NoError(t, s.DropDatabase(context.Background(), name)) })
	return &database{name, s.URL(stack.MigratorLogin, name), s.SuperURL(name), s}
}

// connectTo returns a connection that is closed after the test.
func connectTo(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

func (d *database) config() sql.Config { return sql.Config{URL: d.url} }

func (d *database) up(t *testing.T, files ...fs.FS) *sql.Result {
	t.Helper()
	config := d.config()
	if len(files) > 0 {
		config.FS = files[0]
	}
	result, err := sql.Up(t.Context(), config)
	require.NoError(t, err)
	return result
}

// as connects as a superuser and takes a role's rights.
func (d *database) as(t *testing.T, role string) *pgx.Conn {
	t.Helper()
	conn := connectTo(t, d.super)
	_, err := conn.Exec(t.Context(), "set role "+role)
	require.NoError(t, err)
	return conn
}

func value[T any](t *testing.T, conn *pgx.Conn, query string, args ...any) (v T) {
	t.Helper()
	require.NoError(t, conn.QueryRow(t.Context(), query, args...).Scan(&v))
	return v
}

// dump is what pg_dump says of the whole database without its data.
func (d *database) dump(t *testing.T) string { return d.pgDump(t, "--schema-only") }

func (d *database) pgDump(t *testing.T, args ...string) string {
	t.Helper()
	command := exec.CommandContext(t.Context(), filepath.Join(d.stack.PGBin, "pg_dump"), append(args, "--dbname="+d.super)...)
	var out, problem bytes.Buffer
	command.Stdout, command.Stderr = &out, &problem
	require.NoError(t, command.Run(), problem.String())
	dump := volatile.ReplaceAllString(out.String(), "")
	dump = grants.ReplaceAllStringFunc(dump, func(list string) string {
		lines := strings.SplitAfter(list, "\n")
		slices.Sort(lines)
		return strings.Join(lines, "")
	})
	return policyRoles.ReplaceAllStringFunc(dump, func(list string) string {
		roles := strings.Split(strings.TrimPrefix(list, " TO "), ", ")
		slices.Sort(roles)
		return " TO " + strings.Join(roles, ", ")
	})
}

// volatile is what differs between two dumps of one database: a random key, and
// the versions of server and pg_dump.
var volatile = regexp.MustCompile(`(?m)^(\\(un)?restrict .*|-- Dumped (from|by) .*)\n`)

// What pg_dump writes in an order that means nothing: the grants on an object as
// they were given, the roles of a policy as they lie on disk.
var (
	grants      = regexp.MustCompile(`(?m)(^GRANT .*\n)+`)
	policyRoles = regexp.MustCompile(` TO (custody_[a-z]+, )+custody_[a-z]+`)
)

// requireSameDump shows where two dumps part, not both of them.
func requireSameDump(t *testing.T, want, got string) {
	t.Helper()
	if want == got {
		return
	}
	missing, added := map[string]bool{}, map[string]bool{}
	for _, line := range strings.Split(want, "\n") {
		missing[line] = true
	}
	for _, line := range strings.Split(got, "\n") {
		added[line] = !missing[line]
	}
	for _, line := range strings.Split(got, "\n") {
		delete(missing, line)
	}
	maps.DeleteFunc(added, func(_ string, isNew bool) bool { return !isNew })
	t.Fatalf("dumps differ\nmissing: %q\nadded: %q", slices.Sorted(maps.Keys(missing)), slices.Sorted(maps.Keys(added)))
}

// overlay is the embedded files with some replaced, added, or taken out (nil).
func overlay(t *testing.T, changes map[string]*string) fs.FS {
	t.Helper()
	files := fstest.MapFS{}
	require.NoError(t, fs.WalkDir(sql.Files(), ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		data, err := fs.ReadFile(sql.Files(), name)
		files[name] = &fstest.MapFile{Data: data}
		return err
	}))
	for name, text := range changes {
		if text == nil {
			delete(files, name)
		} else {
			files[name] = &fstest.MapFile{Data: []byte(*text)}
		}
	}
	return files
}

// versionsUpTo is the embedded files as they were when version was the newest.
// The routines of today may need later tables; only the migrator's own stay.
func versionsUpTo(t *testing.T, version int) fs.FS {
	t.Helper()
	out := map[string]*string{}
	for _, name := range versionedFiles(t)[version:] {
		out[name] = nil
	}
	routines, err := fs.Glob(sql.Files(), "routines/*.sql")
	require.NoError(t, err)
	for _, name := range routines {
		if name != "routines/00_versions.sql" {
			out[name] = nil
		}
	}
	return overlay(t, out)
}

func versionedFiles(t *testing.T) []string {
	t.Helper()
	names, err := fs.Glob(sql.Files(), "[0-9]*.sql")
	require.NoError(t, err)
	slices.Sort(names)
	return names
}

func text(s string) *string { return &s }

// next is the name of a versioned file after the embedded ones.
func next(n int64, title string) string {
	return fmt.Sprintf("%05d_%s.sql", sql.Latest()+n, title)
}

func outcomes(r *sql.Result) map[string]sql.Outcome {
	list := map[string]sql.Outcome{}
	for _, step := range r.Steps {
		list[step.Step] = step.Outcome
	}
	return list
}

func requireState(t *testing.T, err error, want sql.Relation) {
	t.Helper()
	var state *sql.StateError
	require.ErrorAs(t, err, &state)
	require.Equal(t, want, state.Relation, err.Error())
	require.True(t, errors.Is(err, &sql.StateError{Relation: want}))
}
