package store

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	gcs "cloud.google.com/go/storage"
	"github.com/stretchr/testify/require"

	"pgcustody/cmd/devstack/stack"
)

// fakeGoogle is a server of fake-gcs-server's for all tests. It speaks the protocol, and
// keeps what retention it is given without holding anybody to it.
var fakeGoogle struct {
	sync.Mutex
	server *exec.Cmd
	done   chan struct{}
	url    string
}

func startGoogle(t *testing.T) string {
	t.Helper()
	fakeGoogle.Lock()
	defer fakeGoogle.Unlock()
	if fakeGoogle.server != nil {
		return fakeGoogle.url
	}
	exe, err := stack.Tool(context.Background(), "fake-gcs-server", "github.com/fsouza/fake-gcs-server")
	require.NoError(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	_, port, err := net.SplitHostPort(l.Addr().String())
	require.NoError(t, err)
	require.NoError(t, l.Close())
	var log bytes.Buffer
	server := exec.Command(exe, "-scheme", "http", "-host", "127.0.0.1", "-port", port, "-backend", "memory", "-log-level", "error")
	server.Stdout, server.Stderr = &log, &log
	// It goes with this process, however that ends: with the thread that started it.
	server.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	done := make(chan struct{})
	go func() {
		runtime.LockOSThread()
		defer close(done)
		err := server.Start()
		started <- err
		if err == nil {
			_ = server.Wait()
		}
	}()
	require.NoError(t, <-started)
	fakeGoogle.server, fakeGoogle.done, fakeGoogle.url = server, done, "http://127.0.0.1:"+port
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	require.Eventually(t, func() bool {
		answer, err := client.Get(fakeGoogle.url + "/_internal/healthcheck")
		if err == nil {
			answer.Body.Close()
		}
		return err == nil
	}, 20*time.Second, 20*time.Millisecond, "fake-gcs-server does not start")
	return fakeGoogle.url
}

func stopGoogle() {
	fakeGoogle.Lock()
	defer fakeGoogle.Unlock()
	if fakeGoogle.server != nil {
		_ = fakeGoogle.server.Process.Kill()
		<-fakeGoogle.done
	}
}

// openGoogle opens a new versioned bucket at the fake server, through wrap where given.
func openGoogle(t *testing.T, wrap func(http.Handler) http.Handler) *gcsStore {
	t.Helper()
	target, err := url.Parse(startGoogle(t))
	require.NoError(t, err)
	transport := &http.Transport{}
	var handler http.Handler = &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.Out.Host = target.Host
		},
		Transport:    transport,
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) },
	}
	if wrap != nil {
		handler = wrap(handler)
	}
	server := httptest.NewServer(handler)
	t.Cleanup(func() { server.Close(); transport.CloseIdleConnections() })
	t.Setenv("STORAGE_EMULATOR_HOST", server.URL)
	name := "store-" + strings.ToLower(rand.Text())
	opened, err := OpenURL(t.Context(), "gs://"+name)
	require.NoError(t, err)
	s := opened.(*gcsStore)
	t.Cleanup(func() { _ = s.client.Close() })
	require.NoError(t, s.bucket.Create(t.Context(), "p", &gcs.BucketAttrs{VersioningEnabled: true}))
	return s
}

// holding adds to the fake server what Google documents: locks that hold, and can be
// lengthened; holds; settings of the bucket.
// https://cloud.google.com/storage/docs/object-lock, …/object-holds
type holding struct {
	next http.Handler
	mu   sync.Mutex
	kept map[string]*kept // by generation
	// coming is the retention of unfinished objects, by name.
	coming map[string]kept
	// lets tells what it does not hold to.
	lets func(r *http.Request) bool
	// settings of the bucket that are otherwise than they should be.
	settings map[string]any
}

type kept struct {
	Mode        string    `json:"mode"`
	RetainUntil time.Time `json:"retainUntilTime"`
	hold        bool
}

func holdingGoogle(next http.Handler) http.Handler {
	return &holding{next: next, kept: map[string]*kept{}, coming: map[string]kept{}, lets: func(*http.Request) bool { return false }}
}

func refuse(w http.ResponseWriter, code int, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(map[string]any{"error": map[string]any{"code": code, "message": message}})
}

