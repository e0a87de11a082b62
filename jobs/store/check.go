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
	// putWeak writes an object under the mode that a right can bypass, and bypass takes
	// its lock or the object away by that right.
	putWeak(ctx context.Context, key string, until time.Time) (version string, err error)
	bypass(ctx context.Context, key, version string) (bool, error)
	// unencrypted says how an object is encrypted otherwise than it was asked for.
	unencrypted(ctx context.Context, key, version string) (string, error)
	// open lists what is open to everybody: the bucket, and the object unless key is empty.
	open(ctx context.Context, key, version string) ([]string, error)
	// dropCanaries deletes canaries whose lock has run out, as far as these credentials
	// may. They are a few bytes each; failing changes nothing.
	dropCanaries(ctx context.Context)
}

// check is Check of every store that has a lock.
func check(ctx context.Context, s suspect) ([]Finding, error) {
	findings, err := s.CheckSettings(ctx)
	if err != nil {
		return nil, err
	}
	var canary Info
	if Accept(findings, []string{Governance}) == nil { // else there is no lock to be tried
		s.dropCanaries(ctx)
		var more []Finding
		if canary, more, err = tryCanary(ctx, s, canaryLock); err != nil {
			return findings, err
		}
		findings = append(findings, more...)
		if more == nil { // else bypassing shows nothing
			if more, err = tryBypass(ctx, s, canaryLock); err != nil {
				return findings, err
			}
			findings = append(findings, more...)
		}
		if more, err = tryEncryption(ctx, s, canary); err != nil {
			return findings, err
		}
		findings = append(findings, more...)
	}
	open, err := s.open(ctx, canary.Key, canary.Version)
	for _, what := range open {
		findings = append(findings, Finding{Name: PublicAccess, Object: s.URL(), What: what, Do: "close it to everybody but its users"})
	}
	return findings, err
}

// tryBypass looks whether these credentials can undo weaker locks.
func tryBypass(ctx context.Context, s suspect, lock time.Duration) ([]Finding, error) {
	key := newCanary()
	version, err := s.putWeak(ctx, key, time.Now().Add(lock).UTC().Truncate(time.Second))
	if errors.Is(err, ErrAccessDenied) {
		return nil, nil // who may not even write in that mode has nothing to bypass
	}
	if err != nil {
		return nil, err
	}
	if gaveIn, err := s.bypass(ctx, key, version); !gaveIn {
		return nil, err
	}
	return []Finding{{
		Name: BypassRight, Object: s.objectURL(key), What: "these credentials can undo a lock in GOVERNANCE mode",
		Do: "take that right from them, which only an administrator of locks should have",
	}}, nil
}

// tryEncryption looks whether the canary is encrypted as was asked.
func tryEncryption(ctx context.Context, s suspect, canary Info) ([]Finding, error) {
	what, err := s.unencrypted(ctx, canary.Key, canary.Version)
	if errors.Is(err, ErrNotFound) {
		return nil, nil // the canary was deleted
	}
	if err != nil || what == "" {
		return nil, err
	}
	return []Finding{{
		Name: EncryptionIgnored, Object: s.objectURL(canary.Key), What: what,
		Do: "use a store that encrypts, or ask for none: PGCUSTODY_S3_SSE",
	}}, nil
}

// gaveIn tells a store that did what was asked from one that refused, and returns the
// other errors: a store that is away has not refused anything.
func gaveIn(err error) (bool, error) {
	if errors.Is(err, ErrAccessDenied) || errors.Is(err, ErrRefused) {
		return false, nil
	}
	return err == nil, err
}

// tryCanary locks a small object and tries what must fail. It returns the version too,
// for what else is to be looked at.
func tryCanary(ctx context.Context, s suspect, lock time.Duration) (canary Info, findings []Finding, _ error) {
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
	case canary.RetainMode == modeGovernance:
		found(Governance, "asked for COMPLIANCE, the store locked in GOVERNANCE mode, which falls to whoever may bypass it", other)
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
