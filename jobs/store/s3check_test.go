package store

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"sync"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/stretchr/testify/require"

	"pgcustody/cmd/devstack/stack/stacktest"
)

// as gives a store other credentials.
func as(s *s3Store, key, secret string) *s3Store {
	other := *s
	opts := s.client.Options()
	opts.Credentials = credentials.NewStaticCredentialsProvider(key, secret, "")
	other.client = s3.New(opts)
	return &other
}

// TestCheckOnARealServer: what versitygw does of itself that a store should not do.
func TestCheckOnARealServer(t *testing.T) {
	found := func(t *testing.T, s *s3Store) []string {
		t.Helper()
		findings, err := s.Check(t.Context())
		require.NoError(t, err)
		for _, f := range findings {
			require.NotEmpty(t, f.What, f.Name)
			require.Contains(t, f.Object, s.URL(), f.Name)
			require.True(t, f.Warning || f.Do != "", f.Name)
			require.NoError(t, CheckNames([]string{f.Name}))
		}
		return names(findings)
	}
	t.Run("root may bypass", func(t *testing.T) {
		s, stack := open(t, true), stacktest.Shared(t)
		require.Equal(t, []string{NoDefaultRetention, BypassRight}, found(t, as(s, stack.RootKey, stack.RootSecret)))
		require.Equal(t, []string{NoDefaultRetention}, found(t, s), "the owner may not")
	})
	t.Run("it ignores encryption", func(t *testing.T) {
		for _, opts := range []Options{{SSE: "AES256"}, {SSE: "aws:kms", SSEKMSKey: "1234abcd"}} {
			s := open(t, true)
			s.opts = opts
			require.Equal(t, []string{NoDefaultRetention, EncryptionIgnored}, found(t, s))
			require.NoError(t, Accept([]Finding{{Name: EncryptionIgnored}}, []string{EncryptionIgnored}))
		}
	})
	t.Run("default retention", func(t *testing.T) {
		s := open(t, true)
		retain := func(mode types.ObjectLockRetentionMode) {
			_, err := s.client.PutObjectLockConfiguration(t.Context(), &s3.PutObjectLockConfigurationInput{
				Bucket: &s.bucket, ObjectLockConfiguration: &types.ObjectLockConfiguration{
					ObjectLockEnabled: types.ObjectLockEnabledEnabled,
					Rule:              &types.ObjectLockRule{DefaultRetention: &types.DefaultRetention{Mode: mode, Days: aws.Int32(1)}},
				},
			})
			require.NoError(t, err)
		}
		retain(types.ObjectLockRetentionModeGovernance)
		require.Equal(t, []string{Governance}, found(t, s), "the canary is tried all the same")
		require.ErrorIs(t, fit(t.Context(), s), ErrUnfit)
		retain(types.ObjectLockRetentionModeCompliance)
		require.Empty(t, found(t, s))
	})
	t.Run("public", func(t *testing.T) {
		s := open(t, true)
		policy, err := json.Marshal(map[string]any{"Version": "2012-10-17", "Statement": []any{
			map[string]any{"Effect": "Allow", "Principal": "*", "Action": []string{"s3:GetObject", "s3:GetObjectVersion"}, "Resource": "arn:aws:s3:::" + s.bucket + "/*"},
			map[string]any{"Effect": "Allow", "Principal": "*", "Action": "s3:ListBucket", "Resource": "arn:aws:s3:::" + s.bucket},
			// To versitygw an owner has no right of his own any more once there is a policy.
			map[string]any{"Effect": "Allow", "Principal": map[string]any{"AWS": []string{stacktest.Shared(t).AccessKey}}, "Action": "s3:*",
				"Resource": []string{"arn:aws:s3:::" + s.bucket, "arn:aws:s3:::" + s.bucket + "/*"}},
		}})
		require.NoError(t, err)
		_, err = s.client.PutBucketPolicy(t.Context(), &s3.PutBucketPolicyInput{Bucket: &s.bucket, Policy: aws.String(string(policy))})
		require.NoError(t, err)
		findings, err := s.Check(t.Context())
		require.NoError(t, err)
		// Whoever may do everything may bypass too.
		require.Equal(t, []string{NoDefaultRetention, BypassRight, PublicAccess, PublicAccess, PublicAccess}, names(findings))
		var what []string
		for _, f := range findings[2:] {
			what = append(what, f.What)
		}
		require.Equal(t, []string{"anybody can list the bucket", "anybody can read an object", "the bucket's policy is public"}, what)
	})
	t.Run("public by its access list", func(t *testing.T) {
		s := open(t, true)
		_, err := s.client.PutBucketOwnershipControls(t.Context(), &s3.PutBucketOwnershipControlsInput{
			Bucket: &s.bucket, OwnershipControls: &types.OwnershipControls{Rules: []types.OwnershipControlsRule{{ObjectOwnership: types.ObjectOwnershipBucketOwnerPreferred}}},
		})
		require.NoError(t, err)
		_, err = s.client.PutBucketAcl(t.Context(), &s3.PutBucketAclInput{Bucket: &s.bucket, ACL: types.BucketCannedACLPublicRead})
		require.NoError(t, err)
		findings, err := s.Check(t.Context())
		require.NoError(t, err)
		require.Equal(t, []string{NoDefaultRetention, PublicAccess, PublicAccess, PublicAccess}, names(findings))
		require.Equal(t, "the bucket's access list gives everybody READ", findings[3].What)
	})
	t.Run("neither versions nor lock", func(t *testing.T) {
		s := open(t, false)
		_, err := s.client.PutBucketVersioning(t.Context(), &s3.PutBucketVersioningInput{
			Bucket: &s.bucket, VersioningConfiguration: &types.VersioningConfiguration{Status: types.BucketVersioningStatusSuspended},
		})
		require.NoError(t, err)
		require.Equal(t, []string{NoVersioning, NoLock}, found(t, s))
	})
}

