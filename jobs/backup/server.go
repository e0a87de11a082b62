package backup

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// server says how a database is reached, by us and by Postgres's own programs: these
// get the address as an argument, which everybody on the machine can read, and the
// password in their environment.
type server struct {
	config  *pgx.ConnConfig
	address string // without a password
	env     []string
	bin     string
}

// tlsModes are those settings of sslmode under which nothing goes out in plaintext.
var tlsModes = map[string]bool{"require": true, "verify-ca": true, "verify-full": true}

// parseServer reads an address, postgres://…, that must ask for TLS unless it is a
// socket's. field names the setting in errors.
func parseServer(field, address, bin string) (*server, error) {
	wrong := func(what string) error {
		return &Error{Code: exitUsage, What: field, Object: what}
	}
	if address == "" {
		return nil, wrong("required: give the database as postgres://login@host/database?sslmode=verify-full")
	}
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "postgres" && u.Scheme != "postgresql" {
		return nil, wrong("not an address of the form postgres://login@host/database?sslmode=verify-full")
	}
	config, err := pgx.ParseConfig(address)
	if err != nil {
		// The parser's own message may repeat the password.
		return nil, wrong("not an address of the form postgres://login@host/database?sslmode=verify-full")
	}
	query := u.Query()
	hosts := []string{config.Host}
	for _, fallback := range config.Fallbacks {
		hosts = append(hosts, fallback.Host)
	}
	mode := query.Get("sslmode")
	if mode == "" {
		mode = os.Getenv("PGSSLMODE")
	}
	for _, host := range hosts {
		if !strings.HasPrefix(host, "/") && !tlsModes[mode] {
			return nil, wrong(fmt.Sprintf("TLS is required, and sslmode=%q lets the connection go without: say sslmode=verify-full, and sslrootcert", mode))
		}
	}
	if config.Database == "" {
		return nil, wrong("the address names no database")
	}

	if query.Has("sslpassword") {
		return nil, wrong("sslpassword would be seen by everybody on this machine: give a key without one, that only its owner may read")
	}

	u.User = url.User(config.User)
	query.Del("password")
	if mode != "" {
		query.Set("sslmode", mode) // a service file must not say otherwise
	}
	for name := range query {
		if strings.HasPrefix(name, "pool_") {
			query.Del(name)
		}
	}
	u.RawQuery = query.Encode()
	s := &server{config: config, address: u.String(), bin: bin}
	for _, entry := range os.Environ() {
		name, _, _ := strings.Cut(entry, "=")
		switch {
		case name == "PGPASSWORD", name == "PGAPPNAME", name == "PGOPTIONS":
		case name == "PATH", name == "HOME", strings.HasPrefix(name, "PG") && !strings.HasPrefix(name, "PGCUSTODY_"):
			s.env = append(s.env, entry)
		}
	}
	// Messages in English, as we read them.
	s.env = append(s.env, "LC_ALL=C.UTF-8", "PGCONNECT_TIMEOUT=30")
	if config.Password != "" {
		s.env = append(s.env, "PGPASSWORD="+config.Password)
	}
	return s, nil
}

// withDatabase is the same server with another database of it.
func (s *server) withDatabase(name string) *server {
	other := *s
	other.config = s.config.Copy()
	other.config.Database = name
	u, _ := url.Parse(s.address) // it was parsed before
	u.Path = "/" + name
	other.address = u.String()
	return &other
}

// connect opens a connection that is encrypted, or a socket's.
func (s *server) connect(ctx context.Context, step string) (*pgx.Conn, error) {
	config := s.config.Copy()
	config.RuntimeParams["application_name"] = "pgcustody " + step
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return nil, err
	}
	switch conn.PgConn().Conn().(type) {
	case *tls.Conn, *net.UnixConn:
		return conn, nil
	}
	_ = conn.Close(ctx)
	return nil, &Error{Code: exitUsage, What: "the connection is not encrypted", Do: "say sslmode=verify-full in the address"}
}

// lockWait is how long the server may take to notice that a process is gone which
// held a lock.
const lockWait = 10 * time.Second

// onlyOne takes an advisory lock that lasts as long as the connection, and tells
// whether it got it.
func onlyOne(ctx context.Context, conn *pgx.Conn, name string) (bool, error) {
	for deadline := time.Now().Add(lockWait); ; {
		var got bool
		err := conn.QueryRow(ctx, "select pg_catalog.pg_try_advisory_lock(pg_catalog.hashtextextended($1, 0))", name).Scan(&got)
		if err != nil || got || time.Now().After(deadline) {
			return got, err
		}
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// program is pg_dump or pg_restore, on this database.
func (s *server) program(ctx context.Context, name string, args ...string) (*exec.Cmd, *complaints, error) {
	path := filepath.Join(s.bin, name)
	if s.bin == "" {
		found, err := exec.LookPath(name)
		if err != nil {
			return nil, nil, &Error{Code: exitUsage, What: name + " is not installed here", Do: "install Postgres's client programs, of the server's version or later, or say where they are with --pg-bin"}
		}
		path = found
	} else if _, err := os.Stat(path); err != nil {
		return nil, nil, &Error{Code: exitUsage, What: "--pg-bin", Object: s.bin, Do: "there is no " + name}
	}
	cmd := exec.CommandContext(ctx, path, append(args, "--no-password", "--dbname="+s.address)...)
	cmd.Env = append(slices.Clone(s.env), "PGAPPNAME=pgcustody "+name)
	cmd.WaitDelay = 10 * time.Second
	said := &complaints{name: name}
	cmd.Stderr = said
	return cmd, said, nil
}

// complaints keeps what a program says on standard error, as far as it may be
// shown: the lines behind its own name. Those that follow quote rows.
type complaints struct {
	name string
	line bytes.Buffer
	kept []string
}

const mostComplaints = 3

func (c *complaints) Write(p []byte) (int, error) {
	for _, b := range p {
		if b != '\n' {
			if c.line.Len() < 300 {
				c.line.WriteByte(b)
			}
			continue
		}
		text, ours := strings.CutPrefix(c.line.String(), c.name+": ")
		c.line.Reset()
		if !ours {
			continue
		}
		if text, serious := strings.CutPrefix(text, "error: "); serious {
			c.kept = append(c.kept, text)
		}
		if len(c.kept) > mostComplaints {
			c.kept = c.kept[:mostComplaints]
		}
	}
	return len(p), nil
}

// failure is what the program's end means.
func (c *complaints) failure(err error) error {
	if err == nil {
		return nil
	}
	said := strings.Join(c.kept, "; ")
	if said == "" {
		said = err.Error()
	}
	code := 1
	switch {
	case strings.Contains(said, "permission denied"), strings.Contains(said, "row-level security"):
		code = exitPermission
	case strings.Contains(said, "could not connect"), strings.Contains(said, "connection to server"):
		code = exitDatabase
	}
	return &Error{Code: code, What: c.name + " failed", Object: said, Err: err}
}

// counter counts what passes.
type counter struct {
	n    int64
	tell func(n int64)
}

func (c *counter) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	if c.tell != nil {
		c.tell(c.n)
	}
	return len(p), nil
}

var _ io.Writer = (*counter)(nil)
