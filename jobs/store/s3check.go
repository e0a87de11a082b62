package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
)

func (s *s3Store) Check(ctx context.Context) ([]Finding, error) {
	if err := s.listOne(ctx); err != nil {
		return nil, err
	}
	return check(ctx, s)
}

// CheckSettings reads what the bucket says about itself.
func (s *s3Store) CheckSettings(ctx context.Context) ([]Finding, error) {
	var findings []Finding
	found := func(name, what, do string, warning bool) {
		findings = append(findings, Finding{Name: name, Object: s.URL(), What: what, Do: do, Warning: warning})
	}
	versioning, err := s.client.GetBucketVersioning(ctx, &s3.GetBucketVersioningInput{Bucket: &s.bucket})
	if err != nil {
		return nil, s.error(ctx, "check", "", err)
	}
	if versioning.Status != types.BucketVersioningStatusEnabled {
		found(NoVersioning, "bucket is not versioned", "turn versioning on for bucket "+s.bucket, false)
	}
	lock, err := s.client.GetObjectLockConfiguration(ctx, &s3.GetObjectLockConfigurationInput{Bucket: &s.bucket})
	var api smithy.APIError
	var config *types.ObjectLockConfiguration
	switch {
	case err == nil:
		config = lock.ObjectLockConfiguration
	case !errors.As(err, &api) || api.ErrorCode() != "ObjectLockConfigurationNotFoundError":
		return nil, s.error(ctx, "check", "", err)
	}
	switch {
	case config == nil || config.ObjectLockEnabled != types.ObjectLockEnabledEnabled:
		found(NoLock, "bucket has no Object Lock",
			"turn Object Lock on for bucket "+s.bucket+", or name one that has it in PGCUSTODY_STORE", false)
	case config.Rule == nil || config.Rule.DefaultRetention == nil || config.Rule.DefaultRetention.Mode == "":
		found(NoDefaultRetention, "bucket has no default retention: what other programs write into it is not locked", "", true)
	case config.Rule.DefaultRetention.Mode == types.ObjectLockRetentionModeGovernance:
		found(Governance, "the bucket's default retention is in GOVERNANCE mode, which falls to whoever may bypass it",
			"set the default retention of bucket "+s.bucket+" to COMPLIANCE mode, or take it away", false)
	}
	return findings, nil
}

func (s *s3Store) shorten(ctx context.Context, key, version string, until time.Time) (bool, error) {
	_, err := s.client.PutObjectRetention(ctx, s.retention(key, version, until))
	return s.gaveIn(ctx, key, err)
}

func (s *s3Store) gaveIn(ctx context.Context, key string, err error) (bool, error) {
	if err == nil {
		return true, nil
	}
	return gaveIn(s.error(ctx, "check", key, err))
}

// remove tries as an administrator would. Who lacks that right is refused for asking,
// lock or not, and so it tries again as anybody else.
func (s *s3Store) remove(ctx context.Context, key, version string) (bool, error) {
	removed, err := s.bypass(ctx, key, version)
	if removed || err != nil {
		return removed, err
	}
	_, err = s.client.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &s.bucket, Key: s.key(key), VersionId: &version})
	return s.gaveIn(ctx, key, err)
}

func (s *s3Store) bypass(ctx context.Context, key, version string) (bool, error) {
	_, err := s.client.DeleteObject(ctx, &s3.DeleteObjectInput{
		Bucket: &s.bucket, Key: s.key(key), VersionId: &version, BypassGovernanceRetention: aws.Bool(true),
	})
	return s.gaveIn(ctx, key, err)
}

func (s *s3Store) putWeak(ctx context.Context, key string, until time.Time) (string, error) {
	out, err := s.client.PutObject(ctx, &s3.PutObjectInput{
		Bucket: &s.bucket, Key: s.key(key), Body: strings.NewReader("weak"), ChecksumAlgorithm: types.ChecksumAlgorithmSha256,
		ObjectLockMode: types.ObjectLockModeGovernance, ObjectLockRetainUntilDate: &until,
	})
	if err != nil {
		return "", s.error(ctx, "check", key, err)
	}
	return aws.ToString(out.VersionId), nil
}

