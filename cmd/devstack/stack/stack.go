// Package stack runs a private PostgreSQL cluster and a private S3 server for
// the demonstration, the tests and the benchmarks. Both are real: what holds
// here (TLS, authentication, Object Lock) is what holds in production.
//
// A stack lives in a folder of its own, and any number of them run side by
// side. Its servers outlive the program that started them; what is theirs is
// written down, and nothing else is ever signalled or removed. Needs Linux.
package stack

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Database is the database that a new stack has.
const Database = "custody"

// ErrNoStack says that a folder holds no stack.
var ErrNoStack = errors.New("no stack here")

// Options say how a stack is started.
type Options struct {
	// Dir holds the stack's state, .devstack if empty.
	Dir string
	// NoFsync gives durability away for speed. It counts when the cluster is
	// made, not when it is found again.
	NoFsync bool
	// Ephemeral removes the stack when this process ends, however it ends.
	Ephemeral bool
	// Log is silent if nil.
	Log *slog.Logger
}

// Stack is a private PostgreSQL cluster with an S3 server beside it.
type Stack struct {
	Dir string
	state
	log *slog.Logger
}

// Start starts the stack in a folder, or what of it does not run.
func Start(ctx context.Context, o Options) (*Stack, error) {
	dir, err := filepath.Abs(cmp.Or(o.Dir, ".devstack"))
	if err != nil {
		return nil, fmt.Errorf("start stack: %w", err)
	}
	// The server's account has to get through to its own part.
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, fmt.Errorf("start stack: %w", err)
	}
	unlock, err := lock(ctx, dir)
	if err != nil {
		return nil, fmt.Errorf("start stack: %w", err)
	}
	defer unlock()

	s, err := open(dir)
	if errors.Is(err, ErrNoStack) {
		s = &Stack{Dir: dir, state: newState(o)}
	} else if err != nil {
		return nil, fmt.Errorf("start stack: %w", err)
	}
	s.addPasswords()
	s.addArchiveKey()
	s.log = cmp.Or(o.Log, slog.New(slog.DiscardHandler))
	if o.Ephemeral {
		if err := guardStack(dir); err != nil {
			return nil, fmt.Errorf("start stack: %w", err)
		}
	}
	for _, step := range []func(context.Context) error{s.startPostgres, s.startGateway} {
		if err := step(ctx); err != nil {
			return nil, fmt.Errorf("start stack: %w", err)
		}
	}
	if err := s.writeArchiveKey(); err != nil {
		return nil, fmt.Errorf("start stack: %w", err)
	}
	if err := s.writeEnv(); err != nil {
		return nil, fmt.Errorf("start stack: %w", err)
	}
	return s, nil
}

// TempDir makes a folder for a stack that is thrown away.
func TempDir() (string, error) {
	dir, err := os.MkdirTemp("", "pgcustody-")
	if err != nil {
		return "", err
	}
	// Closed to others it would have no place for the server's part.
	return dir, os.Chmod(dir, 0o711)
}

// Open finds the stack in a folder and starts nothing.
func Open(dir string) (*Stack, error) {
	dir, err := filepath.Abs(cmp.Or(dir, ".devstack"))
	if err != nil {
		return nil, fmt.Errorf("open stack: %w", err)
	}
	s, err := open(dir)
	if err != nil {
		return nil, fmt.Errorf("open stack: %w", err)
	}
	return s, nil
}

// Running tells which of the two servers run.
func (s *Stack) Running() (postgres, gateway bool) {
	return s.Postgres.alive(), s.Gateway.alive()
}

// Stop stops the servers and keeps their data.
func (s *Stack) Stop(ctx context.Context) error {
	unlock, err := lock(ctx, s.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("stop stack: %w", err)
	}
	defer unlock()
	if err := s.stop(ctx); err != nil {
		return fmt.Errorf("stop stack: %w", err)
	}
	return nil
}

func (s *Stack) stop(ctx context.Context) error {
	// Somebody else may have started it anew since we looked.
	now, err := open(s.Dir)
	if errors.Is(err, ErrNoStack) {
		return nil
	} else if err != nil {
		return err
	}
	s.state = now.state
	if p, ok := s.postmaster(); ok {
		s.Postgres = p
	}
	return errors.Join(
		s.Gateway.stop(ctx, gatewaySignals),
		s.Postgres.stop(ctx, postgresSignals),
	)
}

