package store

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os/exec"
	"strconv"
	"strings"
	"sync"
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
	require.NoError(t, server.Start())
	fakeGoogle.server, fakeGoogle.url = server, "http://127.0.0.1:"+port
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
		_ = fakeGoogle.server.Wait()
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
