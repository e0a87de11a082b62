package store

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"pgcustody/cmd/devstack/stack/stacktest"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(&tests{m})
}

// tests stops the server that they may have started.
type tests struct{ *testing.M }

func (t *tests) Run() int {
	defer stopGoogle()
	return t.M.Run()
}

// newBucket makes a bucket on the shared stack, empty, and sets AWS's variables.
func newBucket(t *testing.T, lock bool) string {
	t.Helper()
	stack := stacktest.Shared(t)
	for name, value := range stack.Env() {
		if strings.HasPrefix(name, "AWS_") {
			t.Setenv(name, value)
		}
	}
	name := "store-" + strings.ToLower(rand.Text())
	_, err := stack.S3().CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: &name, ObjectLockEnabledForBucket: &lock})
	require.NoError(t, err)
	return "s3://" + name
}

// open opens a bucket of the test's own, made with or without Object Lock.
func open(t *testing.T, lock bool) *s3Store {
	t.Helper()
	s := openAt(t, newBucket(t, lock), "")
	return s
}

// openAt opens a bucket by its URL, at another endpoint where one is given.
func openAt(t *testing.T, url, endpoint string) *s3Store {
	t.Helper()
	opened, err := OpenURL(t.Context(), url)
	require.NoError(t, err)
	s := opened.(*s3Store)
	if endpoint != "" {
		setEndpoint(s, endpoint)
	}
	t.Cleanup(func() {
		client := s.client.Options().HTTPClient.(interface{ GetTransport() *http.Transport })
		client.GetTransport().CloseIdleConnections()
	})
	return s
}

// fit is what a writer makes of a check.
func fit(ctx context.Context, s Store) error {
	findings, err := s.Check(ctx)
	return cmp.Or(err, Accept(findings, nil))
}

func names(findings []Finding) (names []string) {
	for _, f := range findings {
		names = append(names, f.Name)
	}
	return names
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

func inAnHour() time.Time { return time.Now().Add(time.Hour).UTC().Truncate(time.Second) }

func readAll(t *testing.T, s Store, key, version string) []byte {
	t.Helper()
	o, err := s.Get(t.Context(), key, version)
	require.NoError(t, err)
	defer o.Close()
	b, err := io.ReadAll(o)
	require.NoError(t, err)
	return b
}

func TestPutGetHeadRoundTrip(t *testing.T) {
	s := open(t, true)
	for _, size := range []int{0, 1, partSize - 1, partSize, partSize + 1, 3*partSize + 12345} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			body, until := randomBytes(size), inAnHour()
			key := fmt.Sprintf("a/b/%d", size)
			// A reader that gives few bytes at a time, and its end together with the last of them.
			source := iotest.DataErrReader(io.LimitReader(bytes.NewReader(body), int64(size)))
			put, err := s.Put(t.Context(), key, source, PutOptions{RetainUntil: until, ContentType: "application/zstd", IfNoneMatch: true})
			require.NoError(t, err)
			require.EqualValues(t, size, put.Size)
			require.NotEmpty(t, put.Version)

			require.Equal(t, sha256.Sum256(body), sha256.Sum256(readAll(t, s, key, "")))
			info, err := s.Head(t.Context(), key, put.Version)
			require.NoError(t, err)
			require.EqualValues(t, size, info.Size)
			require.Equal(t, put.Version, info.Version)
			require.Equal(t, put.Checksum, info.Checksum)
			require.Equal(t, ModeCompliance, info.RetainMode)
			require.True(t, info.RetainUntil.Equal(until), "%s is not %s", info.RetainUntil, until)
			require.True(t, info.LockedUntil(until))
			require.False(t, info.LockedUntil(until.Add(time.Second)))
		})
	}
	uploads, err := s.Sweep(t.Context(), "")
	require.NoError(t, err)
	require.Zero(t, uploads)
}

