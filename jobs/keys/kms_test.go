package keys

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/stretchr/testify/require"

	"pgcustody/jobs/keys/keystest"
)

// fakeKMS is a server of the test's own.
type fakeKMS struct {
	*keystest.KMS
	t testing.TB
}

func newFakeKMS(t testing.TB) *fakeKMS { return &fakeKMS{keystest.NewKMS(), t} }

// fast makes the SDK's own retryer wait for milliseconds.
func fast(o *kms.Options) {
	o.Retryer = retry.NewStandard(func(r *retry.StandardOptions) {
		r.MaxAttempts = kmsAttempts
		r.MaxBackoff = 5 * time.Millisecond
	})
}

// testConfig has settings of an AWS account that does not exist.
func testConfig(endpoint string, client aws.HTTPClient) aws.Config {
	return aws.Config{
		Region: "eu-central-1", BaseEndpoint: &endpoint, HTTPClient: client,
		Credentials: credentials.NewStaticCredentialsProvider("AKIDTEST", "test-secret", ""),
	}
}

// provider is one that asks this server, through a socket.
func (f *fakeKMS) provider(ids ...string) *kmsProvider {
	f.t.Helper()
	if len(ids) == 0 {
		ids = []string{"alias/test"}
	}
	server := httptest.NewServer(f)
	f.t.Cleanup(server.Close)
	p, err := newKMS(testConfig(server.URL, server.Client()), ids, false, fast)
	require.NoError(f.t, err)
	return p
}

// cold is the same provider in a process that was started anew.
func cold(p *kmsProvider) *kmsProvider {
	return &kmsProvider{client: p.client, credentials: p.credentials, ids: p.ids, within: p.within, development: p.development, cache: cache{keep: kmsKeep}}
}

func TestKMS(t *testing.T) {
	t.Parallel()
	ctx, f := t.Context(), newFakeKMS(t)
	p := f.provider()

	ref, key, err := p.NewKEK(ctx, "acme", 3)
	require.NoError(t, err)
	require.Equal(t, "acme", ref.Tenant)
	require.Equal(t, 3, ref.Version)
	require.Equal(t, f.Secrets()[0], key.Bytes())
	require.Equal(t, keystest.Blob{Plaintext: f.Secrets()[0], Context: map[string]string{"pgcustody": "acme", "version": "3"}, Key: "alias/test"}, f.Blob(ref.Stored))
	keystest.RequireSilent(t, fmt.Sprintf("%v %+v %s", ref, ref, ref.Stored), key.Bytes())

	other := cold(p)
	for range 3 {
		got, err := other.KEK(ctx, ref)
		require.NoError(t, err)
		require.Equal(t, key.Bytes(), got.Bytes())
		got.Wipe() // the caller's copy alone
	}
	_, err = p.KEK(ctx, ref)
	require.NoError(t, err)
	require.Equal(t, 1, f.Count("Decrypt"), "the maker knows it, the other asks once")

	again, key2, err := p.NewKEK(ctx, "acme", 3)
	require.NoError(t, err)
	require.NotEqual(t, ref.Stored, again.Stored)
	require.NotEqual(t, key.Bytes(), key2.Bytes())
	got, err := p.KEK(ctx, ref)
	require.NoError(t, err)
	require.Equal(t, key.Bytes(), got.Bytes(), "the Ref says which of the two")

	stored, err := json.Marshal(ref)
	require.NoError(t, err)
	var back Ref
	require.NoError(t, json.Unmarshal(stored, &back))
	require.Equal(t, ref, back)
}

func TestKMSBindsTenantAndVersion(t *testing.T) {
	t.Parallel()
	ctx, f := t.Context(), newFakeKMS(t)
	p := f.provider()
	ref, key, err := p.NewKEK(ctx, "acme", 3)
	require.NoError(t, err)

	changed := bytes.Clone(ref.Stored)
	changed[17] ^= 1
	for _, other := range []Ref{{"other", 3, ref.Stored}, {"acme", 4, ref.Stored}, {"acme", 3, changed}} {
		_, err := p.KEK(ctx, other)
		said := requireKind(t, err, ErrRefused, key.Bytes())
		require.Contains(t, said, "InvalidCiphertextException")
		require.Contains(t, said, other.String())
	}
	require.Equal(t, 3, f.Count("Decrypt"), "a refusal is not tried again")
	_, err = p.KEK(ctx, Ref{Tenant: "acme", Version: 3})
	requireKind(t, err, ErrUnknown, key.Bytes())
	require.Equal(t, 3, f.Count("Decrypt"))
}

