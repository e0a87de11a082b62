package logship

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"
)

// Sink is where else the lines go: a SIEM. Send may be called again with lines that it
// took, after a crash: each has metadata.uid to tell them by.
type Sink interface {
	// Name is that of its place, without credentials.
	Name() string
	// Send sends lines, each ended by a line feed.
	Send(ctx context.Context, lines []byte) error
	Close() error
}

// SinkError says why a sink did not take lines, in words that may be kept.
type SinkError struct {
	Said string
	Err  error
}

func (e *SinkError) Error() string { return e.Said }
func (e *SinkError) Unwrap() error { return e.Err }

// SinkOptions are what a sink's address does not say.
type SinkOptions struct {
	// TLS verifies the sink; nil means the system's authorities.
	TLS *tls.Config
	// Token is sent as the bearer's, to HTTP sinks.
	Token string
	// Timeout of one answer; default 30 s.
	Timeout time.Duration
}

// OpenSink opens syslog+tls://host:port or https://host/path; http:// to this machine alone.
func OpenSink(address string, o SinkOptions) (Sink, error) {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" {
		return nil, errors.New("write it as syslog+tls://host:port or https://host/path")
	}
	if u.User != nil {
		return nil, errors.New("give a token apart, not in the address")
	}
	o.Timeout = cmp.Or(o.Timeout, 30*time.Second)
	config := &tls.Config{}
	if o.TLS != nil {
		config = o.TLS.Clone()
	}
	config.MinVersion = tls.VersionTLS12
	name := "http:" + u.Hostname()
	switch u.Scheme {
	case "syslog+tls":
		config.ServerName = cmp.Or(config.ServerName, u.Hostname())
		host := u.Host
		if u.Port() == "" {
			host = net.JoinHostPort(u.Hostname(), "6514")
		}
		hostname, _ := os.Hostname()
		return &syslogSink{name: "syslog:" + u.Hostname(), address: host, tls: config, timeout: o.Timeout, host: printable(hostname)}, nil
	case "http":
		if ip := net.ParseIP(u.Hostname()); u.Hostname() != "localhost" && (ip == nil || !ip.IsLoopback()) {
			return nil, errors.New("use https: lines of the log do not cross a network in the clear")
		}
	case "https":
	default:
		return nil, fmt.Errorf("unknown scheme %q: write it as syslog+tls://host:port or https://host/path", u.Scheme)
	}
	transport := &http.Transport{TLSClientConfig: config, ResponseHeaderTimeout: o.Timeout, Proxy: http.ProxyFromEnvironment, MaxIdleConns: 1}
	return &httpSink{name: name, url: u.String(), token: o.Token, client: &http.Client{
		Transport: transport, Timeout: o.Timeout,
		// Elsewhere nobody was asked to send.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

type httpSink struct {
	name, url, token string
	client           *http.Client
}

func (s *httpSink) Name() string { return s.name }

func (s *httpSink) Close() error {
	s.client.CloseIdleConnections()
	return nil
}

// Send posts the lines as JSON Lines; any status of 2xx says that they were taken.
func (s *httpSink) Send(ctx context.Context, lines []byte) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url, bytes.NewReader(lines))
	if err != nil {
		return &SinkError{"address", err}
	}
	request.Header.Set("Content-Type", "application/x-ndjson")
	if s.token != "" {
		request.Header.Set("Authorization", "Bearer "+s.token)
	}
	response, err := s.client.Do(request)
	if err != nil {
		return &SinkError{unreachable(err), err}
	}
	defer response.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(response.Body, 1<<20))
	if response.StatusCode/100 != 2 {
		return &SinkError{"HTTP " + strconv.Itoa(response.StatusCode), nil}
	}
	return nil
}

func unreachable(err error) string {
	var certificate *tls.CertificateVerificationError
	var timeout net.Error
	switch {
	case errors.As(err, &certificate):
		return "certificate refused"
	case errors.As(err, &timeout) && timeout.Timeout():
		return "timeout"
	}
	return "unreachable"
}

// syslogSink speaks RFC 5424 over TLS, framed by octet counting (RFC 5425).
type syslogSink struct {
	name, address, host string
	tls                 *tls.Config
	timeout             time.Duration
	conn                net.Conn
	buffer              []byte
}

func (s *syslogSink) Name() string { return s.name }

func (s *syslogSink) Close() error {
	if s.conn == nil {
		return nil
	}
	err := s.conn.Close()
	s.conn = nil
	return err
}

// Send writes the lines. The protocol has no answer: what the connection lost after it
// was written is not known. A closed connection is noticed before more is written.
func (s *syslogSink) Send(ctx context.Context, lines []byte) error {
	if s.conn != nil && !s.alive() {
		_ = s.Close()
	}
	if s.conn == nil {
		dialer := &tls.Dialer{NetDialer: &net.Dialer{Timeout: s.timeout}, Config: s.tls}
		conn, err := dialer.DialContext(ctx, "tcp", s.address)
		if err != nil {
			return &SinkError{unreachable(err), err}
		}
		s.conn = conn
	}
	s.buffer = s.buffer[:0]
	for len(lines) > 0 {
		end := bytes.IndexByte(lines, '\n')
		if end < 0 {
			end = len(lines)
		}
		s.buffer = appendSyslog(s.buffer, s.host, lines[:end])
		lines = lines[min(end+1, len(lines)):]
	}
	_ = s.conn.SetWriteDeadline(time.Now().Add(s.timeout))
	if _, err := s.conn.Write(s.buffer); err != nil {
		_ = s.Close()
		return &SinkError{unreachable(err), err}
	}
	return nil
}

// alive tells whether the other side has not closed.
func (s *syslogSink) alive() bool {
	_ = s.conn.SetReadDeadline(time.Now().Add(time.Millisecond))
	_, err := s.conn.Read(make([]byte, 1))
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

// severities of syslog by severity_id of OCSF.
func severity(line []byte) int {
	at := bytes.Index(line, []byte(`"severity_id":`))
	if at < 0 || at+14 >= len(line) {
		return 6
	}
	switch line[at+14] {
	case '4':
		return 3 // error
	case '3':
		return 4 // warning
	case '2':
		return 5 // notice
	}
	return 6 // informational
}

// appendSyslog frames one line. Facility 13 is log audit; the time is the event's.
func appendSyslog(dst []byte, host string, line []byte) []byte {
	at := "-"
	if i := bytes.Index(line, []byte(`"time":`)); i >= 0 {
		digits := line[i+7:]
		n := 0
		for n < len(digits) && digits[n] >= '0' && digits[n] <= '9' {
			n++
		}
		if ms, err := strconv.ParseInt(string(digits[:n]), 10, 64); err == nil && ms > 0 {
			at = time.UnixMilli(ms).UTC().Format("2006-01-02T15:04:05.000Z")
		}
	}
	head := fmt.Sprintf("<%d>1 %s %s pgcustody - ocsf - ", 13*8+severity(line), at, cmp.Or(host, "-"))
	dst = strconv.AppendInt(dst, int64(len(head)+len(line)), 10)
	dst = append(dst, ' ')
	dst = append(dst, head...)
	return append(dst, line...)
}

// printable is a host's name as RFC 5424 wants it.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' {
			return -1
		}
		return r
	}, s[:min(len(s), 255)])
}