func TestComplianceLockHolds(t *testing.T) {
	s := open(t, true)
	until := inAnHour()
	put, err := s.Put(t.Context(), "locked", strings.NewReader("evidence"), PutOptions{RetainUntil: until})
	require.NoError(t, err)

	t.Run("the version cannot be deleted, bypass or not", func(t *testing.T) {
		for _, bypass := range []bool{false, true} {
			_, err := s.client.DeleteObject(t.Context(), &s3.DeleteObjectInput{
				Bucket: &s.bucket, Key: aws.String("locked"), VersionId: &put.Version, BypassGovernanceRetention: &bypass,
			})
			require.ErrorIs(t, s.error(t.Context(), "delete", "locked", err), ErrAccessDenied)
		}
	})
	t.Run("the lock cannot be shortened or weakened", func(t *testing.T) {
		require.Error(t, s.Extend(t.Context(), "locked", put.Version, until.Add(-time.Minute)))
		weaker := s.retention("locked", put.Version, until)
		weaker.Retention.Mode = types.ObjectLockRetentionModeGovernance
		weaker.BypassGovernanceRetention = aws.Bool(true)
		_, err := s.client.PutObjectRetention(t.Context(), weaker)
		require.Error(t, err)
	})
	t.Run("it can be lengthened", func(t *testing.T) {
		require.NoError(t, s.Extend(t.Context(), "locked", put.Version, until.Add(time.Hour)))
		info, err := s.Head(t.Context(), "locked", put.Version)
		require.NoError(t, err)
		require.True(t, info.LockedUntil(until.Add(time.Hour)))
	})
	t.Run("a delete marker hides it and no more", func(t *testing.T) {
		_, err := s.client.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &s.bucket, Key: aws.String("locked")})
		require.NoError(t, err)
		_, err = s.Get(t.Context(), "locked", "")
		require.ErrorIs(t, err, ErrNotFound)
		info, err := s.Head(t.Context(), "locked", put.Version)
		require.NoError(t, err)
		require.True(t, info.LockedUntil(until), "the lock under a marker is not told")
		require.Equal(t, "evidence", string(readAll(t, s, "locked", put.Version)))
	})
}

func TestIfNoneMatchHasOneWinner(t *testing.T) {
	s := open(t, true)
	for name, size := range map[string]int{"whole": 100, "multipart": partSize + 100} {
		t.Run(name, func(t *testing.T) {
			const writers = 12
			bodies := make([][]byte, writers)
			errs := make([]error, writers)
			var wg sync.WaitGroup
			for i := range writers {
				bodies[i] = randomBytes(size)
				wg.Go(func() {
					_, errs[i] = s.Put(t.Context(), name, bytes.NewReader(bodies[i]), PutOptions{RetainUntil: inAnHour(), IfNoneMatch: true})
				})
			}
			wg.Wait()
			won := -1
			for i, err := range errs {
				if err == nil {
					require.Equal(t, -1, won, "two writers won")
					won = i
					continue
				}
				require.ErrorIs(t, err, ErrExists)
			}
			require.NotEqual(t, -1, won)
			require.Equal(t, bodies[won], readAll(t, s, name, ""))
			uploads, err := s.Sweep(t.Context(), name)
			require.NoError(t, err)
			require.Zero(t, uploads, "the losers left uploads behind")
		})
	}
}

func TestListIsInOrderAndRelative(t *testing.T) {
	url := newBucket(t, true)
	s := openAt(t, url+"/some/prefix/", "")
	require.Equal(t, url+"/some/prefix", s.URL())
	other := openAt(t, url, "")
	_, err := other.Put(t.Context(), "some/prefixed", strings.NewReader("x"), PutOptions{})
	require.NoError(t, err)
	for _, key := range []string{"b/2", "a/1", "b/1", "c"} {
		_, err := s.Put(t.Context(), key, strings.NewReader(key), PutOptions{})
		require.NoError(t, err)
	}
	list := func(prefix string) (keys []string) {
		for o, err := range s.List(t.Context(), prefix) {
			require.NoError(t, err)
			require.EqualValues(t, len(o.Key), o.Size)
			keys = append(keys, o.Key)
		}
		return keys
	}
	require.Equal(t, []string{"a/1", "b/1", "b/2", "c"}, list(""))
	require.Equal(t, []string{"b/1", "b/2"}, list("b/"))
	require.Empty(t, list("d"))
	require.Equal(t, "c", string(readAll(t, other, "some/prefix/c", "")))
}