func (h *holding) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	object := strings.HasPrefix(r.URL.Path, "/storage/v1/b/") && strings.Contains(r.URL.Path, "/o/")
	generation := r.URL.Query().Get("generation")
	h.mu.Lock()
	of := h.kept[generation]
	h.mu.Unlock()
	switch {
	case object && r.Method == http.MethodDelete && of != nil && !h.lets(r):
		h.mu.Lock()
		held := of.hold || of.RetainUntil.After(time.Now())
		h.mu.Unlock()
		if held {
			refuse(w, http.StatusForbidden, "Object is subject to object retention or a hold and cannot be deleted")
			return
		}
	case object && r.Method == http.MethodPatch:
		h.patch(w, r)
		return
	}
	if r.Method == http.MethodPost && r.URL.Query().Get("uploadType") == "resumable" {
		// The fake server forgets the retention of what comes in chunks.
		text, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(text))
		var object struct{ Retention kept }
		if json.Unmarshal(text, &object) == nil {
			h.mu.Lock()
			h.coming[r.URL.Query().Get("name")] = object.Retention
			h.mu.Unlock()
		}
	}
	answer := httptest.NewRecorder()
	h.next.ServeHTTP(answer, r)
	body := answer.Body.Bytes()
	if strings.Contains(answer.Header().Get("Content-Type"), "json") && answer.Code == http.StatusOK {
		var content map[string]any
		decoder := json.NewDecoder(bytes.NewReader(body))
		decoder.UseNumber()
		if decoder.Decode(&content) == nil {
			h.overlay(content)
			if items, ok := content["items"].([]any); ok {
				for _, item := range items {
					if object, ok := item.(map[string]any); ok {
						h.overlay(object)
					}
				}
			}
			body, _ = json.Marshal(content)
		}
	}
	for name, values := range answer.Header() {
		w.Header()[name] = values
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(answer.Code)
	_, _ = w.Write(body)
}

// overlay puts into a description what the fake server does not know.
func (h *holding) overlay(content map[string]any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch content["kind"] {
	case "storage#bucket":
		content["objectRetention"] = map[string]any{"mode": "Enabled"}
		content["iamConfiguration"] = map[string]any{
			"publicAccessPrevention": "enforced", "uniformBucketLevelAccess": map[string]any{"enabled": true},
		}
		maps.Copy(content, h.settings)
	case "storage#object":
		generation := fmt.Sprint(content["generation"])
		if n, _ := strconv.Atoi(generation); n == 0 { // not yet an object
			return
		}
		of := h.kept[generation]
		if of == nil {
			of = &kept{}
			if retention, ok := content["retention"].(map[string]any); ok {
				text, _ := json.Marshal(retention)
				_ = json.Unmarshal(text, of)
			}
			if coming, ok := h.coming[fmt.Sprint(content["name"])]; ok {
				*of = coming
				delete(h.coming, fmt.Sprint(content["name"]))
			}
			h.kept[generation] = of
		}
		content["temporaryHold"] = of.hold
		delete(content, "retention")
		if of.Mode != "" {
			content["retention"] = of
		}
	}
}

func (h *holding) patch(w http.ResponseWriter, r *http.Request) {
	var change struct {
		Retention     *kept `json:"retention"`
		TemporaryHold *bool `json:"temporaryHold"`
	}
	text, _ := io.ReadAll(r.Body)
	// null takes the retention away.
	takesAway := bytes.Contains(text, []byte(`"retention":null`)) || bytes.Contains(text, []byte(`"retention":{}`))
	_ = json.Unmarshal(text, &change)
	get := r.Clone(r.Context())
	get.Method, get.Body, get.ContentLength = http.MethodGet, http.NoBody, 0
	generation := r.URL.Query().Get("generation")
	h.mu.Lock()
	if of := h.kept[generation]; of != nil {
		override := r.URL.Query().Get("overrideUnlockedRetention") == "true"
		weaker := takesAway || change.Retention != nil && (change.Retention.RetainUntil.Before(of.RetainUntil) || change.Retention.Mode == "")
		switch {
		case weaker && !h.lets(r) && (of.Mode == gcsLocked || of.Mode == gcsUnlocked && !override):
			h.mu.Unlock()
			refuse(w, http.StatusForbidden, "Object retention cannot be shortened")
			return
		case takesAway:
			of.Mode, of.RetainUntil = "", time.Time{}
		case change.Retention != nil:
			of.Mode, of.RetainUntil = change.Retention.Mode, change.Retention.RetainUntil
		}
		if change.TemporaryHold != nil {
			of.hold = *change.TemporaryHold
		}
	}
	h.mu.Unlock()
	h.ServeHTTP(w, get)
}

// TestGoogleFakeIsFound: fake-gcs-server says that it has a lock, once it is made to, and
// keeps to none; settings are not believed.
func TestGoogleFakeIsFound(t *testing.T) {
	s := openGoogle(t, nil)
	findings, err := s.Check(t.Context())
	require.NoError(t, err)
	require.Subset(t, names(findings), []string{NoLock, PublicAccess})
	require.ErrorIs(t, Accept(findings, []string{PublicAccess}), ErrNoObjectLock)

	s = openGoogle(t, func(next http.Handler) http.Handler {
		h := holdingGoogle(next).(*holding)
		h.lets = func(*http.Request) bool { return true }
		return h
	})
	findings, err = s.Check(t.Context())
	require.NoError(t, err)
	require.Subset(t, names(findings), []string{CanaryShortened, CanaryDeleted})
	require.NotContains(t, names(findings), BypassRight, "where no lock holds it says nothing")
}

