package store

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"time"
)

const (
	canaryPrefix = "lock-canaries/"
	// canaryLock must outlast the skew of clocks that the protocols tolerate, a
	// quarter of an hour.
	canaryLock = 20 * time.Minute
)

// suspect is a store under trial: what it must refuse is tried with all the rights that
// its credentials have. Each attempt tells whether the store gave in; its error is
// for a store that neither did nor refused.
type suspect interface {
	Store
	objectURL(key string) string

	// shorten sets a lock of the strong mode to an earlier end.
	shorten(ctx context.Context, key, version string, until time.Time) (bool, error)
	// remove deletes a version for good, with whatever bypass there is.
	remove(ctx context.Context, key, version string) (bool, error)
	// dropCanaries deletes canaries whose lock has run out, as far as these credentials
	// may. They are a few bytes each; failing changes nothing.
	dropCanaries(ctx context.Context)
}

// tryCanary locks a small object and tries what must fail. It returns the version too,
// for what else is to be looked at.
func tryCanary(ctx context.Context, s suspect, lock time.Duration) (canary Info, findings []Finding, _ error) {
	s.dropCanaries(ctx)

	content := rand.Text()
	key := newCanary()
	until := time.Now().Add(lock).UTC().Truncate(time.Second)
	opts := PutOptions{RetainUntil: until, ContentType: "text/plain", IfNoneMatch: true}
	put, err := s.Put(ctx, key, bytes.NewReader([]byte(content)), opts)
	if err != nil {
		return canary, nil, err
	}
	found := func(name, what, do string) {
		findings = append(findings, Finding{Name: name, Object: s.objectURL(key), What: what, Do: do})
	}
	const other = "use a store that honours its lock"

	canary, err = s.Head(ctx, key, put.Version)
	switch {
	case err != nil:
		return canary, nil, err
	case put.Version == "":
		found(NoVersioning, "an object got no version id", "turn versioning on")
	case canary.RetainMode != ModeCompliance || !canary.RetainUntil.Equal(until):
		found(NoLock, fmt.Sprintf("asked for COMPLIANCE until %s, the store reports %q until %s",
			until.Format(time.RFC3339), canary.RetainMode, canary.RetainUntil.Format(time.RFC3339)), other)
	}
	if findings != nil {
		return canary, findings, nil // no lock: nothing that it would have to refuse
	}

	if _, err := s.Put(ctx, key, bytes.NewReader([]byte("overwritten")), opts); err == nil {
		found(CanaryOverwritten, "If-None-Match did not keep an object from being written over", other)
	} else if !errors.Is(err, ErrExists) {
		return canary, nil, err
	}
	switch gaveIn, err := s.shorten(ctx, key, put.Version, until.Add(-lock/2)); {
	case err != nil:
		return canary, nil, err
	case gaveIn:
		found(CanaryShortened, "the lock was shortened", other)
	}
	switch gaveIn, err := s.remove(ctx, key, put.Version); {
	case err != nil:
		return canary, nil, err
	case gaveIn:
		found(CanaryDeleted, "the locked version was deleted", other)
		return canary, findings, nil
	}

	object, err := s.Get(ctx, key, put.Version)
	if err != nil {
		return canary, nil, err
	}
	defer object.Close()
	got, err := io.ReadAll(io.LimitReader(object, int64(len(content))+1))
	if err != nil {
		return canary, nil, err
	}
	if string(got) != content {
		found(CanaryOverwritten, "the locked version reads back differently", other)
	}
	return canary, findings, nil
}

// newCanary is a key that nobody else has.
func newCanary() string {
	return canaryPrefix + time.Now().UTC().Format("20060102T150405Z") + "-" + rand.Text()[:8]
}