func TestKMSKeyIsChanged(t *testing.T) {
	t.Parallel()
	ctx, f := t.Context(), newFakeKMS(t)
	old, key, err := f.provider("alias/old").NewKEK(ctx, "acme", 1)
	require.NoError(t, err)

	_, err = f.provider("alias/new").KEK(ctx, old)
	said := requireKind(t, err, ErrRefused, key.Bytes())
	require.Contains(t, said, "IncorrectKeyException")
	require.Contains(t, said, "awskms:NEW,OLD")

	both := f.provider("alias/new", "alias/old")
	got, err := both.KEK(ctx, old)
	require.NoError(t, err)
	require.Equal(t, key.Bytes(), got.Bytes())
	next, _, err := both.NewKEK(ctx, "acme", 2)
	require.NoError(t, err)
	require.Equal(t, "alias/new", f.Blob(next.Stored).Key)
}

func TestKMSSaysNo(t *testing.T) {
	t.Parallel()
	for code, expected := range map[string]struct {
		status int
		kind   error
		hint   string
	}{
		"AccessDeniedException":       {400, ErrRefused, "allow kms:GenerateDataKey and kms:Decrypt"},
		"DisabledException":           {400, ErrRefused, "enable the KMS key"},
		"KMSInvalidStateException":    {400, ErrRefused, "cancel its deletion"},
		"InvalidCiphertextException":  {400, ErrRefused, "another tenant or version"},
		"InvalidKeyUsageException":    {400, ErrRefused, "symmetric"},
		"UnrecognizedClientException": {400, ErrRefused, "AWS_ACCESS_KEY_ID"},
		"ExpiredTokenException":       {400, ErrRefused, "renew"},
		"ValidationException":         {400, ErrRefused, "symmetric"},
		"NotFoundException":           {400, ErrUnknown, "KMS does not know its own key"},
	} {
		t.Run(code, func(t *testing.T) {
			t.Parallel()
			ctx, f := t.Context(), newFakeKMS(t)
			p := f.provider()
			ref, key, err := p.NewKEK(ctx, "acme", 1)
			require.NoError(t, err)

			f.Say(2, keystest.Fault{Status: expected.status, Code: code})
			_, err = cold(p).KEK(ctx, ref)
			said := requireKind(t, err, expected.kind, key.Bytes())
			require.Contains(t, said, code)
			require.Contains(t, said, expected.hint)
			require.Contains(t, said, "KEK 1 of tenant acme by awskms:alias/test")
			require.Equal(t, 1, f.Count("Decrypt"), "it is not tried again")

			_, _, err = p.NewKEK(ctx, "acme", 2)
			requireKind(t, err, expected.kind)
			require.Equal(t, 2, f.Count("GenerateDataKey"))

			_, err = cold(p).KEK(ctx, ref)
			require.NoError(t, err, "a refusal is not kept")
		})
	}
}

func TestKMSIsAskedAgain(t *testing.T) {
	t.Parallel()
	for code, status := range map[string]int{
		"ThrottlingException": 400, "LimitExceededException": 400, "DependencyTimeoutException": 503,
		"KMSInternalException": 500, "KeyUnavailableException": 500,
	} {
		t.Run(code, func(t *testing.T) {
			t.Parallel()
			ctx, f := t.Context(), newFakeKMS(t)
			p := f.provider()
			f.Say(2, keystest.Fault{Status: status, Code: code})
			ref, key, err := p.NewKEK(ctx, "acme", 1)
			require.NoError(t, err)
			require.Equal(t, 3, f.Count("GenerateDataKey"))

			f.Say(kmsAttempts-1, keystest.Fault{Status: status, Code: code})
			p = cold(p)
			got, err := p.KEK(ctx, ref)
			require.NoError(t, err)
			require.Equal(t, key.Bytes(), got.Bytes())
			require.Equal(t, kmsAttempts, f.Count("Decrypt"))

			f.Say(kmsAttempts, keystest.Fault{Status: status, Code: code})
			_, err = cold(p).KEK(ctx, ref)
			require.Contains(t, requireKind(t, err, ErrUnavailable, key.Bytes()), code)
			require.Equal(t, 2*kmsAttempts, f.Count("Decrypt"))
		})
	}
}