func TestGoogleCheckPasses(t *testing.T) {
	s := openGoogle(t, holdingGoogle)
	findings, err := s.Check(t.Context())
	require.NoError(t, err)
	// Anybody is anybody to the fake server, and overrides what can be overridden.
	require.Equal(t, []string{NoDefaultRetention, BypassRight, PublicAccess, PublicAccess}, names(findings))
	require.NoError(t, Accept(findings, []string{BypassRight, PublicAccess}))
}

// TestGoogleSettings: what a bucket can say of itself that makes it unfit.
func TestGoogleSettings(t *testing.T) {
	var bucket *holding
	s := openGoogle(t, func(next http.Handler) http.Handler {
		bucket = holdingGoogle(next).(*holding)
		return bucket
	})
	locked := map[string]any{"retentionPeriod": "86400", "isLocked": true, "effectiveTime": "2026-01-01T00:00:00Z"}
	for name, test := range map[string]struct {
		settings map[string]any
		found    []string
		unfit    bool
	}{
		"nothing":                     {map[string]any{"retentionPolicy": locked}, nil, false},
		"a policy that is not locked": {map[string]any{"retentionPolicy": map[string]any{"retentionPeriod": "86400", "effectiveTime": "2026-01-01T00:00:00Z"}}, []string{Governance}, true},
		"no versions":                 {map[string]any{"retentionPolicy": locked, "versioning": map[string]any{"enabled": false}}, []string{NoVersioning}, true},
		"no object retention":         {map[string]any{"retentionPolicy": locked, "objectRetention": nil}, []string{NoLock}, true},
		"public access not prevented": {map[string]any{"retentionPolicy": locked, "iamConfiguration": map[string]any{"uniformBucketLevelAccess": map[string]any{"enabled": true}}}, []string{PublicAccess}, false},
		"access lists of their own":   {map[string]any{"retentionPolicy": locked, "iamConfiguration": map[string]any{"publicAccessPrevention": "enforced"}}, []string{PublicAccess}, false},
	} {
		bucket.mu.Lock()
		bucket.settings = test.settings
		bucket.mu.Unlock()
		findings, err := s.CheckSettings(t.Context())
		require.NoError(t, err, name)
		require.Equal(t, test.found, names(findings), name)
		require.Equal(t, test.unfit, Accept(findings, nil) != nil, name)
		if test.unfit {
			// With the settings accepted or not, the check says so too.
			findings, err = s.Check(t.Context())
			require.NoError(t, err, name)
			require.Contains(t, names(findings), test.found[0], name)
		}
	}
}

// TestGoogleOverrideRefused: credentials without storage.objects.overrideUnlockedRetention.
func TestGoogleOverrideRefused(t *testing.T) {
	s := openGoogle(t, breakingGoogle(func(w http.ResponseWriter, r *http.Request) bool {
		override := r.URL.Query().Get("overrideUnlockedRetention") == "true"
		if override {
			refuse(w, http.StatusForbidden, "does not have storage.objects.overrideUnlockedRetention access")
		}
		return override
	}))
	findings, err := s.Check(t.Context())
	require.NoError(t, err)
	require.NotContains(t, names(findings), BypassRight)
}

// breaking lets a test answer in the fake server's place.
func breakingGoogle(breaks func(w http.ResponseWriter, r *http.Request) bool) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		next = holdingGoogle(next)
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !breaks(w, r) {
				next.ServeHTTP(w, r)
			}
		})
	}
}

// hasty makes a store give up at once.
func hasty(s *gcsStore) *gcsStore {
	s.client.SetRetry(gcs.WithPolicy(gcs.RetryNever))
	s.bucket = s.client.Bucket(s.name) // which takes it over
	s.patience = time.Second
	return s
}