func TestErrorsNameWhatIsWrong(t *testing.T) {
	ctx := t.Context()
	everything := func(s *s3Store, lock bool) map[string]error {
		opts := PutOptions{}
		if lock {
			opts.RetainUntil = inAnHour()
		}
		_, putErr := s.Put(ctx, "k", strings.NewReader("x"), opts)
		_, partsErr := s.Put(ctx, "k", bytes.NewReader(make([]byte, partSize+1)), opts)
		_, getErr := s.Get(ctx, "k", "")
		_, headErr := s.Head(ctx, "k", "")
		var listErr error
		for _, err := range s.List(ctx, "") {
			listErr = err
		}
		return map[string]error{"put": putErr, "parts": partsErr, "get": getErr, "head": headErr, "list": listErr, "check": fit(ctx, s)}
	}
	requireAll := func(t *testing.T, errs map[string]error, kind error, words ...string) {
		t.Helper()
		for op, err := range errs {
			require.ErrorIs(t, err, kind, op)
			var e *Error
			require.ErrorAs(t, err, &e, op)
			require.NotEmpty(t, e.Hint, op)
			require.Contains(t, e.Object, "s3://", op)
			for _, word := range words {
				require.Contains(t, err.Error(), word, op)
			}
			require.NotContains(t, err.Error(), os.Getenv("AWS_SECRET_ACCESS_KEY"), op)
		}
	}

	t.Run("missing bucket", func(t *testing.T) {
		newBucket(t, true)
		requireAll(t, everything(openAt(t, "s3://no-such-bucket-here", ""), true), ErrBucketMissing, "no-such-bucket-here")
	})
	t.Run("bucket without Object Lock", func(t *testing.T) {
		errs := everything(open(t, false), true)
		for _, op := range []string{"put", "parts", "check"} {
			require.ErrorIs(t, errs[op], ErrNoObjectLock, op)
		}
	})
	t.Run("bucket without versioning", func(t *testing.T) {
		s := open(t, false)
		_, err := s.client.PutBucketVersioning(ctx, &s3.PutBucketVersioningInput{
			Bucket: &s.bucket, VersioningConfiguration: &types.VersioningConfiguration{Status: types.BucketVersioningStatusSuspended},
		})
		require.NoError(t, err)
		err = fit(ctx, s)
		require.ErrorIs(t, err, ErrNoVersioning)
		require.ErrorIs(t, err, ErrNoObjectLock)
	})
	t.Run("wrong secret", func(t *testing.T) {
		s := open(t, true)
		opts := s.client.Options()
		opts.Credentials = aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: os.Getenv("AWS_ACCESS_KEY_ID"), SecretAccessKey: "wrong"}, nil
		})
		s.client = s3.New(opts)
		requireAll(t, everything(s, true), ErrAccessDenied)
	})
	t.Run("unknown key", func(t *testing.T) {
		s := open(t, true)
		opts := s.client.Options()
		opts.Credentials = aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: "nobody", SecretAccessKey: "wrong"}, nil
		})
		s.client = s3.New(opts)
		requireAll(t, everything(s, true), ErrAccessDenied)
	})
	t.Run("nobody at home", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		require.NoError(t, l.Close())
		s := openAt(t, newBucket(t, true), "http://"+l.Addr().String())
		quick(s)
		requireAll(t, everything(s, true), ErrUnreachable, "connection refused")
	})
	t.Run("missing object", func(t *testing.T) {
		s := open(t, true)
		_, err := s.Get(ctx, "nothing/here", "")
		require.ErrorIs(t, err, ErrNotFound)
		require.Contains(t, err.Error(), s.URL()+"/nothing/here")
		_, err = s.Head(ctx, "nothing/here", "")
		require.ErrorIs(t, err, ErrNotFound)
	})
	t.Run("cancelled", func(t *testing.T) {
		s := open(t, true)
		ctx, cancel := context.WithCancel(ctx)
		cancel()
		_, err := s.Head(ctx, "k", "")
		require.ErrorIs(t, err, context.Canceled)
		require.NotErrorIs(t, err, ErrUnreachable)
	})
}

func TestOpenURL(t *testing.T) {
	for _, bad := range []string{
		"", "bucket", "s3://", "s3:///prefix", "gs://", "file://", "file:///", "file://relative/path", "file:/directory?x=1", "s3://key:secret@bucket", "s3://bucket:9000/x", "s3://bucket?secret=1", "%",
	} {
		_, err := OpenURL(t.Context(), bad)
		require.ErrorIs(t, err, ErrBadURL, bad)
		var e *Error
		require.ErrorAs(t, err, &e)
		require.NotEmpty(t, e.Hint, bad)
		require.NotContains(t, err.Error(), "secret@", bad)
		require.NotContains(t, err.Error(), "secret=", bad)
	}
	t.Run("region is named when it is missing", func(t *testing.T) {
		for _, name := range []string{"AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"} {
			t.Setenv(name, "")
		}
		t.Setenv("AWS_CONFIG_FILE", "/nonexistent")
		_, err := OpenURL(t.Context(), "s3://bucket")
		require.ErrorContains(t, err, "AWS_REGION")
	})
	t.Run("own CA bundle", func(t *testing.T) {
		t.Setenv("AWS_CA_BUNDLE", "/nonexistent")
		t.Setenv("AWS_REGION", "eu-central-1")
		_, err := OpenURL(t.Context(), "s3://bucket")
		require.ErrorIs(t, err, ErrBadURL)
	})
}