func TestKMSIsDown(t *testing.T) {
	t.Parallel()
	ctx, f := t.Context(), newFakeKMS(t)
	ref, key, err := f.provider().NewKEK(ctx, "acme", 1)
	require.NoError(t, err)

	// A port that was free a moment ago.
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	endpoint := "http://" + listener.Addr().String()
	require.NoError(t, listener.Close())
	p, err := newKMS(testConfig(endpoint, &http.Client{}), []string{"alias/test"}, false, fast)
	require.NoError(t, err)
	_, err = p.KEK(ctx, ref)
	require.Contains(t, requireKind(t, err, ErrUnavailable, key.Bytes()), "connection refused")
	_, _, err = p.NewKEK(ctx, "acme", 2)
	requireKind(t, err, ErrUnavailable)
}

func TestKMSIsSlow(t *testing.T) {
	t.Parallel()
	f := newFakeKMS(t)
	p := f.provider()
	ref, key, err := p.NewKEK(t.Context(), "acme", 1)
	require.NoError(t, err)

	slow := cold(p)
	slow.within = 2 * time.Second // in which the request arrives, on a loaded machine too
	f.Say(1, keystest.Fault{Pause: time.Minute})
	_, err = slow.KEK(t.Context(), ref)
	requireKind(t, err, ErrUnavailable, key.Bytes())
	require.ErrorIs(t, err, context.DeadlineExceeded)

	// The caller gives up, and the error says that.
	f.Say(1, keystest.Fault{Pause: time.Minute})
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err = slow.KEK(ctx, ref)
	requireKind(t, err, ErrUnavailable, key.Bytes())
	require.ErrorIs(t, err, context.DeadlineExceeded)
	cancel()
	_, _, err = p.NewKEK(ctx, "acme", 2)
	requireKind(t, err, ErrUnavailable)

	_, err = cold(p).KEK(t.Context(), ref)
	require.NoError(t, err)
}

// TestKMSDeadlineNamesTheCause: when time runs out between two attempts, the
// error is that of the last one.
func TestKMSDeadlineNamesTheCause(t *testing.T) {
	t.Parallel()
	f := newFakeKMS(t)
	p := f.provider()
	ref, key, err := p.NewKEK(t.Context(), "acme", 1)
	require.NoError(t, err)
	busy := cold(p)
	busy.within = 3 * time.Second // time for one attempt on a loaded machine, and not for the pause after it
	busy.client = kms.New(p.client.Options(), func(o *kms.Options) {
		o.Retryer = retry.NewStandard(func(r *retry.StandardOptions) {
			r.MaxAttempts, r.Backoff = 100, retry.BackoffDelayerFunc(func(int, error) (time.Duration, error) { return time.Minute, nil })
		})
	})
	f.Say(100, keystest.Fault{Status: 400, Code: "ThrottlingException"})
	_, err = busy.KEK(t.Context(), ref)
	require.Contains(t, requireKind(t, err, ErrUnavailable, key.Bytes()), "ThrottlingException")
}

// handled is an HTTP client whose server is a function: no sockets, so that time
// can be made to fly.
type handled struct{ http.Handler }

func (h handled) Do(r *http.Request) (*http.Response, error) {
	out, done := httptest.NewRecorder(), make(chan struct{})
	go func() {
		defer close(done)
		h.ServeHTTP(out, r)
	}()
	select {
	case <-done:
		return out.Result(), nil
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
}

// TestKMSByTheClock has the settings of production, and takes no time.
func TestKMSByTheClock(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, f := t.Context(), newFakeKMS(t)
		cfg := testConfig("http://kms.test", handled{f})
		p, err := newKMS(cfg, []string{"alias/test"}, false)
		require.NoError(t, err)
		ref, key, err := p.NewKEK(ctx, "acme", 1)
		require.NoError(t, err)

		held := p.cache.entries[cacheID(ref)].key
		time.Sleep(kmsKeep - time.Second)
		_, err = p.KEK(ctx, ref)
		require.NoError(t, err)
		require.Zero(t, f.Count("Decrypt"))
		require.NotNil(t, held.Bytes())
		time.Sleep(time.Second)
		synctest.Wait()
		require.Nil(t, held.Bytes(), "what is no longer kept is wiped, though nobody asks")
		_, err = p.KEK(ctx, ref)
		require.NoError(t, err)
		require.Equal(t, 1, f.Count("Decrypt"))

		// KMS goes down while the key is kept: nobody notices until it expires.
		f.Say(100, keystest.Fault{Status: 503, Code: "ServiceUnavailable"})
		_, err = p.KEK(ctx, ref)
		require.NoError(t, err)
		time.Sleep(kmsKeep)
		synctest.Wait()
		began := time.Now()
		_, err = p.KEK(ctx, ref)
		requireKind(t, err, ErrUnavailable, key.Bytes())
		require.Equal(t, 1+kmsAttempts, f.Count("Decrypt"))
		require.LessOrEqual(t, time.Since(began), kmsWithin)

		// It hangs: the time is bounded.
		f.Heal()
		f.Say(100, keystest.Fault{Pause: time.Hour})
		began = time.Now()
		_, err = p.KEK(ctx, ref)
		requireKind(t, err, ErrUnavailable, key.Bytes())
		require.LessOrEqual(t, time.Since(began), kmsWithin)
		time.Sleep(2 * time.Hour) // until the fake has ended too
	})
}