func TestGoogleErrors(t *testing.T) {
	status := 0
	s := hasty(openGoogle(t, breakingGoogle(func(w http.ResponseWriter, r *http.Request) bool {
		if status != 0 {
			refuse(w, status, "said the server")
		}
		return status != 0
	})))
	locked := put(t, s, "locked", "x", PutOptions{RetainUntil: inAnHour()})
	for code, kind := range map[int]error{
		401: ErrAccessDenied, 403: ErrAccessDenied, 400: ErrRefused, 429: ErrUnreachable, 500: ErrUnreachable, 503: ErrUnreachable,
	} {
		status = code
		_, putErr := s.Put(t.Context(), "k", strings.NewReader("x"), PutOptions{})
		_, getErr := s.Get(t.Context(), "locked", "")
		_, headErr := s.Head(t.Context(), "locked", locked.Version)
		_, deleteErr := s.Delete(t.Context(), "locked")
		_, checkErr := s.Check(t.Context())
		var listErr error
		for _, listErr = range s.List(t.Context(), "") {
			break
		}
		for op, err := range map[string]error{
			"put": putErr, "get": getErr, "head": headErr, "delete": deleteErr, "check": checkErr, "list": listErr,
			"extend": s.Extend(t.Context(), "locked", "", inAnHour()), "hold": s.SetLegalHold(t.Context(), "locked", "", true),
		} {
			var e *Error
			require.ErrorAs(t, err, &e, "%s %d", op, code)
			require.ErrorIs(t, err, kind, "%s %d", op, code)
			require.Contains(t, e.Object, s.URL(), op)
			if op != "put" || !errors.Is(kind, ErrUnreachable) { // which is tried until its time is over
				require.ErrorContains(t, err, "said the server", op)
			}
			require.NotContains(t, err.Error(), "http", op)
		}
	}
	status = 0
	n, err := s.Delete(t.Context(), "locked")
	require.ErrorIs(t, err, ErrLocked)
	require.ErrorContains(t, err, locked.Version)
	require.Zero(t, n)

	missing := *s
	missing.name, missing.bucket = "no-such-bucket", s.client.Bucket("no-such-bucket")
	_, err = missing.Head(t.Context(), "k", "")
	require.ErrorIs(t, err, ErrBucketMissing)
	_, err = missing.Check(t.Context())
	require.ErrorIs(t, err, ErrBucketMissing)
}

// TestGoogleConnectionsAreLost in the middle of what is sent and of what is read.
func TestGoogleConnectionsAreLost(t *testing.T) {
	body := randomBytes(2*partSize + 7)
	var lost atomic.Int64
	always := false
	s := openGoogle(t, breakingGoogle(func(w http.ResponseWriter, r *http.Request) bool {
		upload := strings.HasPrefix(r.URL.Path, "/upload/")
		if always && r.URL.Query().Get("alt") == "media" && r.Method == http.MethodGet {
			w.Header().Set("Content-Length", strconv.Itoa(len(body)))
			w.Header().Set("Content-Type", "application/octet-stream")
			w.WriteHeader(http.StatusOK)
			_, _ = w.Write(body[:len(body)/2])
			panic(http.ErrAbortHandler)
		}
		if upload && (always || lost.Add(1)%2 == 1) {
			_, _ = io.CopyN(io.Discard, r.Body, 100)
			panic(http.ErrAbortHandler)
		}
		return false
	}))
	for _, size := range []int{100, len(body)} {
		key := fmt.Sprint(size)
		_, err := s.Put(t.Context(), key, bytes.NewReader(body[:size]), PutOptions{RetainUntil: inAnHour(), IfNoneMatch: true})
		require.NoError(t, err)
		require.True(t, bytes.Equal(body[:size], readAll(t, s, key, "")))
	}
	require.GreaterOrEqual(t, lost.Load(), int64(4), "nothing was broken")

	always = true
	hasty(s)
	_, err := s.Put(t.Context(), "k", bytes.NewReader(body), PutOptions{})
	require.ErrorIs(t, err, ErrUnreachable)
	require.NotContains(t, err.Error(), "upload", "who has the address of an upload can write it")
	_, err = s.Head(t.Context(), "k", "")
	require.ErrorIs(t, err, ErrNotFound)
	object, err := s.Get(t.Context(), fmt.Sprint(len(body)), "")
	require.NoError(t, err)
	defer object.Close()
	got, err := io.ReadAll(object)
	require.Error(t, err)
	require.Less(t, len(got), len(body))
	var e *Error
	require.ErrorAs(t, err, &e)
	require.Contains(t, e.Object, "gs://")
}

// TestGoogleHidden: a key without a live generation is told as one under a marker.
func TestGoogleHidden(t *testing.T) {
	s := openGoogle(t, holdingGoogle)
	first := put(t, s, "k", "first", PutOptions{RetainUntil: inAnHour()})
	require.NoError(t, s.bucket.Object("k").Delete(t.Context()))
	put(t, s, "k2", "second", PutOptions{})
	var got []string
	for info, err := range s.History(t.Context(), "") {
		require.NoError(t, err)
		got = append(got, fmt.Sprint(info.Key, " ", info.DeleteMarker))
	}
	require.Equal(t, []string{"k true", "k false", "k2 false"}, got)
	_, err := s.Get(t.Context(), "k", "")
	require.ErrorIs(t, err, ErrNotFound)
	require.Equal(t, "first", string(readAll(t, s, "k", first.Version)))
}