func TestCheckProvesTheLock(t *testing.T) {
	s := open(t, true)
	findings, err := s.Check(t.Context())
	require.NoError(t, err)
	require.Equal(t, []string{NoDefaultRetention}, names(findings))
	require.NoError(t, Accept(findings, nil), "a warning needs no accepting")

	// The store is made to lie: what its settings say is believed by none of these.
	drop := func(headers ...string) func(*s3Store) {
		return func(s *s3Store) {
			rewrite(s, func(r *smithyhttp.Request) {
				for _, h := range headers {
					r.Header.Del(h)
				}
			})
		}
	}
	pretend := func(done func(*http.Request) bool) func(*s3Store) {
		return func(s *s3Store) {
			setEndpoint(s, newProxy(t, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if done(r) {
					w.WriteHeader(http.StatusNoContent)
					return
				}
				next.ServeHTTP(w, r)
			}))
		}
	}
	answer := func(change func(r *http.Request, answer *httptest.ResponseRecorder)) func(*s3Store) {
		return func(s *s3Store) {
			setEndpoint(s, newProxy(t, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				recorded := httptest.NewRecorder()
				next.ServeHTTP(recorded, r)
				change(r, recorded)
				maps.Copy(w.Header(), recorded.Header())
				w.WriteHeader(recorded.Code)
				_, _ = w.Write(recorded.Body.Bytes())
			}))
		}
	}
	for name, lie := range map[string]struct {
		tell func(*s3Store)
		what string
		name string
	}{
		"locks in GOVERNANCE mode": {func(s *s3Store) {
			rewrite(s, func(r *smithyhttp.Request) {
				if r.Header.Get("X-Amz-Object-Lock-Mode") != "" {
					r.Header.Set("X-Amz-Object-Lock-Mode", "GOVERNANCE")
				}
			})
		}, "locked in GOVERNANCE mode", Governance},
		"hands out something else": {answer(func(r *http.Request, answer *httptest.ResponseRecorder) {
			if r.Method == "GET" && strings.Contains(r.URL.Path, canaryPrefix) {
				for name := range answer.Header() {
					if strings.HasPrefix(strings.ToLower(name), "x-amz-checksum") {
						answer.Header().Del(name)
					}
				}
				answer.Body.Bytes()[0] ^= 1
			}
		}), "reads back differently", CanaryOverwritten},
		"has an access list for everybody": {answer(func(r *http.Request, answer *httptest.ResponseRecorder) {
			if r.Method == "GET" && r.URL.Query().Has("acl") {
				// As Amazon documents it.
				answer.Body = bytes.NewBufferString(`<?xml version="1.0" encoding="UTF-8"?><AccessControlPolicy xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Owner><ID>o</ID></Owner><AccessControlList><Grant>` +
					`<Grantee xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:type="Group"><URI>http://acs.amazonaws.com/groups/global/AllUsers</URI></Grantee><Permission>READ</Permission></Grant></AccessControlList></AccessControlPolicy>`)
				answer.Header().Set("Content-Length", fmt.Sprint(answer.Body.Len()))
			}
		}), "gives everybody READ", PublicAccess},
		"encrypts under another key": {func(s *s3Store) {
			s.opts = Options{SSE: "aws:kms", SSEKMSKey: "1234abcd"}
			answer(func(r *http.Request, answer *httptest.ResponseRecorder) {
				if r.Method == "HEAD" {
					answer.Header().Set("X-Amz-Server-Side-Encryption", "aws:kms")
					answer.Header().Set("X-Amz-Server-Side-Encryption-Aws-Kms-Key-Id", "arn:aws:kms:eu-central-1:1:key/other")
				}
			})(s)
		}, "under KMS key 1234abcd", EncryptionIgnored},
		"writes without the lock":     {drop("X-Amz-Object-Lock-Mode", "X-Amz-Object-Lock-Retain-Until-Date"), "the store reports", NoLock},
		"ignores If-None-Match":       {drop("If-None-Match"), "written over", CanaryOverwritten},
		"lets the version be deleted": {pretend(func(r *http.Request) bool { return r.Method == "DELETE" }), "deleted", CanaryDeleted},
		"lets the lock be shortened": {pretend(func(r *http.Request) bool {
			return r.Method == "PUT" && r.URL.Query().Has("retention")
		}), "shortened", CanaryShortened},
	} {
		t.Run(name, func(t *testing.T) {
			liar := openAt(t, s.URL(), "")
			lie.tell(liar)
			findings, err := liar.Check(t.Context())
			require.NoError(t, err)
			require.Equal(t, []string{NoDefaultRetention, lie.name}, names(findings))
			err = Accept(findings, nil)
			require.ErrorIs(t, err, ErrUnfit)
			require.ErrorContains(t, err, lie.what)
			require.ErrorContains(t, err, "PGCUSTODY_STORE_ACCEPT="+lie.name)
			require.NoError(t, Accept(findings, []string{"governance", lie.name}))
		})
	}
	t.Run("a store that is away has not refused", func(t *testing.T) {
		proxy := newProxy(t, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if r.Method == "DELETE" {
				w.WriteHeader(http.StatusServiceUnavailable)
				return
			}
			next.ServeHTTP(w, r)
		})
		s := openAt(t, s.URL(), proxy)
		quick(s)
		require.ErrorIs(t, fit(t.Context(), s), ErrUnreachable)
	})
}