func (s *s3Store) unencrypted(ctx context.Context, key, version string) (string, error) {
	if s.opts.SSE == "" {
		return "", nil
	}
	out, err := s.client.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &s.bucket, Key: s.key(key), VersionId: &version})
	if err != nil {
		return "", s.error(ctx, "head", key, err)
	}
	got, under := string(out.ServerSideEncryption), aws.ToString(out.SSEKMSKeyId)
	asked := s.opts.SSEKMSKey
	switch {
	case got != s.opts.SSE:
		return fmt.Sprintf("asked for encryption %s, the store reports %q", s.opts.SSE, got), nil
	case asked != "" && !strings.Contains(asked, "alias/") && under != asked && !strings.HasSuffix(under, "/"+asked):
		// What a name stands for only KMS knows.
		return fmt.Sprintf("asked for encryption under KMS key %s, the store reports %q", asked, under), nil
	}
	return "", nil
}

func (s *s3Store) open(ctx context.Context, key, version string) (open []string, _ error) {
	opts := s.client.Options()
	opts.Credentials = aws.AnonymousCredentials{}
	opts.ExpressCredentials = nil // the client's own, which a new one would make its own
	anybody := s3.New(opts)
	_, err := anybody.ListObjectsV2(ctx, &s3.ListObjectsV2Input{Bucket: &s.bucket, Prefix: &s.prefix, MaxKeys: aws.Int32(1)})
	if could, err := s.gaveIn(ctx, "", err); err != nil {
		return nil, err
	} else if could {
		open = append(open, "anybody can list the bucket")
	}
	if key != "" {
		out, err := anybody.GetObject(ctx, &s3.GetObjectInput{Bucket: &s.bucket, Key: s.key(key), VersionId: &version})
		if err == nil {
			out.Body.Close()
		}
		if could, err := s.gaveIn(ctx, key, err); err != nil && !errors.Is(err, ErrNotFound) {
			return open, err
		} else if could {
			open = append(open, "anybody can read an object")
		}
	}
	// What the bucket says of itself, where these credentials may ask and it answers.
	status, err := s.client.GetBucketPolicyStatus(ctx, &s3.GetBucketPolicyStatusInput{Bucket: &s.bucket})
	if err == nil && status.PolicyStatus != nil && aws.ToBool(status.PolicyStatus.IsPublic) {
		open = append(open, "the bucket's policy is public")
	}
	acl, err := s.client.GetBucketAcl(ctx, &s3.GetBucketAclInput{Bucket: &s.bucket})
	if err == nil {
		for _, grant := range acl.Grants {
			if grant.Grantee == nil {
				continue
			}
			switch group := aws.ToString(grant.Grantee.URI); {
			case strings.HasSuffix(group, "/AllUsers"), strings.HasSuffix(group, "/AuthenticatedUsers"), aws.ToString(grant.Grantee.ID) == "all-users":
				open = append(open, "the bucket's access list gives everybody "+string(grant.Permission))
			}
		}
	}
	return open, nil
}

func (s *s3Store) dropCanaries(ctx context.Context) {
	page, err := s.client.ListObjectVersions(ctx, &s3.ListObjectVersionsInput{
		Bucket: &s.bucket, Prefix: s.key(canaryPrefix), MaxKeys: aws.Int32(100),
	})
	if err != nil {
		return
	}
	for _, v := range page.Versions {
		if time.Since(aws.ToTime(v.LastModified)) < 2*canaryLock {
			continue
		}
		_, err := s.client.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &s.bucket, Key: v.Key, VersionId: v.VersionId})
		if err != nil {
			return
		}
	}
}
