package jobs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"pgcustody/cmd/devstack/stack/stacktest"
)

// proxy stands before the S3 server and does to some requests what networks and
// stores do to them.
type proxy struct {
	*httptest.Server
	mu    sync.Mutex
	fault failing
	left  int // how many more requests it is done to
	done  int
}

// failing is what goes wrong: with the requests that match.
type failing struct {
	name    string
	match   func(*http.Request) bool
	request func(http.ResponseWriter, *http.Request) bool // false: it goes on to the store
	answer  func(*http.Response) error
}

func newProxy(t *testing.T) *proxy {
	target, err := url.Parse(stacktest.Shared(t).Endpoint())
	require.NoError(t, err)
	p := &proxy{}
	faulted := func(r *http.Request) bool { return r.Header.Get("X-Faulted") != "" }
	reverse := &httputil.ReverseProxy{
		// What is signed names this host.
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = target.Scheme, target.Host, r.In.Host
		},
		ModifyResponse: func(r *http.Response) error {
			p.mu.Lock()
			answer := p.fault.answer
			p.mu.Unlock()
			if answer != nil && faulted(r.Request) {
				return answer(r)
			}
			return nil
		},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { panic(http.ErrAbortHandler) },
	}
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		f := p.fault
		hit := p.left > 0 && f.match != nil && f.match(r)
		if hit {
			p.left--
			p.done++
		}
		p.mu.Unlock()
		if hit {
			if f.request != nil && f.request(w, r) {
				return
			}
			r.Header.Set("X-Faulted", "1") // not signed; the store passes it over
		}
		reverse.ServeHTTP(w, r)
	}))
	t.Cleanup(p.Close)
	return p
}

// met is how many requests went wrong since.
func (p *proxy) met() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.done
}

// set has the next n matching requests go wrong.
func (p *proxy) set(f failing, n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault, p.left, p.done = f, n, 0
}

func says(status int, code string) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(status)
		fmt.Fprintf(w, `<?xml version="1.0"?><Error><Code>%s</Code><Message>%s</Message></Error>`, code, code)
		return true
	}
}

func ofArchive(method, suffix string) func(*http.Request) bool {
	return func(r *http.Request) bool {
		return r.Method == method && strings.HasSuffix(r.URL.Path, suffix)
	}
}

func query(name string) func(*http.Request) bool {
	return func(r *http.Request) bool { return r.Method != http.MethodGet && r.URL.Query().Has(name) }
}

// hangUp ends the connection after half of what was to come.
func hangUp(_ http.ResponseWriter, r *http.Request) bool {
	_, _ = io.CopyN(io.Discard, r.Body, max(r.ContentLength/2, 1))
	panic(http.ErrAbortHandler)
}

// altered changes or cuts the body of an answer.
func altered(change func([]byte) []byte) func(*http.Response) error {
	return func(r *http.Response) error {
		body, err := io.ReadAll(r.Body)
		if err := errors.Join(err, r.Body.Close()); err != nil {
			return err
		}
		r.Body = io.NopCloser(bytes.NewReader(change(body)))
		return nil
	}
}

func flip(body []byte) []byte {
	if len(body) > 0 {
		body[len(body)/2] ^= 1
	}
	return body
}