// A store that fails in the middle: everything goes through a proxy that breaks.

func TestPutSurvivesLostConnections(t *testing.T) {
	s := open(t, true)
	var requests atomic.Int64
	proxy := newProxy(t, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method == "PUT" && requests.Add(1)%2 == 1 {
			// Half of a part, then silence for ever.
			_, _ = io.CopyN(io.Discard, r.Body, r.ContentLength/2)
			panic(http.ErrAbortHandler)
		}
		next.ServeHTTP(w, r)
	})
	body := randomBytes(2*partSize + 7)
	put, err := openAt(t, s.URL(), proxy).Put(t.Context(), "k", bytes.NewReader(body), PutOptions{RetainUntil: inAnHour(), IfNoneMatch: true})
	require.NoError(t, err)
	require.Greater(t, requests.Load(), int64(3), "nothing was broken")
	require.Equal(t, sha256.Sum256(body), sha256.Sum256(readAll(t, s, "k", put.Version)))
}

func TestFailedPutLeavesNothing(t *testing.T) {
	s := open(t, true)
	parts := func(n int64) func(r *http.Request) bool {
		return func(r *http.Request) bool { return r.URL.Query().Get("partNumber") == fmt.Sprint(n) }
	}
	broken := map[string]func(r *http.Request) bool{
		"create":      func(r *http.Request) bool { return r.Method == "POST" && r.URL.Query().Has("uploads") },
		"first part":  parts(1),
		"second part": parts(2),
		"last part":   parts(4),
		"complete":    func(r *http.Request) bool { return r.Method == "POST" && r.URL.Query().Has("uploadId") },
	}
	for name, breaks := range broken {
		t.Run(name, func(t *testing.T) {
			proxy := newProxy(t, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if breaks(r) {
					panic(http.ErrAbortHandler)
				}
				next.ServeHTTP(w, r)
			})
			through := openAt(t, s.URL(), proxy)
			quick(through)
			_, err := through.Put(t.Context(), name, bytes.NewReader(make([]byte, 3*partSize+1)), PutOptions{RetainUntil: inAnHour()})
			require.ErrorIs(t, err, ErrUnreachable)
			requireNothing(t, s, name)
		})
	}
	t.Run("source fails", func(t *testing.T) {
		for _, size := range []int{10, partSize, partSize + 1, 3 * partSize} {
			lost := errors.New("connection to the database lost")
			source := io.MultiReader(bytes.NewReader(make([]byte, size)), iotest.ErrReader(lost))
			_, err := s.Put(t.Context(), "source", source, PutOptions{RetainUntil: inAnHour()})
			require.ErrorIs(t, err, lost)
			require.ErrorIs(t, err, ErrSource)
			requireNothing(t, s, "source")
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		source := io.MultiReader(bytes.NewReader(make([]byte, 2*partSize)), readerFunc(func([]byte) (int, error) {
			cancel()
			return 0, io.EOF
		}))
		_, err := s.Put(ctx, "cancelled", source, PutOptions{RetainUntil: inAnHour()})
		require.ErrorIs(t, err, context.Canceled)
		requireNothing(t, s, "cancelled")
	})
	t.Run("changed on the way", func(t *testing.T) {
		for _, size := range []int{100, partSize + 1} {
			proxy := newProxy(t, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if r.Method == "PUT" {
					body, _ := io.ReadAll(r.Body)
					body[len(body)-1] ^= 1
					r.Body = io.NopCloser(bytes.NewReader(body))
				}
				next.ServeHTTP(w, r)
			})
			through := openAt(t, s.URL(), proxy)
			quick(through)
			_, err := through.Put(t.Context(), "changed", bytes.NewReader(make([]byte, size)), PutOptions{RetainUntil: inAnHour()})
			require.Error(t, err)
			requireNothing(t, s, "changed")
		}
	})
}