// Destroy stops the servers and removes all that the stack made.
func (s *Stack) Destroy(ctx context.Context) error {
	unlock, err := lock(ctx, s.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("destroy stack: %w", err)
	}
	defer unlock()
	if err := s.stop(ctx); err != nil {
		return fmt.Errorf("destroy stack: %w", err)
	}
	// By name: a folder that somebody gave by mistake may hold more than a stack.
	var errs []error
	for _, path := range []string{
		s.PGHome, s.path("s3"), s.KeyDir(), s.path("env"), s.ArchiveIdentity(), s.path("ca.crt"), s.path(stateFile), s.path(lockFile),
	} {
		if path != "" {
			errs = append(errs, os.RemoveAll(path))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("destroy stack: %w", err)
	}
	if left, err := os.ReadDir(s.Dir); err == nil && len(left) == 0 {
		return os.Remove(s.Dir)
	}
	return nil
}

func (s *Stack) path(name string) string { return filepath.Join(s.Dir, name) }

// RootCert is the file with the certificate that the server's was signed with.
func (s *Stack) RootCert() string { return s.path("ca.crt") }

// KeyDir is where the file provider keeps the keys of tenants; it makes it.
func (s *Stack) KeyDir() string { return s.path("keys") }

// ArchiveIdentity is the file with the identity that opens the archive. The jobs are
// given its recipient alone.
func (s *Stack) ArchiveIdentity() string { return s.path("archive.key") }

// LogDir is where Postgres writes its JSON log.
func (s *Stack) LogDir() string { return filepath.Join(s.PGHome, "log") }

// URL is the address of a database for a login, over TCP and TLS.
func (s *Stack) URL(login, database string) string {
	return s.url(login, database, "localhost", s.PGPort, url.Values{
		"sslmode":     {"verify-full"},
		"sslrootcert": {s.RootCert()},
	})
}

// SuperURL is the address of a database for the superuser, over the socket.
func (s *Stack) SuperURL(database string) string {
	return s.url(Superuser, database, "", 0, url.Values{
		"host": {s.PGHome},
		"port": {strconv.Itoa(s.PGPort)},
	})
}

func (s *Stack) url(login, database, host string, port int, query url.Values) string {
	u := url.URL{
		Scheme:   "postgres",
		User:     url.UserPassword(login, s.Passwords[login]),
		Host:     host,
		Path:     "/" + database,
		RawQuery: query.Encode(),
	}
	if port != 0 {
		u.Host += ":" + strconv.Itoa(port)
	}
	return u.String()
}

// Endpoint is the address of the S3 server.
func (s *Stack) Endpoint() string { return "http://127.0.0.1:" + strconv.Itoa(s.S3Port) }

// Env holds the settings for programs that use the stack, as written to the
// file env.
func (s *Stack) Env() map[string]string {
	env := map[string]string{
		"PGHOST":        "localhost",
		"PGPORT":        strconv.Itoa(s.PGPort),
		"PGDATABASE":    Database,
		"PGUSER":        "custody_runner",
		"PGPASSWORD":    s.Passwords["custody_runner"],
		"PGSSLMODE":     "verify-full",
		"PGSSLROOTCERT": s.RootCert(),

		"PGCUSTODY_MIGRATE_URL": s.URL(MigratorLogin, Database),
		"PGCUSTODY_STORE":       "s3://" + s.Bucket,
		"PGCUSTODY_KEYS":        "file:" + s.KeyDir(),
		"PGCUSTODY_WEBHOOK_KEY": s.WebhookKey,

		"PGCUSTODY_ARCHIVE_RECIPIENTS": s.archiveRecipient(),
		"DEVSTACK_ARCHIVE_IDENTITY":    s.ArchiveIdentity(),

		"AWS_ENDPOINT_URL_S3":   s.Endpoint(),
		"AWS_REGION":            Region,
		"AWS_ACCESS_KEY_ID":     s.AccessKey,
		"AWS_SECRET_ACCESS_KEY": s.SecretKey,

		"DEVSTACK_DIR":           s.Dir,
		"DEVSTACK_PGBIN":         s.PGBin,
		"DEVSTACK_SUPERUSER_URL": s.SuperURL(Database),
	}
	for _, l := range Logins {
		if l.Variable != "" {
			env[l.Variable] = s.URL(l.Name, Database)
		}
	}
	env["PGCUSTODY_BACKUP_URL"] = env["DEVSTACK_DUMP_URL"]
	return env
}

// writeEnv writes the settings for a shell to source.
// writeArchiveKey writes the file that whoever reads the archive gives to --identity.
func (s *Stack) writeArchiveKey() error {
	return writeFile(s.ArchiveIdentity(), []byte(s.ArchiveKey+"\n"), 0o600)
}

func (s *Stack) writeEnv() error {
	env := s.Env()
	var b strings.Builder
	b.WriteString("# Settings of the private stack, for `source`. They hold passwords.\n")
	for _, name := range slices.Sorted(maps.Keys(env)) {
		fmt.Fprintf(&b, "export %s='%s'\n", name, strings.ReplaceAll(env[name], "'", `'\''`))
	}
	return writeFile(s.path("env"), []byte(b.String()), 0o600)
}

// EnvFile is the file with the settings.
func (s *Stack) EnvFile() string { return s.path("env") }

// retry calls try until it succeeds, the time is over or the context ends, and
// returns the last error.
func retry(ctx context.Context, limit time.Duration, try func() error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// exists tells whether there is something at path.
func exists(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, fs.ErrNotExist)
}