func TestAccept(t *testing.T) {
	require.NoError(t, Accept(nil, nil))
	findings := []Finding{
		{Name: NoDefaultRetention, Object: "s3://b", What: "none", Warning: true},
		{Name: BypassRight, Object: "s3://b/canary", What: "it can", Do: "take it away"},
		{Name: PublicAccess, Object: "s3://b", What: "anybody can list"},
		{Name: PublicAccess, Object: "s3://b", What: "anybody can read"},
	}
	err := Accept(findings, []string{NoLock})
	require.ErrorIs(t, err, ErrUnfit)
	require.ErrorIs(t, err, ErrNotLocked)
	require.NotErrorIs(t, err, ErrNoObjectLock)
	require.EqualError(t, err, "check s3://b/canary: store is not fit to keep evidence "+
		"(bypass-right (it can), public-access (anybody can list), public-access (anybody can read)): "+
		"take it away; or accept it by name: PGCUSTODY_STORE_ACCEPT=bypass-right,public-access")
	require.ErrorContains(t, Accept(findings, []string{BypassRight}), "PGCUSTODY_STORE_ACCEPT=public-access")
	require.NoError(t, Accept(findings, []string{PublicAccess, BypassRight}))
	require.NoError(t, CheckNames(FindingNames))
	require.ErrorContains(t, CheckNames([]string{NoLock, "nolock"}), `"nolock"`)
}

// TestHeadersThatAreAskedFor: versitygw takes no notice of them, so the request is looked at.
func TestHeadersThatAreAskedFor(t *testing.T) {
	s := open(t, true)
	var mu sync.Mutex
	var seen []http.Header
	proxy := newProxy(t, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method == "PUT" && !r.URL.Query().Has("partNumber") || r.Method == "POST" && r.URL.Query().Has("uploads") {
			mu.Lock()
			seen = append(seen, r.Header.Clone())
			mu.Unlock()
		}
		next.ServeHTTP(w, r)
	})
	through := openAt(t, s.URL(), proxy)
	through.opts = Options{StorageClass: "STANDARD_IA", SSE: "aws:kms", SSEKMSKey: "alias/archive"}
	for _, test := range []struct {
		size  int
		opts  PutOptions
		class string
	}{
		{classFrom - 1, PutOptions{RetainUntil: inAnHour()}, ""},
		{classFrom, PutOptions{}, ""},
		{classFrom, PutOptions{RetainUntil: inAnHour()}, "STANDARD_IA"},
		{partSize + 1, PutOptions{}, ""},
		{partSize + 1, PutOptions{RetainUntil: inAnHour()}, "STANDARD_IA"},
	} {
		seen = nil
		_, err := through.Put(t.Context(), "k", bytes.NewReader(make([]byte, test.size)), test.opts)
		require.NoError(t, err)
		require.Len(t, seen, 1)
		require.Equal(t, test.class, seen[0].Get("X-Amz-Storage-Class"), "%d bytes", test.size)
		require.Equal(t, "aws:kms", seen[0].Get("X-Amz-Server-Side-Encryption"))
		require.Equal(t, "alias/archive", seen[0].Get("X-Amz-Server-Side-Encryption-Aws-Kms-Key-Id"))
		if test.size < partSize {
			require.NotEmpty(t, seen[0].Get("X-Amz-Checksum-Sha256"))
		} else {
			require.Equal(t, "SHA256", seen[0].Get("X-Amz-Checksum-Algorithm"))
		}
	}
}