func TestKMSIsAskedOnceForAll(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFakeKMS(t)
		p, err := newKMS(testConfig("http://kms.test", handled{f}), []string{"alias/test"}, false)
		require.NoError(t, err)
		ref, key, err := p.NewKEK(t.Context(), "acme", 1)
		require.NoError(t, err)
		p = cold(p)
		f.Say(1, keystest.Fault{Pause: time.Second})

		var all sync.WaitGroup
		var got atomic.Int32
		first, cancel := context.WithCancel(t.Context())
		all.Go(func() {
			_, err := p.KEK(first, ref)
			require.ErrorIs(t, err, context.Canceled)
			requireKind(t, err, ErrUnavailable, key.Bytes())
		})
		synctest.Wait()
		for range 20 {
			all.Go(func() {
				mine, err := p.KEK(t.Context(), ref)
				if err == nil && bytes.Equal(mine.Bytes(), key.Bytes()) {
					got.Add(1)
				}
				mine.Wipe()
			})
		}
		synctest.Wait()
		cancel() // who asked first takes it away from nobody
		all.Wait()
		require.EqualValues(t, 20, got.Load())
		require.Equal(t, 1, f.Count("Decrypt"))
	})
}

func TestKMSDestroy(t *testing.T) {
	t.Parallel()
	ctx, f := t.Context(), newFakeKMS(t)
	p := f.provider()
	ref, key, err := p.NewKEK(ctx, "acme", 1)
	require.NoError(t, err)
	held := p.cache.entries[cacheID(ref)].key
	for range 2 {
		final, err := p.Destroy(ctx, ref)
		require.NoError(t, err)
		require.False(t, final, "copies of the ciphertext still open")
		_, err = p.KEK(ctx, ref)
		requireKind(t, err, ErrDestroyed, key.Bytes())
	}
	require.Nil(t, held.Bytes())
	p.cache.put(cacheID(ref), key.clone()) // as a flight that lands late
	require.Empty(t, p.cache.entries)

	got, err := cold(p).KEK(ctx, ref)
	require.NoError(t, err)
	require.Equal(t, key.Bytes(), got.Bytes(), "as Destroy has said")
}

func TestKMSSendsWhatIsNoKey(t *testing.T) {
	t.Parallel()
	ctx, f := t.Context(), newFakeKMS(t)
	p := f.provider()
	for _, plain := range [][]byte{random(32), random(128), weakKeys(t)["RFC 7518"]} {
		f.MakeAlways(plain)
		_, _, err := p.NewKEK(ctx, "acme", 1)
		requireKind(t, err, ErrWeak, plain)
	}
	f.MakeAlways(nil)
	ref, key, err := p.NewKEK(ctx, "acme", 1)
	require.NoError(t, err)
	f.SetBlob(ref.Stored, keystest.Blob{Plaintext: random(16), Context: encryptionContext(ref), Key: "alias/test"})
	_, err = cold(p).KEK(ctx, ref)
	requireKind(t, err, ErrWeak, key.Bytes())
}

