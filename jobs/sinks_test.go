package jobs

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"pgcustody/db"
	"pgcustody/jobs/logship"
)

// siem is an HTTP endpoint and a syslog server, both over TLS, of the test's own.
type siem struct {
	*httptest.Server
	refuse atomic.Int32 // that many requests
	mu     sync.Mutex
	posted []string
	frames []string
	syslog net.Listener
	conns  sync.WaitGroup
	open   []net.Conn
}

func newSIEM(t *testing.T) (*siem, *tls.Config) {
	s := &siem{}
	s.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if s.refuse.Add(-1) >= 0 || r.Header.Get("Authorization") != "Bearer let-me-in" {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.posted = append(s.posted, strings.Split(strings.TrimSuffix(string(body), "\n"), "\n")...)
	}))
	t.Cleanup(s.Close)
	var err error
	s.syslog, err = tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: s.TLS.Certificates, MinVersion: tls.VersionTLS12})
	require.NoError(t, err)
	s.conns.Go(func() {
		for {
			conn, err := s.syslog.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.open = append(s.open, conn)
			s.mu.Unlock()
			s.conns.Go(func() { s.read(conn) })
		}
	})
	t.Cleanup(func() {
		_ = s.syslog.Close()
		s.conns.Wait()
	})
	pool := x509.NewCertPool()
	pool.AddCert(s.Certificate())
	return s, &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
}

func (s *siem) read(conn net.Conn) {
	defer conn.Close()
	r := bufio.NewReader(conn)
	for {
		var n int
		if _, err := fmt.Fscanf(r, "%d ", &n); err != nil {
			return
		}
		frame := make([]byte, n)
		if _, err := io.ReadFull(r, frame); err != nil {
			return
		}
		s.mu.Lock()
		s.frames = append(s.frames, string(frame))
		s.mu.Unlock()
	}
}

// drop closes the connections of syslog.
func (s *siem) drop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, conn := range s.open {
		_ = conn.Close()
	}
}

func (s *siem) counts() (posted, frames int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.posted), len(s.frames)
}

func TestSinks(t *testing.T) {
	b := newShipBench(t)
	s, trusted := newSIEM(t)
	web, err := logship.OpenSink(s.URL+"/events", logship.SinkOptions{TLS: trusted, Token: "let-me-in"})
	require.NoError(t, err)
	trusted.ServerName = "example.com"
	line, err := logship.OpenSink("syslog+tls://"+s.syslog.Addr().String(), logship.SinkOptions{TLS: trusted})
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, web.Close())
		require.NoError(t, line.Close())
	})
	b.deps.Config.Ship.Sinks = []logship.Sink{web, line}
	b.write("a.json", b.line("1a.2b", "one", nil), b.line("1a.2b", "PGCUSTODY x", nil))
	b.ship()
	b.write("a.json", b.line("1a.2b", "three", nil))
	b.ship()

	// One that fails keeps neither the other waiting nor the store.
	s.refuse.Store(1)
	_, err = SendToSinks(t.Context(), b.deps)
	require.ErrorContains(t, err, "http:127.0.0.1")
	require.Equal(t, []string{"http:127.0.0.1 0 1 HTTP 503", "syslog:127.0.0.1 3 0 <nil>"},
		b.ask("select s.sink, s.sent_lines, s.failures, s.last_error from custody_data.log_sinks s order by 1"))
	require.Equal(t, []string{"2"}, b.ask("select count(*) from custody_data.log_spool"))
	_, err = SendToSinks(t.Context(), b.deps)
	require.NoError(t, err, "it is left alone for a while")
	posted, _ := s.counts()
	require.Zero(t, posted)
	require.Eventually(t, func() bool {
		_, err = SendToSinks(t.Context(), b.deps)
		posted, frames := s.counts()
		return err == nil && posted == 3 && frames == 3
	}, 20*time.Second, 200*time.Millisecond)
	require.Equal(t, []string{"0"}, b.ask("select count(*) from custody_data.log_spool"), "all have all")
	require.Equal(t, b.shipped(), s.posted, "what the store has")
	form := regexp.MustCompile(`^<(\d+)>1 \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z \S+ pgcustody - ocsf - (\{.*\})$`)
	for i, frame := range s.frames {
		match := form.FindStringSubmatch(frame)
		require.NotNil(t, match, frame)
		require.Equal(t, []string{"110", "107", "110"}[i], match[1], "a forged line is an error")
		require.True(t, json.Valid([]byte(match[2])))
	}

	// The trail goes the same way, once it is sealed.
	b.deps.Config.Ship.SinkTrail = true
	b.exec("select custody.record_audit_event('account.login')")
	require.Eventually(t, func() bool {
		_, err := Seal(t.Context(), b.deps)
		require.NoError(t, err)
		_, err = SendToSinks(t.Context(), b.deps)
		require.NoError(t, err)
		s.mu.Lock()
		defer s.mu.Unlock()
		return strings.Contains(strings.Join(s.posted, "\n"), `"account.login"`)
	}, 30*time.Second, 100*time.Millisecond)
	require.Equal(t, 2, strings.Count(strings.Join(s.posted, "\n"), `"action":"log.ship"`), "each batch is an event that has a leaf in the ledger")
	var size int64
	require.NoError(t, InContext(t.Context(), b.deps.Pool, b.deps.scope(SystemTenant, "test"), func(tx pgx.Tx) (err error) {
		size, err = db.New().LedgerSize(t.Context(), tx)
		return err
	}))
	posted, frames := s.counts()
	require.LessOrEqual(t, posted-3, int(size), "each once")
	require.Equal(t, posted, frames)
}

