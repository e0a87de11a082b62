package stack

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Oldest and newest major version of PostgreSQL that the stack runs on.
const oldestPG, newestPG = 15, 18

var postgresSignals = signals{
	kind: syscall.SIGINT,  // fast: rolls back, writes a checkpoint, ends
	hard: syscall.SIGQUIT, // immediate: recovers at the next start
	// A checkpoint of a large cluster takes its time.
	patience: time.Minute,
}

// findPG returns the folder of Postgres's programs.
func findPG() (string, error) {
	if dir := os.Getenv("DEVSTACK_PGBIN"); dir != "" {
		if !exists(filepath.Join(dir, "initdb")) {
			return "", fmt.Errorf("DEVSTACK_PGBIN: %s holds no initdb", dir)
		}
		return dir, nil
	}
	for major := newestPG; major >= oldestPG; major-- {
		dir := fmt.Sprintf("/usr/lib/postgresql/%d/bin", major)
		if exists(filepath.Join(dir, "initdb")) {
			return dir, nil
		}
	}
	return "", fmt.Errorf("no PostgreSQL %d to %d in /usr/lib/postgresql: run `make deps`, or set DEVSTACK_PGBIN", oldestPG, newestPG)
}

// serverAccount is who Postgres runs as: nil for the current account, which
// must not be root's, else that of Debian's package.
func serverAccount() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	account, err := user.Lookup("postgres")
	if err != nil {
		return nil, fmt.Errorf("postgres refuses to run as root: %w", err)
	}
	uid, err1 := strconv.ParseUint(account.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(account.Gid, 10, 32)
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, errors.Join(err1, err2)
}

// serverDir makes a folder that the server's account owns and can reach: inside
// parent if that is possible, else below a folder for temporary files. Only
// there is a path sure to be short enough for a socket, whose address has 108
// bytes, and to have no parent that is closed to others.
func serverDir(parent string) (string, error) {
	account, err := serverAccount()
	if err != nil {
		return "", err
	}
	var errs []error
	for _, parent := range []string{parent, os.TempDir(), "/tmp", "/var/tmp"} {
		dir, err := os.MkdirTemp(parent, "pg-*")
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if err := reachable(dir, account); err != nil {
			errs = append(errs, err, os.Remove(dir))
			continue
		}
		return dir, nil
	}
	return "", fmt.Errorf("no folder for the server: %w", errors.Join(errs...))
}

func reachable(dir string, account *syscall.Credential) error {
	const longest = 107
	if socket := filepath.Join(dir, ".s.PGSQL.65535"); len(socket) > longest {
		return fmt.Errorf("%s: longer than %d bytes", socket, longest)
	}
	if account == nil {
		return nil
	}
	if err := os.Chown(dir, int(account.Uid), int(account.Gid)); err != nil {
		return err
	}
	cmd := exec.Command("/bin/sh", "-c", `cd -- "$1"`, "sh", dir)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: account}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: not open to account %d: %w: %s", dir, account.Uid, err, out)
	}
	return nil
}

func (s *Stack) data() string { return filepath.Join(s.PGHome, "data") }

// pg is one of Postgres's own programs, run as the server's account.
func (s *Stack) pg(ctx context.Context, program string, args ...string) (*exec.Cmd, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(s.PGBin, program), args...)
	cmd.Dir = s.PGHome
	// Nothing of the caller's own PG* variables and locale.
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C.UTF-8", "TZ=UTC"}
	account, err := serverAccount()
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: account, Setsid: true} // no signals from our terminal
	return cmd, err
}

// postmaster is the cluster's server as it is written in its own pid file,
// which is there even if we were killed before we could note it.
func (s *Stack) postmaster() (process, bool) {
	pid, err := readPid(filepath.Join(s.data(), "postmaster.pid"))
	if err != nil {
		return process{}, false
	}
	exe, err := filepath.EvalSymlinks(filepath.Join(s.PGBin, "postgres"))
	if err != nil {
		return process{}, false
	}
	// A server works in its data folder: this one is ours and no other stack's.
	if cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid)); err != nil || !sameFile(cwd, s.data()) {
		return process{}, false
	}
	return identify(pid, exe)
}

func sameFile(a, b string) bool {
	x, err1 := os.Stat(a)
	y, err2 := os.Stat(b)
	return err1 == nil && err2 == nil && os.SameFile(x, y)
}

