// Package stacktest gives a test a migrated database, a bucket with Object Lock
// or a connection pooler of its own, on a real stack that the tests share.
package stacktest

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"runtime/debug"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"pgcustody/cmd/devstack/stack"
	"pgcustody/sql"
)

// shared is the stack of this process, started by the first test that asks.
var shared = sync.OnceValues(func() (*stack.Stack, error) {
	// `make test` has started one for all packages.
	dir, forAll := os.LookupEnv("DEVSTACK_TEST_DIR")
	if !forAll {
		var err error
		if dir, err = stack.TempDir(); err != nil {
			return nil, err
		}
	}
	return stack.Start(context.Background(), stack.Options{Dir: dir, NoFsync: true, Ephemeral: !forAll})
})

// Shared returns the stack that all tests share: that in DEVSTACK_TEST_DIR, or
// one for this process, which goes with it. What tests make on it must have
// names of its own.
func Shared(t testing.TB) *stack.Stack {
	t.Helper()
	s, err := shared()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Database is a migrated database for one test.
type Database struct {
	Name  string
	URLs  map[string]string // by login, the superuser's and the migrator's too
	Stack *stack.Stack
}

// template is the migrated database that all others are copies of.
var template = sync.OnceValues(func() (string, error) {
	s, err := shared()
	if err != nil {
		return "", err
	}
	return migratedTemplate(context.Background(), s)
})

// DB makes a migrated database and drops it when the test is over. Its
// search_path is empty, so that a name without a schema is found out.
func DB(t testing.TB) *Database {
	t.Helper()
	s := Shared(t)
	from, err := template()
	if err != nil {
		t.Fatal(err)
	}
	return newDatabase(t, s, from)
}

// EmptyDB makes a database that nothing was migrated to. The group roles and
// the logins, which belong to the cluster, are there.
func EmptyDB(t testing.TB) *Database {
	t.Helper()
	DB(t) // for the roles
	return newDatabase(t, Shared(t), "")
}

func newDatabase(t testing.TB, s *stack.Stack, from string) *Database {
	t.Helper()
	d := &Database{Name: name(t, "_", 63), URLs: map[string]string{}, Stack: s}
	if err := s.CreateDatabase(t.Context(), d.Name, from); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.DropDatabase(context.Background(), d.Name); err != nil {
			t.Error(err)
		}
	})
	for login := range s.Passwords {
		d.URLs[login] = s.URL(login, d.Name)
	}
	return d
}

// Pool connects a login to the database until the test is over.
func (d *Database) Pool(t testing.TB, login string) *pgxpool.Pool {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), d.URLs[login])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// Conn is a single connection of a login until the test is over.
func (d *Database) Conn(t testing.TB, login string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), d.URLs[login])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// Bucket makes a bucket with versions and Object Lock. It goes with the stack:
// locked objects cannot be removed.
func Bucket(t testing.TB) string {
	t.Helper()
	bucket := name(t, "-", 63)
	if err := Shared(t).NewBucket(t.Context(), bucket, true); err != nil {
		t.Fatal(err)
	}
	return bucket
}

// migratedTemplate returns the name of the template, which the first of all
// test processes makes. The name says what it was made from.
func migratedTemplate(ctx context.Context, s *stack.Stack) (_ string, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("make the template database: %w", err)
		}
	}()
	sum, err := migrationsSum()
	if err != nil {
		return "", err
	}
	ready, making := "template_"+sum, "making_"+sum

	conn, err := pgx.Connect(ctx, s.SuperURL("postgres"))
	if err != nil {
		return "", err
	}
	defer conn.Close(ctx)
	// Held by the session: other processes wait here until it is ready, and go on
	// if we are killed.
	if _, err := conn.Exec(ctx, "select pg_catalog.pg_advisory_lock(pg_catalog.hashtext('pgcustody template'))"); err != nil {
		return "", err
	}
	var there bool
	if err := conn.QueryRow(ctx, "select exists (select from pg_catalog.pg_database where datname = $1)", ready).Scan(&there); err != nil || there {
		return ready, err
	}

	if err := s.DropDatabase(ctx, making); err != nil {
		return "", err
	}
	if err := s.CreateDatabase(ctx, making, ""); err != nil {
		return "", err
	}
	if _, err := conn.Exec(ctx, "alter database "+making+" set search_path = ''"); err != nil {
		return "", err
	}
	if err := s.OpenMigrator(ctx); err != nil {
		return "", err
	}
	if _, err := sql.Up(ctx, sql.Config{URL: s.URL(stack.MigratorLogin, making)}); err != nil {
		return "", err
	}
	if err := s.PutLogins(ctx, making); err != nil {
		return "", err
	}
	_, err = conn.Exec(ctx, "alter database "+making+" rename to "+ready)
	return ready, err
}

// migrationsSum changes with the SQL files and with River's migrations.
func migrationsSum() (string, error) {
	sum := sha256.New()
	files := sql.Files()
	err := fs.WalkDir(files, ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		text, err := fs.ReadFile(files, path)
		fmt.Fprintf(sum, "%s %d\n%s", path, len(text), text)
		return err
	})
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, module := range info.Deps {
			if strings.Contains(module.Path, "river") {
				fmt.Fprintln(sum, module.Path, module.Version)
			}
		}
	}
	return hex.EncodeToString(sum.Sum(nil))[:16], err
}

var unfit = regexp.MustCompile(`[^a-z0-9]+`)

// name makes a name that tells the test and that no other test has.
func name(t testing.TB, separator string, longest int) string {
	b := make([]byte, 6)
	rand.Read(b) // never fails
	end := separator + hex.EncodeToString(b)
	test := strings.Trim(unfit.ReplaceAllString(strings.ToLower(t.Name()), separator), separator)
	return test[:min(len(test), longest-len(end))] + end
}