// A sink that takes its time keeps nothing from the store, however many jobs want to send.
func TestSinkSlow(t *testing.T) {
	b := newShipBench(t)
	sink := &slowSink{begun: make(chan struct{}, 100)}
	b.deps.Config.Ship.Sinks = []logship.Sink{sink}
	b.write("a.json", b.line("1a.2b", "one", nil))
	b.ship()
	client := b.client(b.deps, Schedule{})
	b.start(client)
	for range 8 {
		_, err := client.Insert(t.Context(), SinksArgs{}, nil)
		require.NoError(t, err)
	}
	<-sink.begun
	b.write("a.json", b.line("1a.2b", "two", nil))
	_, err := client.Insert(t.Context(), ShipArgs{}, nil)
	require.NoError(t, err)
	require.Eventually(t, func() bool { return len(b.batches()) == 2 }, time.Minute, 100*time.Millisecond)
	require.Equal(t, []string{"2"}, b.ask("select count(*) from custody_data.log_spool"))
}

// slowSink answers when it is told to stop.
type slowSink struct{ begun chan struct{} }

func (s *slowSink) Name() string { return "slow" }
func (s *slowSink) Close() error { return nil }

func (s *slowSink) Send(ctx context.Context, _ []byte) error {
	s.begun <- struct{}{}
	<-ctx.Done()
	return ctx.Err()
}

// A syslog server that goes away and comes back gets what it missed; the lines of a chunk
// that went with the connection come again.
func TestSyslogAgain(t *testing.T) {
	b := newShipBench(t)
	s, trusted := newSIEM(t)
	trusted.ServerName = "example.com"
	sink, err := logship.OpenSink("syslog+tls://"+s.syslog.Addr().String(), logship.SinkOptions{TLS: trusted})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, sink.Close()) })
	b.deps.Config.Ship.Sinks = []logship.Sink{sink}
	n := 0
	sent := func() {
		n++
		b.write("a.json", b.line("1a.2b", fmt.Sprint("line ", n), nil))
		b.ship()
		require.Eventually(t, func() bool {
			_, err := SendToSinks(t.Context(), b.deps)
			_, frames := s.counts()
			return err == nil && frames == n
		}, 20*time.Second, 50*time.Millisecond)
	}
	sent()
	s.drop()
	sent()
	s.mu.Lock()
	require.Len(t, s.open, 2, "over another connection")
	s.mu.Unlock()
	// Gone altogether: said, and tried again.
	require.NoError(t, s.syslog.Close())
	s.drop()
	b.write("a.json", b.line("1a.2b", "late", nil))
	b.ship()
	require.Eventually(t, func() bool {
		_, err := SendToSinks(t.Context(), b.deps)
		return err != nil
	}, 20*time.Second, 50*time.Millisecond)
	require.Equal(t, []string{"unreachable 2"}, b.ask("select s.last_error, s.sent_lines from custody_data.log_sinks s"))
	require.Equal(t, []string{"1"}, b.ask("select count(*) from custody_data.log_spool"))
}

func TestOpenSink(t *testing.T) {
	for _, address := range []string{"", "http://siem.example/x", "ftp://x/", "https://user:pass@siem.example/", "syslog://x:514"} {
		_, err := logship.OpenSink(address, logship.SinkOptions{})
		require.Error(t, err, address)
	}
	for address, name := range map[string]string{"syslog+tls://siem.example": "syslog:siem.example", "https://siem.example/in": "http:siem.example", "http://127.0.0.1:8080/": "http:127.0.0.1"} {
		sink, err := logship.OpenSink(address, logship.SinkOptions{})
		require.NoError(t, err)
		require.Equal(t, name, sink.Name())
		require.NoError(t, sink.Close())
	}
}

// A certificate that nobody vouches for is refused.
func TestSinkUntrusted(t *testing.T) {
	s, _ := newSIEM(t)
	for _, address := range []string{s.URL, "syslog+tls://" + s.syslog.Addr().String()} {
		sink, err := logship.OpenSink(address, logship.SinkOptions{})
		require.NoError(t, err)
		err = sink.Send(t.Context(), []byte("{}\n"))
		require.ErrorContains(t, err, "certificate refused")
		require.NoError(t, sink.Close())
	}
}