// startPostgres makes the cluster if there is none and starts it if it does not run.
func (s *Stack) startPostgres(ctx context.Context) error {
	if s.Initialised && !exists(filepath.Join(s.data(), "PG_VERSION")) {
		s.log.Warn("cluster_lost", "dir", s.data())
		s.Initialised = false
	}
	if !s.Initialised {
		if err := s.initialise(ctx); err != nil {
			return err
		}
	} else if !exists(filepath.Join(s.PGBin, "postgres")) {
		return fmt.Errorf("the cluster's own PostgreSQL is gone from %s: `devstack down --wipe` makes room for a new one", s.PGBin)
	}

	if p, ok := s.postmaster(); ok {
		s.Postgres = p
	} else if err := s.launchPostgres(ctx); err != nil {
		return err
	}
	if err := s.save(); err != nil {
		return err
	}
	if err := retry(ctx, time.Minute, func() error {
		conn, err := s.connect(ctx, "postgres")
		if err != nil {
			return err
		}
		return conn.Close(ctx)
	}); err != nil {
		return fmt.Errorf("postgres does not answer: %w", err)
	}
	if s.Initialised {
		return nil
	}
	if err := s.prepareCluster(ctx); err != nil {
		return err
	}
	s.Initialised = true
	return s.save()
}