func faults() []failing {
	const object, manifest, index = ".age", ".manifest.json", ".note"
	list := []failing{
		{name: "500 to the manifest", match: ofArchive(http.MethodPut, manifest), request: says(500, "InternalError")},
		{name: "503 to a part", match: query("partNumber"), request: says(503, "SlowDown")},
		{name: "500 at the end of the upload", match: query("uploadId"), request: says(500, "InternalError")},
		{name: "clock skew", match: query("partNumber"), request: says(403, "RequestTimeTooSkewed")},
		{name: "expired credentials", match: ofArchive(http.MethodPut, manifest), request: says(400, "ExpiredToken")},
		{name: "disconnect in the middle of a part", match: query("partNumber"), request: hangUp},
		{name: "disconnect in the middle of the manifest", match: ofArchive(http.MethodPut, manifest), request: hangUp},
		{name: "disconnect in the middle of the index", match: ofArchive(http.MethodPut, index), request: hangUp},
		{name: "answer to the upload lost", match: func(r *http.Request) bool { return r.Method == http.MethodPost && r.URL.Query().Has("uploadId") },
			answer: func(*http.Response) error { return io.ErrUnexpectedEOF }},
		{name: "answer to the manifest lost", match: ofArchive(http.MethodPut, manifest), answer: func(*http.Response) error { return io.ErrUnexpectedEOF }},
		{name: "answer to the index lost", match: ofArchive(http.MethodPut, index), answer: func(*http.Response) error { return io.ErrUnexpectedEOF }},
		{name: "object cut short when read back", match: ofArchive(http.MethodGet, object), answer: altered(func(b []byte) []byte { return b[:len(b)/2] })},
		{name: "object changed when read back", match: ofArchive(http.MethodGet, object), answer: altered(flip)},
		{name: "manifest changed when read back", match: ofArchive(http.MethodGet, manifest), answer: altered(flip)},
		{name: "part changed on its way", match: query("partNumber"), request: func(_ http.ResponseWriter, r *http.Request) bool {
			body, _ := io.ReadAll(r.Body)
			r.Body = io.NopCloser(bytes.NewReader(flip(body)))
			return false
		}},
		{name: "wrong checksum of a part", match: query("partNumber"), answer: func(r *http.Response) error {
			r.Header.Set("X-Amz-Checksum-Sha256", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=")
			return nil
		}},
		{name: "success that was not, of the manifest", match: ofArchive(http.MethodPut, manifest), request: func(w http.ResponseWriter, r *http.Request) bool {
			_, _ = io.Copy(io.Discard, r.Body)
			w.Header().Set("Etag", `"0123456789abcdef0123456789abcdef"`)
			w.Header().Set("X-Amz-Version-Id", "01ARZ3NDEKTSV4RRFFQ69G5FAV")
			w.Header().Set("X-Amz-Checksum-Sha256", r.Header.Get("X-Amz-Checksum-Sha256"))
			return true
		}},
		{name: "success that was not, of the upload", match: func(r *http.Request) bool { return r.Method == http.MethodPost && r.URL.Query().Has("uploadId") },
			request: func(w http.ResponseWriter, r *http.Request) bool {
				_, _ = io.Copy(io.Discard, r.Body)
				w.Header().Set("X-Amz-Version-Id", "01ARZ3NDEKTSV4RRFFQ69G5FAV")
				fmt.Fprint(w, `<?xml version="1.0"?><CompleteMultipartUploadResult><ETag>"0-2"</ETag></CompleteMultipartUploadResult>`)
				return true
			}},
		{name: "slow parts", match: query("partNumber"), request: func(_ http.ResponseWriter, _ *http.Request) bool {
			time.Sleep(700 * time.Millisecond)
			return false
		}},
	}
	if os.Getenv("PGCUSTODY_KILLS") != "" {
		// Takes a minute for each request.
		list = append(list, failing{name: "no answer", match: ofArchive(http.MethodPut, manifest), request: func(_ http.ResponseWriter, r *http.Request) bool {
			_, _ = io.Copy(io.Discard, r.Body) // until then nobody sees that the client has gone
			<-r.Context().Done()
			return true
		}})
	}
	return list
}

// TestArchiveFaultyStore lets the store fail in one way after the other while the
// real binary archives. Whatever the run says, it records nothing that is not in the
// store, and the next run finishes.
func TestArchiveFaultyStore(t *testing.T) {
	t.Parallel()
	inShares(t, faults(), func(t *testing.T, faults []failing) {
		k := newKilling(t)
		p := newProxy(t)
		k.env = append(k.env, "AWS_ENDPOINT_URL_S3="+p.URL)
		k.big(k.day(1), 10)
		k.finish()
		for i, f := range faults {
			k.big(k.day(1+i%3), 800) // two parts
			k.settle()
			p.set(f, 2) // as often as the client tries
			cmd, out := k.command()
			err := cmd.Run()
			require.NotZero(t, p.met(), "%s: no request was met", f.name)
			t.Logf("%s: %v %s", f.name, err, lastLine(out.String()))
			if err != nil {
				require.Equal(t, 1, strings.Count(out.String(), "pgcustody: "), "%s: an error is one line: %s", f.name, out.String())
			}
			p.set(failing{}, 0)
			if err == nil {
				continue
			}
			k.finish()
			require.Zero(t, k.number(SystemTenant, "select count(*) from custody.archive_segments where recorded_at is null"), f.name)
		}
		k.whole()
	})
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}

// TestArchiveWithoutPostgres ends the database's sessions while the real binary
// archives.
func TestArchiveWithoutPostgres(t *testing.T) {
	k := newKilling(t)
	for n := range 3 {
		k.big(k.day(1), 600)
		k.settle()
		cmd, out := k.command()
		require.NoError(t, cmd.Start())
		// Once the segment is open, at different times.
		require.Eventually(t, func() bool {
			var open bool
			err := k.super.QueryRow(t.Context(), "select exists (select from custody_data.archive_segments where recorded_at is null)").Scan(&open)
			return err == nil && open
		}, time.Minute, time.Millisecond)
		time.Sleep(time.Duration(n) * 100 * time.Millisecond)
		_, err := k.super.Exec(t.Context(), "select pg_catalog.pg_terminate_backend(a.pid) from pg_catalog.pg_stat_activity a where a.datname = current_database() and a.usename = 'custody_runner' and a.pid <> pg_catalog.pg_backend_pid()")
		require.NoError(t, err)
		t.Logf("%v %s", cmd.Wait(), lastLine(out.String()))
		k.finish()
		require.Zero(t, k.number(SystemTenant, "select count(*) from custody.archive_segments where recorded_at is null"))
	}
	k.whole()
}
