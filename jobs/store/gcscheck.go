package store

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"time"

	gcs "cloud.google.com/go/storage"
	"google.golang.org/api/option"
)

// CheckSettings reads what the bucket says about itself.
func (s *gcsStore) CheckSettings(ctx context.Context) ([]Finding, error) {
	limited, cancel := context.WithTimeout(ctx, stallTimeout)
	defer cancel()
	attrs, err := s.bucket.Attrs(limited)
	if err != nil {
		return nil, s.error(ctx, "check", "", err)
	}
	var findings []Finding
	found := func(name, what, do string, warning bool) {
		findings = append(findings, Finding{Name: name, Object: s.URL(), What: what, Do: do, Warning: warning})
	}
	if !attrs.VersioningEnabled {
		found(NoVersioning, "bucket is not versioned", "turn object versioning on for bucket "+s.name, false)
	}
	if attrs.ObjectRetentionMode != "Enabled" {
		found(NoLock, "bucket has no object retention",
			"turn object retention on for bucket "+s.name+", or name one that has it in PGCUSTODY_STORE", false)
	}
	switch policy := attrs.RetentionPolicy; {
	case policy == nil:
		found(NoDefaultRetention, "bucket has no retention policy: what other programs write into it is not locked", "", true)
	case !policy.IsLocked:
		found(Governance, "the bucket's retention policy is not locked: whoever may change the bucket takes it away",
			"lock the retention policy of bucket "+s.name+", or remove it", false)
	}
	if attrs.PublicAccessPrevention != gcs.PublicAccessPreventionEnforced {
		found(PublicAccess, "the bucket does not prevent public access", "enforce public access prevention", true)
	}
	if !attrs.UniformBucketLevelAccess.Enabled {
		found(PublicAccess, "objects of the bucket can have access lists of their own", "turn uniform bucket-level access on", true)
	}
	return findings, nil
}

func (s *gcsStore) Check(ctx context.Context) ([]Finding, error) {
	if err := s.listOne(ctx); err != nil {
		return nil, err
	}
	return check(ctx, s)
}

func (s *gcsStore) shorten(ctx context.Context, key, version string, until time.Time) (bool, error) {
	return s.tryUpdate(ctx, key, version, gcs.ObjectAttrsToUpdate{Retention: &gcs.ObjectRetention{Mode: gcsLocked, RetainUntil: until}})
}

// tryUpdate does what an administrator would try, with all that can be overridden.
func (s *gcsStore) tryUpdate(ctx context.Context, key, version string, change gcs.ObjectAttrsToUpdate) (bool, error) {
	object, err := s.object("check", key, version)
	if err != nil {
		return false, err
	}
	_, err = object.OverrideUnlockedRetention(true).Update(ctx, change)
	return gaveIn(s.error(ctx, "check", key, err))
}

func (s *gcsStore) remove(ctx context.Context, key, version string) (bool, error) {
	object, err := s.object("check", key, version)
	if err != nil {
		return false, err
	}
	return gaveIn(s.error(ctx, "check", key, object.Delete(ctx)))
}

func (s *gcsStore) putWeak(ctx context.Context, key string, until time.Time) (string, error) {
	put, err := s.put(ctx, key, bytes.NewReader([]byte("weak")), &gcs.ObjectRetention{Mode: gcsUnlocked, RetainUntil: until}, PutOptions{IfNoneMatch: true})
	return put.Version, err
}

func (s *gcsStore) bypass(ctx context.Context, key, version string) (bool, error) {
	return s.tryUpdate(ctx, key, version, gcs.ObjectAttrsToUpdate{Retention: &gcs.ObjectRetention{}})
}

func (s *gcsStore) dropCanaries(ctx context.Context) {
	for attrs, err := range s.all(ctx, "list", canaryPrefix, true) {
		if err != nil {
			return
		}
		if time.Since(attrs.Created) < 2*canaryLock {
			continue
		}
		err := s.bucket.Object(attrs.Name).Generation(attrs.Generation).Delete(ctx)
		if err != nil && !errors.Is(err, gcs.ErrObjectNotExist) {
			return
		}
	}
}

// unencrypted has nothing to find: Google encrypts whatever it keeps.
func (s *gcsStore) unencrypted(context.Context, string, string) (string, error) { return "", nil }

func (s *gcsStore) open(ctx context.Context, key, version string) (open []string, _ error) {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	defer transport.CloseIdleConnections()
	client, err := gcs.NewClient(ctx, option.WithHTTPClient(&http.Client{Transport: transport}), gcs.WithJSONReads(), gcs.WithDisabledClientMetrics())
	if err != nil {
		return nil, s.error(ctx, "check", "", err)
	}
	defer client.Close()
	anybody := *s
	anybody.client, anybody.bucket = client, client.Bucket(s.name)
	if could, err := gaveIn(anybody.listOne(ctx)); err != nil {
		return nil, err
	} else if could {
		open = append(open, "anybody can list the bucket")
	}
	if key != "" {
		_, err := anybody.Head(ctx, key, version)
		if could, err := gaveIn(err); err != nil && !errors.Is(err, ErrNotFound) {
			return open, err
		} else if could {
			open = append(open, "anybody can read an object")
		}
	}
	return open, nil
}