// initialise makes a cluster anew, over what an interrupted attempt left.
func (s *Stack) initialise(ctx context.Context) (err error) {
	if p, ok := s.postmaster(); ok {
		if err := p.stop(ctx, postgresSignals); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(s.PGHome); err != nil {
		return err
	}
	if s.PGBin, err = findPG(); err != nil {
		return err
	}
	if s.PGHome, err = serverDir(s.Dir); err != nil {
		return err
	}
	// From here on the folder is known to whoever cleans up.
	if err := s.save(); err != nil {
		return err
	}
	s.log.Info("initdb", "bin", s.PGBin, "home", s.PGHome)
	password := filepath.Join(s.PGHome, "password")
	if err := writeServerFile(password, []byte(s.Passwords[Superuser]), 0o600); err != nil {
		return err
	}
	defer os.Remove(password)
	args := []string{
		"--pgdata=" + s.data(), "--username=" + Superuser, "--pwfile=" + password,
		"--auth=scram-sha-256", "--data-checksums", "--encoding=UTF8", "--locale=C.UTF-8",
	}
	if s.NoFsync {
		args = append(args, "--no-sync")
	}
	cmd, err := s.pg(ctx, "initdb", args...)
	if err != nil {
		return err
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w: %s", err, out)
	}

	certs, err := newCertificates()
	if err != nil {
		return err
	}
	return errors.Join(
		writeFile(s.RootCert(), certs.ca, 0o644),
		writeServerFile(filepath.Join(s.data(), "server.crt"), certs.cert, 0o644),
		writeServerFile(filepath.Join(s.data(), "server.key"), certs.key, 0o600),
		writeServerFile(filepath.Join(s.data(), "pg_hba.conf"), []byte(hba), 0o600),
		s.appendServerFile(filepath.Join(s.data(), "postgresql.conf"), "\ninclude 'devstack.conf'\n"),
	)
}

// dropStalePidFile removes a pid file whose number went to another program
// since: the server would take that for itself and refuse to start. A number
// that nobody has is left to the server, which also looks for children of a
// dead server that still hold its memory.
func (s *Stack) dropStalePidFile() error {
	path := filepath.Join(s.data(), "postmaster.pid")
	pid, err := readPid(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if _, taken := startTime(pid); err == nil && !taken {
		return nil
	}
	s.log.Warn("stale_pid_file", "path", path, "pid", pid)
	return os.Remove(path)
}

// readPid reads the number in the first line of a server's pid file.
func readPid(path string) (int, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	first, _, _ := strings.Cut(string(text), "\n")
	pid, err := strconv.Atoi(first)
	if err == nil && pid <= 0 {
		err = fmt.Errorf("%s: %d is no process", path, pid)
	}
	return pid, err
}

// launchPostgres starts the cluster's server on a free port.
func (s *Stack) launchPostgres(ctx context.Context) error {
	if err := s.dropStalePidFile(); err != nil {
		return err
	}
	log := filepath.Join(s.PGHome, "start.log")
	// Another program may take the port between the choice and the start, and a
	// server that was killed leaves children that hold its memory for a moment.
	return retry(ctx, 20*time.Second, func() (err error) {
		if s.PGPort, err = freePort(s.PGPort); err != nil {
			return err
		}
		if err := writeServerFile(filepath.Join(s.data(), "devstack.conf"), []byte(s.config()), 0o600); err != nil {
			return err
		}
		// Without a log of its own the server would keep our output open for ever.
		cmd, err := s.pg(ctx, "pg_ctl", "start", "--wait", "--timeout=60", "--pgdata="+s.data(), "--log="+log)
		if err != nil {
			return err
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("start postgres: %w: %s: %s", err, out, tail(log))
		}
		p, ok := s.postmaster()
		if !ok {
			return fmt.Errorf("start postgres: it is gone again: %s", tail(log))
		}
		s.Postgres = p
		s.log.Info("postgres_started", "pid", p.PID, "port", s.PGPort)
		return nil
	})
}

const hba = `# Host connections only over TLS, the socket only for the superuser.
# type   database     user         address        method
local    all          custody_super               scram-sha-256
hostssl  all          all          127.0.0.1/32   scram-sha-256
hostssl  replication  custody_super  127.0.0.1/32 scram-sha-256
`

// config is what the cluster has besides initdb's defaults.
func (s *Stack) config() string {
	c := fmt.Sprintf(`# Written by devstack at every start.
listen_addresses = '127.0.0.1'
port = %d
unix_socket_directories = '%s'
max_connections = 300
max_prepared_transactions = 64
max_locks_per_transaction = 256		# many partitions in one statement
wal_level = replica
timezone = 'UTC'

ssl = on
ssl_min_protocol_version = 'TLSv1.3'
ssl_cert_file = 'server.crt'
ssl_key_file = 'server.key'
password_encryption = 'scram-sha-256'

# Modest, because several stacks run side by side.
shared_buffers = '256MB'
maintenance_work_mem = '128MB'
max_wal_size = '4GB'

shared_preload_libraries = '%s'
pg_stat_statements.track_utility = off	# SET and CREATE ROLE carry secrets in their text
logging_collector = on
log_destination = 'jsonlog'
log_directory = '%s'
log_filename = 'postgres-%%Y-%%m-%%d.log'
log_rotation_size = 0	# of a name that comes again, each line of a larger file would be a rotation
log_timezone = 'UTC'
log_connections = on
log_disconnections = on
log_replication_commands = on
# No values in the log: they may be personal data or keys.
log_parameter_max_length = 0
log_parameter_max_length_on_error = 0
pgaudit.log_parameter = off
`, s.PGPort, s.PGHome, s.preloaded(), s.LogDir())
	if s.NoFsync {
		c += "\n# The data are thrown away after use.\nfsync = off\nfull_page_writes = off\n"
	}
	return c
}

// preloaded is pgaudit, where this PostgreSQL has it, and pg_stat_statements.
func (s *Stack) preloaded() string {
	if s.HasPgaudit() {
		return "pgaudit, pg_stat_statements"
	}
	s.log.Warn("no_pgaudit", "bin", s.PGBin)
	return "pg_stat_statements"
}

// HasPgaudit tells whether this PostgreSQL has pgaudit.
func (s *Stack) HasPgaudit() bool {
	return exists(filepath.Join(s.PGBin, "..", "lib", "pgaudit.so")) || exists(filepath.Join(s.PGBin, "..", "lib", "postgresql", "pgaudit.so"))
}

// writeServerFile writes a file that belongs to the server's account.
func writeServerFile(path string, text []byte, mode os.FileMode) error {
	if err := writeFile(path, text, mode); err != nil {
		return err
	}
	account, err := serverAccount()
	if account == nil || err != nil {
		return err
	}
	return os.Chown(path, int(account.Uid), int(account.Gid))
}

func (s *Stack) appendServerFile(path, text string) error {
	before, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return writeServerFile(path, append(before, text...), 0o600)
}

// freePort returns a port of 127.0.0.1 that nobody listens on: the wanted one if it is free.
func freePort(wanted int) (int, error) {
	l, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", wanted))
	if err != nil && wanted != 0 {
		l, err = net.Listen("tcp4", "127.0.0.1:0")
	}
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}