func TestSweepEndsUnfinishedUploads(t *testing.T) {
	s := open(t, true)
	for _, key := range []string{"k", "k", "k2"} {
		_, err := s.client.CreateMultipartUpload(t.Context(), &s3.CreateMultipartUploadInput{Bucket: &s.bucket, Key: &key})
		require.NoError(t, err)
	}
	n, err := s.Sweep(t.Context(), "k")
	require.NoError(t, err)
	require.Equal(t, 2, n)
	n, err = s.Sweep(t.Context(), "k2")
	require.NoError(t, err)
	require.Equal(t, 1, n, "a longer key was swept with a shorter one")
}

func TestDeleteTakesEveryVersion(t *testing.T) {
	s := open(t, true)
	put := func(key string, opts PutOptions) PutResult {
		r, err := s.Put(t.Context(), key, strings.NewReader(rand.Text()), opts)
		require.NoError(t, err)
		return r
	}
	versions := func(key string) (n int) {
		pages := s3.NewListObjectVersionsPaginator(s.client, &s3.ListObjectVersionsInput{Bucket: &s.bucket, Prefix: &key})
		for pages.HasMorePages() {
			page, err := pages.NextPage(t.Context())
			require.NoError(t, err)
			n += len(page.Versions) + len(page.DeleteMarkers)
		}
		return n
	}
	n, err := s.Delete(t.Context(), "none")
	require.NoError(t, err)
	require.Zero(t, n)

	put("a.json", PutOptions{})
	_, err = s.client.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &s.bucket, Key: aws.String("a.json")}) // leaves a marker
	require.NoError(t, err)
	put("a.json", PutOptions{})
	put("a.json.longer", PutOptions{})
	_, err = s.client.CreateMultipartUpload(t.Context(), &s3.CreateMultipartUploadInput{Bucket: &s.bucket, Key: aws.String("a.json")})
	require.NoError(t, err)
	require.Equal(t, 4, versions("a.json"))
	n, err = s.Delete(t.Context(), "a.json")
	require.NoError(t, err)
	require.Equal(t, 2, n)
	require.Equal(t, 1, versions("a.json"), "the longer key alone stays")
	requireNothing(t, s, "a.json")

	locked := put("b.json", PutOptions{RetainUntil: inAnHour()})
	put("b.json", PutOptions{})
	n, err = s.Delete(t.Context(), "b.json")
	require.ErrorIs(t, err, ErrLocked)
	require.ErrorContains(t, err, locked.Version)
	require.Equal(t, 1, n)
	require.Equal(t, 1, versions("b.json"))

	// Without a lock in its way it is not told to be locked.
	denied := openAt(t, s.URL(), "")
	rewrite(denied, func(r *smithyhttp.Request) {
		if r.Method == http.MethodDelete {
			r.Header.Set("X-Amz-Security-Token", "nonsense")
			r.URL.Path = "/no-such-bucket/x"
		}
	})
	put("c.json", PutOptions{})
	_, err = denied.Delete(t.Context(), "c.json")
	require.Error(t, err)
	require.NotErrorIs(t, err, ErrLocked)
}