func TestOptions(t *testing.T) {
	newBucket(t, true)
	for name, opts := range map[string]Options{
		"GLACIER_IR": {StorageClass: "GLACIER"}, "lifecycle": {StorageClass: "deep_archive"}, "AES256": {SSE: "aes"},
		"not aws:kms": {SSE: "AES256", SSEKMSKey: "k"}, "PathStyle": {PathStyle: "yes"},
	} {
		_, err := Open(t.Context(), "s3://bucket", opts)
		require.ErrorIs(t, err, ErrBadURL)
		require.ErrorContains(t, err, name)
	}
	for style, want := range map[string]bool{"": true, "true": true, "false": false} { // at an endpoint of our own
		s, err := Open(t.Context(), "s3://bucket", Options{PathStyle: style})
		require.NoError(t, err)
		require.Equal(t, want, s.(*s3Store).client.Options().UsePathStyle)
	}
	t.Setenv("AWS_ENDPOINT_URL_S3", "")
	s, err := Open(t.Context(), "s3://bucket", Options{})
	require.NoError(t, err)
	require.False(t, s.(*s3Store).client.Options().UsePathStyle, "Amazon's own wants the bucket in the name")
}

// glacier answers as Amazon documents of an object in an archive class.
// https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetObject.html, …/API_RestoreObject.html
type glacier struct {
	class, tier string
	denied      bool
	mu          sync.Mutex
	asked       []string // bodies of requests for a thaw
	versions    []string
}

func (g *glacier) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	g.mu.Lock()
	defer g.mu.Unlock()
	fail := func(status int, code, more string) {
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(status)
		fmt.Fprintf(w, `<?xml version="1.0" encoding="UTF-8"?><Error><Code>%s</Code><Message>The operation is not valid for the object's storage class</Message>%s<RequestId>4442587FB7D0A2F9</RequestId></Error>`, code, more)
	}
	switch {
	case r.Method == http.MethodGet:
		fail(http.StatusForbidden, "InvalidObjectState", "<StorageClass>"+g.class+"</StorageClass><AccessTier>"+g.tier+"</AccessTier>")
	case r.Method == http.MethodPost && r.URL.Query().Has("restore"):
		if g.denied {
			fail(http.StatusForbidden, "AccessDenied", "")
			return
		}
		body, _ := io.ReadAll(r.Body)
		g.asked = append(g.asked, string(body))
		g.versions = append(g.versions, r.URL.Query().Get("versionId"))
		if len(g.asked) > 1 {
			fail(http.StatusConflict, "RestoreAlreadyInProgress", "")
			return
		}
		w.WriteHeader(http.StatusAccepted)
	default:
		http.NotFound(w, r)
	}
}

func TestFrozenObjectIsThawed(t *testing.T) {
	frozen := func(t *testing.T, g *glacier) *s3Store {
		server := httptest.NewServer(g)
		t.Cleanup(server.Close)
		newBucket(t, true)
		s := openAt(t, "s3://bucket", server.URL)
		quick(s)
		return s
	}
	t.Run("asked for once", func(t *testing.T) {
		g := &glacier{class: "DEEP_ARCHIVE"}
		s := frozen(t, g)
		_, err := s.Get(t.Context(), "a/k", "v1")
		require.ErrorIs(t, err, ErrFrozen)
		require.EqualError(t, err, "get s3://bucket/a/k: object is frozen (class DEEP_ARCHIVE): "+
			"its thaw was asked for: run again in 12 hours, and within 7 days after")
		require.Len(t, g.asked, 1)
		require.Contains(t, g.asked[0], "<Days>7</Days>")
		require.Contains(t, g.asked[0], "<Tier>Standard</Tier>")
		require.Equal(t, "v1", g.versions[0])
		_, err = s.Get(t.Context(), "a/k", "v1")
		require.ErrorIs(t, err, ErrFrozen)
		require.ErrorContains(t, err, "is under way")
	})
	t.Run("flexible", func(t *testing.T) {
		_, err := frozen(t, &glacier{class: "GLACIER"}).Get(t.Context(), "k", "")
		require.ErrorIs(t, err, ErrFrozen)
		require.ErrorContains(t, err, "in 3 to 5 hours")
	})
	t.Run("intelligent tiering has no days", func(t *testing.T) {
		g := &glacier{class: "INTELLIGENT_TIERING", tier: "DEEP_ARCHIVE_ACCESS"}
		_, err := frozen(t, g).Get(t.Context(), "k", "")
		require.ErrorIs(t, err, ErrFrozen)
		require.ErrorContains(t, err, "in 12 hours")
		require.NotContains(t, g.asked[0], "Days")
	})
	t.Run("not ours to thaw", func(t *testing.T) {
		_, err := frozen(t, &glacier{class: "GLACIER", denied: true}).Get(t.Context(), "k", "")
		require.ErrorIs(t, err, ErrFrozen)
		require.ErrorContains(t, err, "s3:RestoreObject")
		require.NotContains(t, err.Error(), os.Getenv("AWS_SECRET_ACCESS_KEY"))
	})
}
