package store

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
)

const (
	canaryPrefix = "lock-canaries/"
	// canaryLock must outlast the skew of clocks that the protocol tolerates, a
	// quarter of an hour.
	canaryLock = 20 * time.Minute
)

func (s *s3Store) Check(ctx context.Context) error {
	if err := s.listOne(ctx); err != nil {
		return err
	}
	if err := s.CheckSettings(ctx); err != nil {
		return err
	}
	return s.checkCanary(ctx, canaryLock)
}

// CheckSettings reads what the bucket says about itself.
func (s *s3Store) CheckSettings(ctx context.Context) error {
	versioning, err := s.client.GetBucketVersioning(ctx, &s3.GetBucketVersioningInput{Bucket: &s.bucket})
	if err != nil {
		return s.error(ctx, "check", "", err)
	}
	var unversioned error
	if versioning.Status != types.BucketVersioningStatusEnabled {
		unversioned = ErrNoVersioning
	}
	lock, err := s.client.GetObjectLockConfiguration(ctx, &s3.GetObjectLockConfigurationInput{Bucket: &s.bucket})
	var api smithy.APIError
	switch {
	case errors.As(err, &api) && api.ErrorCode() == "ObjectLockConfigurationNotFoundError",
		err == nil && (lock.ObjectLockConfiguration == nil ||
			lock.ObjectLockConfiguration.ObjectLockEnabled != types.ObjectLockEnabledEnabled):
		return &Error{Op: "check", Object: s.URL(), Kind: ErrNoObjectLock, Err: unversioned,
			Hint: "turn Object Lock on for bucket " + s.bucket + ", or name one that has it in PGCUSTODY_STORE"}
	case err != nil:
		return s.error(ctx, "check", "", err)
	case unversioned != nil:
		return &Error{Op: "check", Object: s.URL(), Kind: ErrNoVersioning, Hint: "turn versioning on for bucket " + s.bucket}
	}
	return nil
}

// checkCanary locks a small object and tries what must fail.
func (s *s3Store) checkCanary(ctx context.Context, lock time.Duration) error {
	s.dropOldCanaries(ctx)

	content := rand.Text()
	key := canaryPrefix + time.Now().UTC().Format("20060102T150405Z") + "-" + rand.Text()[:8]
	until := time.Now().Add(lock).UTC().Truncate(time.Second)
	opts := PutOptions{RetainUntil: until, ContentType: "text/plain", IfNoneMatch: true}
	put, err := s.Put(ctx, key, bytes.NewReader([]byte(content)), opts)
	if err != nil {
		return err
	}
	broken := func(what string) error {
		return &Error{Op: "check", Object: s.objectURL(key), Kind: ErrNotLocked, Err: errors.New(what),
			Hint: "use a store that honours Object Lock in COMPLIANCE mode"}
	}

	info, err := s.Head(ctx, key, put.Version)
	switch {
	case err != nil:
		return err
	case put.Version == "":
		return broken("the object got no version id")
	case info.RetainMode != ModeCompliance || !info.RetainUntil.Equal(until):
		return broken(fmt.Sprintf("asked for COMPLIANCE until %s, the store reports %q until %s",
			until.Format(time.RFC3339), info.RetainMode, info.RetainUntil.Format(time.RFC3339)))
	}

	if _, err := s.Put(ctx, key, bytes.NewReader([]byte("overwritten")), opts); err == nil {
		return broken("If-None-Match did not keep an object from being written over")
	} else if !errors.Is(err, ErrExists) {
		return err
	}
	shorter := s.retention(key, put.Version, until.Add(-lock/2))
	if _, err := s.client.PutObjectRetention(ctx, shorter); err == nil {
		return broken("the lock was shortened")
	} else if err := s.mustBeRefusal(ctx, key, err); err != nil {
		return err
	}
	// BypassGovernanceRetention is what an administrator would try.
	if _, err := s.client.DeleteObject(ctx, &s3.DeleteObjectInput{
		Bucket: &s.bucket, Key: s.key(key), VersionId: &put.Version, BypassGovernanceRetention: aws.Bool(true),
	}); err == nil {
		return broken("the locked version was deleted")
	} else if err := s.mustBeRefusal(ctx, key, err); err != nil {
		return err
	}

	object, err := s.Get(ctx, key, put.Version)
	if err != nil {
		return err
	}
	defer object.Close()
	got, err := io.ReadAll(io.LimitReader(object, int64(len(content))+1))
	if err != nil {
		return err
	}
	if string(got) != content {
		return broken("the locked version reads back differently")
	}
	return nil
}

// mustBeRefusal passes the errors by which a store says no and returns the
// others: a store that is away has not refused anything.
func (s *s3Store) mustBeRefusal(ctx context.Context, key string, err error) error {
	mapped := s.error(ctx, "check", key, err)
	if errors.Is(mapped, ErrAccessDenied) || errors.Is(mapped, ErrRefused) {
		return nil
	}
	return mapped
}

// dropOldCanaries deletes canaries whose lock has run out, as far as these
// credentials may. They are a few bytes each; failing changes nothing.
func (s *s3Store) dropOldCanaries(ctx context.Context) {
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
