package store

import (
	"context"
	"errors"
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
	findings, err := s.CheckSettings(ctx)
	if err != nil || Accept(findings, nil) != nil {
		// Without versions or Object Lock no canary can be locked.
		return findings, err
	}
	_, more, err := tryCanary(ctx, s, canaryLock)
	return append(findings, more...), err
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

func (s *s3Store) remove(ctx context.Context, key, version string) (bool, error) {
	// BypassGovernanceRetention is what an administrator would try.
	_, err := s.client.DeleteObject(ctx, &s3.DeleteObjectInput{
		Bucket: &s.bucket, Key: s.key(key), VersionId: &version, BypassGovernanceRetention: aws.Bool(true),
	})
	return s.gaveIn(ctx, key, err)
}

// gaveIn tells a store that did what was asked from one that refused, and returns the
// other errors: a store that is away has not refused anything.
func (s *s3Store) gaveIn(ctx context.Context, key string, err error) (bool, error) {
	if err == nil {
		return true, nil
	}
	mapped := s.error(ctx, "check", key, err)
	if errors.Is(mapped, ErrAccessDenied) || errors.Is(mapped, ErrRefused) {
		return false, nil
	}
	return false, mapped
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