// TestKMSSendsWhatCannotBeRead holds the key in answers that the SDK fails on.
func TestKMSSendsWhatCannotBeRead(t *testing.T) {
	t.Parallel()
	ctx, f := t.Context(), newFakeKMS(t)
	p := f.provider()
	ref, key, err := p.NewKEK(ctx, "acme", 1)
	require.NoError(t, err)
	plain := base64.StdEncoding.EncodeToString(key.Bytes())
	for _, body := range []string{`{"Plaintext": "` + plain, `{"Plaintext": ["` + plain + `"]}`, `{"Plaintext": "` + plain[:80] + `*"}`, plain, `<Plaintext>` + plain} {
		f.Say(1, keystest.Fault{Status: 200, Body: body})
		_, err := cold(p).KEK(ctx, ref)
		require.Contains(t, requireKind(t, err, ErrUnavailable, key.Bytes()), "its answer could not be read")
	}
	f.Say(1, keystest.Fault{Status: 200, Body: `{}`})
	_, err = cold(p).KEK(ctx, ref)
	requireKind(t, err, ErrWeak, key.Bytes())
}

func TestKMSNeedsCredentials(t *testing.T) {
	t.Parallel()
	f := newFakeKMS(t)
	cfg := testConfig("http://kms.test", handled{f})
	cfg.Credentials = aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
		return aws.Credentials{}, errors.New("no role found")
	})
	p, err := newKMS(cfg, []string{"alias/test"}, false)
	require.NoError(t, err)
	_, _, err = p.NewKEK(t.Context(), "acme", 1)
	require.Contains(t, requireKind(t, err, ErrRefused), "no role found")
	require.Zero(t, f.Count("GenerateDataKey"))
}

// TestKMSBySpec goes through the SDK's own settings.
func TestKMSBySpec(t *testing.T) {
	f := newFakeKMS(t)
	server := httptest.NewServer(f)
	defer server.Close()
	setAWS(t, server.URL)

	p, err := Parse(t.Context(), "awskms:alias/missing,alias/test", false)
	require.NoError(t, err)
	_, _, err = p.NewKEK(t.Context(), "acme", 1)
	requireKind(t, err, ErrUnknown)
	p, err = Parse(t.Context(), "awskms:alias/test", false)
	require.NoError(t, err)
	ref, key, err := p.NewKEK(t.Context(), "acme", 1)
	require.NoError(t, err)
	got, err := p.KEK(t.Context(), ref)
	require.NoError(t, err)
	require.Equal(t, key.Bytes(), got.Bytes())
}

func setAWS(t *testing.T, endpoint string) {
	for name, value := range keystest.KMSEnv(endpoint) {
		t.Setenv(name, value)
	}
}

// TestKMSOnMoto runs against somebody else's idea of KMS.
func TestKMSOnMoto(t *testing.T) {
	path, err := exec.LookPath("moto_server")
	if err != nil {
		t.Skip("moto_server is not installed: pip install 'moto[server,kms]'")
	}
	setAWS(t, startMoto(t, path))
	ctx := t.Context()
	p, err := openKMS(ctx, []string{"alias/pgcustody"}, false)
	require.NoError(t, err)
	_, _, err = p.NewKEK(ctx, "acme", 1)
	requireKind(t, err, ErrUnknown)

	created, err := p.client.CreateKey(ctx, &kms.CreateKeyInput{})
	require.NoError(t, err)
	_, err = p.client.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: aws.String("alias/pgcustody"), TargetKeyId: created.KeyMetadata.KeyId})
	require.NoError(t, err)

	ref, key, err := p.NewKEK(ctx, "acme", 1)
	require.NoError(t, err)
	got, err := cold(p).KEK(ctx, ref)
	require.NoError(t, err)
	require.Equal(t, key.Bytes(), got.Bytes())

	for _, other := range []Ref{{"other", 1, ref.Stored}, {"acme", 2, ref.Stored}} {
		_, err = p.KEK(ctx, other)
		requireKind(t, err, ErrRefused, key.Bytes())
	}
}

// startMoto starts a server of its own and returns its URL, which it reads from
// what the server says.
func startMoto(t *testing.T, path string) string {
	command := exec.CommandContext(t.Context(), path, "-H", "127.0.0.1", "-p", "0")
	said, err := command.StderrPipe()
	require.NoError(t, err)
	command.Stdout = nil
	require.NoError(t, command.Start())
	t.Cleanup(func() {
		_ = command.Process.Kill()
		_ = command.Wait()
	})
	lines := bufio.NewScanner(said)
	var all []string
	for lines.Scan() {
		all = append(all, lines.Text())
		if _, url, ok := strings.Cut(lines.Text(), "Running on "); ok {
			go func() {
				for lines.Scan() { // so that the pipe never fills
				}
			}()
			return strings.Fields(url)[0]
		}
	}
	t.Skipf("moto_server does not start: %s", strings.Join(all, "; "))
	return ""
}