func TestGetNoticesWhatIsMissing(t *testing.T) {
	s := open(t, true)
	body := randomBytes(1 << 20)
	_, err := s.Put(t.Context(), "k", bytes.NewReader(body), PutOptions{})
	require.NoError(t, err)

	t.Run("cut short", func(t *testing.T) {
		proxy := newProxy(t, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			w.Header().Set("Content-Length", fmt.Sprint(len(body)))
			w.WriteHeader(http.StatusOK)
			_, _ = w.Write(body[:len(body)/2])
			panic(http.ErrAbortHandler)
		})
		o, err := openAt(t, s.URL(), proxy).Get(t.Context(), "k", "")
		require.NoError(t, err)
		defer o.Close()
		got, err := io.ReadAll(o)
		require.ErrorIs(t, err, ErrTruncated)
		require.Less(t, len(got), len(body))
		require.ErrorContains(t, err, s.URL()+"/k")
	})
	t.Run("reader closed early", func(t *testing.T) {
		o, err := s.Get(t.Context(), "k", "")
		require.NoError(t, err)
		_, err = o.Read(make([]byte, 10))
		require.NoError(t, err)
		require.NoError(t, o.Close())
	})
	t.Run("cancelled in the middle", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		proxy := newProxy(t, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			w.Header().Set("Content-Length", fmt.Sprint(len(body)))
			w.WriteHeader(http.StatusOK)
			_, _ = w.Write(body[:10])
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		})
		o, err := openAt(t, s.URL(), proxy).Get(ctx, "k", "")
		require.NoError(t, err)
		defer o.Close()
		_, err = io.ReadFull(o, make([]byte, 10))
		require.NoError(t, err)
		cancel()
		_, err = io.ReadAll(o)
		require.ErrorIs(t, err, context.Canceled)
	})
}

func TestPutNeedsConstantMemory(t *testing.T) {
	s := open(t, true)
	const size = 20 * partSize
	var peak uint64
	source := io.LimitReader(readerFunc(func(p []byte) (int, error) {
		var m runtime.MemStats
		if len(p) == partSize { // once a part
			runtime.GC()
			runtime.ReadMemStats(&m)
			peak = max(peak, m.HeapAlloc)
		}
		return len(p), nil
	}), size)
	put, err := s.Put(t.Context(), "big", source, PutOptions{RetainUntil: inAnHour()})
	require.NoError(t, err)
	require.EqualValues(t, size, put.Size)
	require.NotZero(t, peak)
	require.Less(t, peak, uint64(6*partSize))
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// requireNothing checks that a key has no version and no upload.
func requireNothing(t *testing.T, s *s3Store, key string) {
	t.Helper()
	_, err := s.Head(t.Context(), key, "")
	require.ErrorIs(t, err, ErrNotFound)
	uploads, err := s.Sweep(t.Context(), key)
	require.NoError(t, err)
	require.Zero(t, uploads, "an unfinished upload was left")
}

// quick makes a store give up at once, so that tests of failure do not wait for
// retries.
func quick(s *s3Store) {
	opts := s.client.Options()
	opts.Retryer = aws.NopRetryer{}
	s.client = s3.New(opts)
}

func setEndpoint(s *s3Store, endpoint string) {
	opts := s.client.Options()
	opts.BaseEndpoint = &endpoint
	s.client = s3.New(opts)
}

// rewrite changes requests before they are signed.
func rewrite(s *s3Store, change func(*smithyhttp.Request)) {
	opts := s.client.Options()
	opts.APIOptions = append(opts.APIOptions, func(stack *middleware.Stack) error {
		return stack.Build.Add(middleware.BuildMiddlewareFunc("rewrite", func(
			ctx context.Context, in middleware.BuildInput, next middleware.BuildHandler,
		) (middleware.BuildOutput, middleware.Metadata, error) {
			change(in.Request.(*smithyhttp.Request))
			return next.HandleBuild(ctx, in)
		}), middleware.After)
	})
	s.client = s3.New(opts)
}

// newProxy stands before the store and lets handle break what passes.
func newProxy(t *testing.T, handle func(http.ResponseWriter, *http.Request, http.Handler)) string {
	t.Helper()
	target, err := url.Parse(os.Getenv("AWS_ENDPOINT_URL_S3"))
	require.NoError(t, err)
	transport := &http.Transport{}
	proxy := &httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(target); r.Out.Host = r.In.Host },
		Transport: transport,
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			w.WriteHeader(http.StatusBadGateway)
		},
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { handle(w, r, proxy) })}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close(); <-done; transport.CloseIdleConnections() })
	return "http://" + l.Addr().String()
}
