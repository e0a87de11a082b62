package stack

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Pooler is a PgBouncer before one database, in transaction mode. It is a child
// of this process and goes with it.
type Pooler struct {
	database string
	port     int
	dir      string
	stack    *Stack
	cmd      *exec.Cmd
}

// StartPooler starts a pooler. It has four connections to the server for each
// login, fewer than most tests have clients, so that what one client leaves in
// a session meets the next.
func (s *Stack) StartPooler(ctx context.Context, database string) (_ *Pooler, err error) {
	exe, err := exec.LookPath("pgbouncer")
	if err != nil {
		exe = "/usr/sbin/pgbouncer" // not in everybody's PATH
	}
	p := &Pooler{database: database, stack: s}
	if p.dir, err = serverDir(s.PGHome); err != nil {
		return nil, fmt.Errorf("start pgbouncer: %w", err)
	}
	defer func() {
		if err != nil {
			_ = p.Stop()
		}
	}()
	// Another program may take the port between the choice and the start.
	for range 3 {
		if err = p.start(ctx, exe); err == nil {
			return p, nil
		}
	}
	return nil, fmt.Errorf("start pgbouncer: %w", err)
}

func (p *Pooler) start(ctx context.Context, exe string) (err error) {
	if p.port, err = freePort(0); err != nil {
		return err
	}
	file := func(name string) string { return filepath.Join(p.dir, name) }
	var users strings.Builder
	for login, password := range p.stack.Passwords {
		fmt.Fprintf(&users, "%q %q\n", login, password)
	}
	config := fmt.Sprintf(`[databases]
%[1]s = host=127.0.0.1 port=%[2]d

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %[3]d
unix_socket_dir =
logfile = %[4]s
auth_type = scram-sha-256
auth_file = %[5]s
pool_mode = transaction
default_pool_size = 4
max_client_conn = 200
ignore_startup_parameters = extra_float_digits
server_tls_sslmode = verify-full
server_tls_protocols = tlsv1.3
server_tls_ca_file = %[6]s
client_tls_sslmode = require
client_tls_protocols = tlsv1.3
client_tls_cert_file = %[7]s
client_tls_key_file = %[8]s
`, p.database, p.stack.PGPort, p.port, file("log"), file("users"), file("ca.crt"), file("server.crt"), file("server.key"))
	files := map[string][]byte{"users": []byte(users.String()), "config": []byte(config)}
	for name, from := range map[string]string{
		"ca.crt":     p.stack.RootCert(),
		"server.crt": filepath.Join(p.stack.data(), "server.crt"),
		"server.key": filepath.Join(p.stack.data(), "server.key"),
	} {
		// Copies, because its account may not get to where the originals are.
		if files[name], err = os.ReadFile(from); err != nil {
			return err
		}
	}
	for name, text := range files {
		if err := writeServerFile(file(name), text, 0o600); err != nil {
			return err
		}
	}

	account, err := serverAccount()
	if err != nil {
		return err
	}
	p.cmd = exec.Command(exe, file("config"))
	p.cmd.Dir = p.dir
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: account, Pdeathsig: syscall.SIGTERM}
	if err := p.cmd.Start(); err != nil {
		return err
	}
	err = retry(ctx, 10*time.Second, func() error {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", "127.0.0.1:"+strconv.Itoa(p.port))
		if err != nil {
			return err
		}
		return conn.Close()
	})
	if err != nil {
		p.kill()
		return fmt.Errorf("%w: %s", err, tail(file("log")))
	}
	return nil
}

// URL is the address of the database by way of the pooler. pgx prepares
// statements by name unless it is told otherwise, and PgBouncer knows them only
// from version 1.21 on.
func (p *Pooler) URL(login string) string {
	return p.stack.url(login, p.database, "localhost", p.port, url.Values{
		"sslmode":                 {"verify-full"},
		"sslrootcert":             {p.stack.RootCert()},
		"default_query_exec_mode": {"exec"},
	})
}

// Stop ends the pooler and removes its files.
func (p *Pooler) Stop() error {
	p.kill()
	return os.RemoveAll(p.dir)
}

func (p *Pooler) kill() {
	if p.cmd != nil && p.cmd.Process != nil {
		_ = p.cmd.Process.Signal(syscall.SIGTERM) // ends at once, sessions and all
		_ = p.cmd.Wait()
		p.cmd = nil
	}
}
