// Package keystest has what tests of keys share: a server that speaks AWS KMS's
// protocol, as far as pgcustody uses it, for what a real one will not do when asked to,
// and a look for keys where they must not be.
package keystest

import (
	"crypto/rand"
	"encoding/json"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

// KMS is such a server; make it with NewKMS. Its keys live as long as it does.
type KMS struct {
	mu      sync.Mutex
	blobs   map[string]Blob // by ciphertext
	faults  []Fault         // for the next requests
	always  *Fault          // for all others
	asked   map[string]int  // requests by operation
	plain   []byte          // instead of random bytes, where set
	secrets [][]byte        // every plaintext that was made
}

// Blob is what a ciphertext stands for.
type Blob struct {
	Plaintext []byte
	Context   map[string]string
	Key       string
}

// Fault is an answer in place of the right one. The zero Fault is none.
type Fault struct {
	Pause  time.Duration // before whatever comes
	Drop   bool          // the connection ends without an answer
	Status int
	Body   string // or
	Code   string
}

// NewKMS makes a server that no socket leads to yet.
func NewKMS() *KMS { return &KMS{blobs: map[string]Blob{}, asked: map[string]int{}} }

// StartKMS makes a server and returns the settings with which AWS's SDK asks it.
func StartKMS(t testing.TB) (*KMS, map[string]string) {
	s := NewKMS()
	server := httptest.NewServer(s)
	t.Cleanup(func() {
		s.Heal()
		server.CloseClientConnections() // of those that still wait
		server.Close()
	})
	return s, KMSEnv(server.URL)
}

// KMSEnv are settings of an AWS account that does not exist.
func KMSEnv(endpoint string) map[string]string {
	return map[string]string{
		"AWS_ENDPOINT_URL_KMS": endpoint, "AWS_REGION": "eu-central-1", "AWS_ACCESS_KEY_ID": "AKIDTEST", "AWS_SECRET_ACCESS_KEY": "test-secret",
		"AWS_SESSION_TOKEN": "", "AWS_PROFILE": "", "AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null", "AWS_CA_BUNDLE": "",
	}
}

// Say queues a fault n times.
func (s *KMS) Say(n int, fault Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for range n {
		s.faults = append(s.faults, fault)
	}
}

// Always answers with a fault until Heal.
func (s *KMS) Always(fault Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.always = &fault
}

// Heal forgets all faults.
func (s *KMS) Heal() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults, s.always = nil, nil
}

// Count is how often an operation was asked for.
func (s *KMS) Count(operation string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked[operation]
}

// Secrets are all keys that were made.
func (s *KMS) Secrets() [][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.secrets
}

// Blob is what a ciphertext stands for.
func (s *KMS) Blob(ciphertext []byte) Blob {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.blobs[string(ciphertext)]
}

// SetBlob changes what a ciphertext stands for.
func (s *KMS) SetBlob(ciphertext []byte, blob Blob) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.blobs[string(ciphertext)] = blob
}

// MakeAlways makes this key from now on, and random ones again after nil.
func (s *KMS) MakeAlways(plaintext []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.plain = plaintext
}

func (s *KMS) next(operation string) (fault Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked[operation]++
	switch {
	case len(s.faults) > 0:
		fault, s.faults = s.faults[0], s.faults[1:]
	case s.always != nil:
		fault = *s.always
	}
	return fault
}

func (s *KMS) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var in struct {
		KeyId             string
		NumberOfBytes     int
		CiphertextBlob    []byte
		EncryptionContext map[string]string
	}
	answer := func(status int, body any) {
		w.Header().Set("Content-Type", "application/x-amz-json-1.1")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(body)
	}
	refuse := func(status int, code string) {
		answer(status, map[string]string{"__type": code, "message": "said by the fake: " + code})
	}
	operation := strings.TrimPrefix(r.Header.Get("X-Amz-Target"), "TrentService.")
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil || r.Header.Get("Authorization") == "" {
		refuse(http.StatusBadRequest, "ValidationException")
		return
	}

	fault := s.next(operation)
	if fault.Pause > 0 {
		select {
		case <-time.After(fault.Pause):
		case <-r.Context().Done():
			return
		}
	}
	switch {
	case fault.Drop:
		panic(http.ErrAbortHandler)
	case fault.Body != "":
		w.WriteHeader(fault.Status)
		_, _ = w.Write([]byte(fault.Body))
		return
	case fault.Code != "":
		refuse(fault.Status, fault.Code)
		return
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	switch operation {
	case "GenerateDataKey":
		if strings.Contains(in.KeyId, "missing") {
			refuse(http.StatusBadRequest, "NotFoundException")
			return
		}
		plaintext := random(in.NumberOfBytes)
		if s.plain != nil {
			plaintext = s.plain
		}
		ciphertext := random(180)
		s.blobs[string(ciphertext)] = Blob{plaintext, in.EncryptionContext, in.KeyId}
		s.secrets = append(s.secrets, plaintext)
		answer(http.StatusOK, map[string]any{"KeyId": in.KeyId, "Plaintext": plaintext, "CiphertextBlob": ciphertext})
	case "Decrypt":
		blob, ok := s.blobs[string(in.CiphertextBlob)]
		switch {
		case !ok || !maps.Equal(blob.Context, in.EncryptionContext):
			refuse(http.StatusBadRequest, "InvalidCiphertextException")
		case blob.Key != in.KeyId:
			refuse(http.StatusBadRequest, "IncorrectKeyException")
		default:
			answer(http.StatusOK, map[string]any{"KeyId": blob.Key, "Plaintext": blob.Plaintext, "EncryptionAlgorithm": "SYMMETRIC_DEFAULT"})
		}
	default:
		refuse(http.StatusBadRequest, "UnknownOperationException")
	}
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // it never fails
	return b
}
