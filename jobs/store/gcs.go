package store

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"iter"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	gcs "cloud.google.com/go/storage"
	"github.com/googleapis/gax-go/v2"
	"google.golang.org/api/googleapi"
	"google.golang.org/api/iterator"
)

const (
	// Google's words for a lock that nobody can shorten, and for one that falls to
	// whoever may override it.
	gcsLocked   = "Locked"
	gcsUnlocked = "Unlocked"
)

// gcsStore keeps objects in a bucket of Google Cloud Storage. A version is a
// generation.
type gcsStore struct {
	client *gcs.Client
	bucket *gcs.BucketHandle
	name   string
	prefix string // "" or "a/b/"
	opts   Options
	// patience is for how long a part of an upload is tried again.
	patience time.Duration
}

func openGCS(ctx context.Context, bucket, prefix string, opts Options) (*gcsStore, error) {
	s := &gcsStore{name: bucket, opts: opts, patience: partTimeout}
	if prefix != "" {
		s.prefix = prefix + "/"
	}
	client, err := gcs.NewClient(ctx, gcs.WithJSONReads(), gcs.WithDisabledClientMetrics())
	if err != nil {
		return nil, &Error{Op: "open", Object: s.URL(), Kind: cmp.Or(ctx.Err(), ErrAccessDenied),
			Hint: "no credentials: set GOOGLE_APPLICATION_CREDENTIALS, or run where a service account is attached", Err: withoutURL(err)}
	}
	// What is repeated here does no harm: a Put that was done and is not known to be
	// makes one more generation, or finds that its object exists.
	// Named, what is tried again counts for uploads as well.
	client.SetRetry(gcs.WithPolicy(gcs.RetryAlways), gcs.WithMaxAttempts(4), gcs.WithErrorFunc(gcs.ShouldRetry),
		gcs.WithBackoff(gax.Backoff{Initial: 200 * time.Millisecond, Max: 5 * time.Second, Multiplier: 2}))
	s.client, s.bucket = client, client.Bucket(bucket)
	return s, nil
}

func (s *gcsStore) URL() string {
	return strings.TrimSuffix("gs://"+s.name+"/"+s.prefix, "/")
}

func (s *gcsStore) objectURL(key string) string { return "gs://" + s.name + "/" + s.prefix + key }

// object is a generation of a key, or the live one.
func (s *gcsStore) object(op, key, version string) (*gcs.ObjectHandle, error) {
	object := s.bucket.Object(s.prefix + key)
	if version == "" {
		return object, nil
	}
	generation, err := strconv.ParseInt(version, 10, 64)
	if err != nil || generation <= 0 {
		return nil, &Error{Op: op, Object: s.objectURL(key), Kind: ErrNotFound, Hint: "a version is the number of a generation"}
	}
	return object.Generation(generation), nil
}

// error turns what the client returns into an *Error.
func (s *gcsStore) error(ctx context.Context, op, key string, err error) error {
	var known *Error
	if err == nil || errors.As(err, &known) {
		return err
	}
	e := &Error{Op: op, Object: s.objectURL(key), Err: withoutURL(err)}
	if ctx.Err() != nil {
		e.Kind, e.Err = ctx.Err(), nil
		return e
	}
	var api *googleapi.Error
	status := 0
	if errors.As(err, &api) {
		status = api.Code
		e.Err = fmt.Errorf("%d %s", api.Code, firstLine(cmp.Or(api.Message, api.Body)))
	}
	switch {
	case errors.Is(err, gcs.ErrBucketNotExist):
		e.Kind, e.Hint = ErrBucketMissing, "create bucket "+s.name+" with object retention, or correct PGCUSTODY_STORE"
		e.Object = s.URL()
	case errors.Is(err, gcs.ErrObjectNotExist), status == http.StatusNotFound:
		if err := s.listOne(ctx); err != nil { // a missing bucket says the same
			return err
		}
		e.Kind, e.Err = ErrNotFound, nil
	case status == http.StatusPreconditionFailed:
		e.Kind = ErrExists
	case status == http.StatusUnauthorized:
		e.Kind, e.Hint = ErrAccessDenied, "renew the credentials in GOOGLE_APPLICATION_CREDENTIALS, and set this machine's clock right"
	case status == http.StatusForbidden:
		e.Kind, e.Hint = ErrAccessDenied, "give these credentials the right to it, or check whether a lock forbids it"
	case status == 0, status >= http.StatusInternalServerError, status == http.StatusTooManyRequests,
		status == http.StatusRequestTimeout:
		e.Kind, e.Hint = ErrUnreachable, "check the network and the store; run again when it answers"
	default:
		e.Kind = ErrRefused
	}
	return e
}

// withoutURL leaves out the address that was asked: that of an upload is all that
// somebody needs to write it.
func withoutURL(err error) error {
	if asked := new(url.Error); errors.As(err, &asked) {
		return asked.Err
	}
	return err
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return line
}

// listOne asks for the first object, which tells whether the bucket is there and these
// credentials are known.
func (s *gcsStore) listOne(ctx context.Context) error {
	_, err := s.bucket.Objects(ctx, &gcs.Query{Prefix: s.prefix}).Next()
	if err == nil || errors.Is(err, iterator.Done) {
		return nil
	}
	return s.error(ctx, "list", "", err)
}

func (s *gcsStore) Put(ctx context.Context, key string, body io.Reader, opts PutOptions) (PutResult, error) {
	var retention *gcs.ObjectRetention
	if !opts.RetainUntil.IsZero() {
		retention = &gcs.ObjectRetention{Mode: gcsLocked, RetainUntil: opts.RetainUntil.UTC()}
	}
	return s.put(ctx, key, body, retention, opts)
}

func (s *gcsStore) put(ctx context.Context, key string, body io.Reader, retention *gcs.ObjectRetention, opts PutOptions) (PutResult, error) {
	head, source := make([]byte, classFrom), &source{ctx: ctx, from: body}
	n, whole, err := readPart(source, head)
	if err != nil {
		return PutResult{}, source.error(ctx, s, key)
	}
	head = head[:n]

	object := s.bucket.Object(s.prefix + key)
	if opts.IfNoneMatch {
		object = object.If(gcs.Conditions{DoesNotExist: true})
	}
	// Only cancelling keeps an unfinished object from becoming one.
	writing, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	w := object.NewWriter(writing)
	w.ContentType = cmp.Or(opts.ContentType, "application/octet-stream")
	w.Retention = retention
	w.ChunkSize, w.ChunkRetryDeadline, w.ChunkTransferTimeout = partSize, s.patience, stallTimeout
	if whole {
		w.ChunkSize = classFrom
		w.CRC32C, w.SendCRC32C = crc32.Checksum(head, castagnoli), true
	} else if retention != nil {
		w.StorageClass = s.opts.StorageClass
	}
	sum := crc32.New(castagnoli)
	// The client bounds attempts at parts, those at an upload's beginning by nothing.
	stuck := time.AfterFunc(2*s.patience, func() { cancel(fmt.Errorf("no answer for %s", 2*s.patience)) })
	defer stuck.Stop()
	waiting := writerFunc(func(p []byte) (int, error) {
		stuck.Reset(2 * s.patience)
		defer stuck.Stop() // the source may take its time
		return w.Write(p)
	})
	stuck.Stop()
	size, err := io.Copy(io.MultiWriter(waiting, sum), io.MultiReader(bytes.NewReader(head), source))
	if ctx.Err() != nil || source.err != nil {
		err = source.error(ctx, s, key)
	}
	if err != nil {
		cancel(err) // unless it was before
		_ = w.Close()
	} else {
		stuck.Reset(2 * s.patience)
		err = w.Close()
		stuck.Stop()
	}
	if err != nil {
		if writing.Err() != nil {
			err = context.Cause(writing)
		}
		return PutResult{}, s.error(ctx, "put", key, err)
	}
	stored := w.Attrs()
	res := PutResult{Key: key, Version: strconv.FormatInt(stored.Generation, 10), Size: size, Checksum: checksum(sum.Sum32())}
	if stored.CRC32C != sum.Sum32() || stored.Size != size {
		return res, &Error{Op: "put", Object: s.objectURL(key), Kind: ErrRefused,
			Hint: "the object was changed on its way: look for a proxy that rewrites bodies, then run again",
			Err:  fmt.Errorf("sent %d bytes with CRC32C %08x, stored %d with %08x", size, sum.Sum32(), stored.Size, stored.CRC32C)}
	}
	return res, nil
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum is the sum that Google keeps of every object; of SHA-256 it knows nothing.
func checksum(crc uint32) string { return fmt.Sprintf("crc32c:%08x", crc) }

func (s *gcsStore) Get(ctx context.Context, key, version string) (*Object, error) {
	// The reader does not tell the lock.
	info, err := s.Head(ctx, key, version)
	if err != nil {
		var e *Error
		if errors.As(err, &e) && e.Op == "head" {
			e.Op = "get"
		}
		return nil, err
	}
	object, err := s.object("get", key, info.Version)
	if err != nil {
		return nil, err
	}
	reading, cancel := context.WithCancelCause(ctx)
	body, err := object.NewReader(reading)
	if err != nil {
		cancel(nil)
		return nil, s.error(ctx, "get", key, err)
	}
	stall := time.AfterFunc(stallTimeout, func() { cancel(errStalled) })
	stall.Stop()
	return &Object{Info: info, ReadCloser: &objectReader{
		store: s, parent: ctx, reading: reading, cancel: cancel, stall: stall, key: key, body: body, left: info.Size,
	}}, nil
}

func (s *gcsStore) info(attrs *gcs.ObjectAttrs) Info {
	info := Info{
		Key: strings.TrimPrefix(attrs.Name, s.prefix), Version: strconv.FormatInt(attrs.Generation, 10), Size: attrs.Size,
		Modified: attrs.Created, Checksum: checksum(attrs.CRC32C),
		LegalHold: attrs.TemporaryHold || attrs.EventBasedHold, StorageClass: attrs.StorageClass,
	}
	if info.StorageClass == "STANDARD" {
		info.StorageClass = ""
	}
	if attrs.Retention != nil {
		info.RetainUntil, info.RetainMode = attrs.Retention.RetainUntil, modeGovernance
		if attrs.Retention.Mode == gcsLocked {
			info.RetainMode = ModeCompliance
		}
	}
	return info
}

func (s *gcsStore) Head(ctx context.Context, key, version string) (Info, error) {
	object, err := s.object("head", key, version)
	if err != nil {
		return Info{}, err
	}
	limited, cancel := context.WithTimeout(ctx, stallTimeout)
	defer cancel()
	attrs, err := object.Attrs(limited)
	if err != nil {
		return Info{}, s.error(ctx, "head", key, err)
	}
	return s.info(attrs), nil
}

// all yields the generations of the keys that start with prefix, key by key.
func (s *gcsStore) all(ctx context.Context, op, prefix string, versions bool) iter.Seq2[*gcs.ObjectAttrs, error] {
	return func(yield func(*gcs.ObjectAttrs, error) bool) {
		objects := s.bucket.Objects(ctx, &gcs.Query{Prefix: s.prefix + prefix, Versions: versions, Projection: gcs.ProjectionNoACL})
		for {
			attrs, err := objects.Next()
			if errors.Is(err, iterator.Done) {
				return
			}
			if err != nil {
				yield(nil, s.error(ctx, op, prefix, err))
				return
			}
			if !yield(attrs, nil) {
				return
			}
		}
	}
}

func (s *gcsStore) List(ctx context.Context, prefix string) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		for attrs, err := range s.all(ctx, "list", prefix, false) {
			if err != nil {
				yield(Info{}, err)
				return
			}
			if !yield(s.info(attrs), nil) {
				return
			}
		}
	}
}

func (s *gcsStore) Versions(ctx context.Context, prefix string) iter.Seq2[Info, error] {
	return withoutMarkers(s.History(ctx, prefix))
}

// History yields generations. Google has no delete markers: a key whose newest
// generation is no longer live has been hidden, which is told as one.
func (s *gcsStore) History(ctx context.Context, prefix string) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		var ofKey []*gcs.ObjectAttrs
		flush := func() bool {
			if len(ofKey) == 0 {
				return true
			}
			slices.SortFunc(ofKey, func(a, b *gcs.ObjectAttrs) int { return cmp.Compare(a.Generation, b.Generation) })
			newest := ofKey[len(ofKey)-1]
			if !newest.Deleted.IsZero() {
				marker := Info{Key: strings.TrimPrefix(newest.Name, s.prefix), Modified: newest.Deleted, DeleteMarker: true}
				marker.Version = "deleted-" + strconv.FormatInt(newest.Generation, 10)
				if !yield(marker, nil) {
					return false
				}
			}
			for _, attrs := range ofKey {
				if !yield(s.info(attrs), nil) {
					return false
				}
			}
			ofKey = ofKey[:0]
			return true
		}
		for attrs, err := range s.all(ctx, "list", prefix, true) {
			if err != nil {
				yield(Info{}, err)
				return
			}
			if len(ofKey) > 0 && ofKey[0].Name != attrs.Name && !flush() {
				return
			}
			ofKey = append(ofKey, attrs)
		}
		flush()
	}
}

// update changes what is kept about a generation.
func (s *gcsStore) update(ctx context.Context, op, key, version string, change gcs.ObjectAttrsToUpdate) error {
	object, err := s.object(op, key, version)
	if err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, stallTimeout)
	defer cancel()
	_, err = object.Update(limited, change)
	return s.error(ctx, op, key, err)
}

func (s *gcsStore) Extend(ctx context.Context, key, version string, until time.Time) error {
	return s.update(ctx, "extend", key, version, gcs.ObjectAttrsToUpdate{
		Retention: &gcs.ObjectRetention{Mode: gcsLocked, RetainUntil: until.UTC()},
	})
}

// SetLegalHold sets the hold that ends when it is taken off: Google's temporary one.
func (s *gcsStore) SetLegalHold(ctx context.Context, key, version string, on bool) error {
	return s.update(ctx, "hold", key, version, gcs.ObjectAttrsToUpdate{TemporaryHold: on})
}

// Sweep has nothing to end: an unfinished upload costs nothing and is gone after a week.
func (s *gcsStore) Sweep(context.Context, string) (int, error) { return 0, nil }

// Unfinished has none to name.
func (s *gcsStore) Unfinished(context.Context, string) ([]string, error) { return nil, nil }

func (s *gcsStore) Delete(ctx context.Context, key string) (int, error) {
	deleted := 0
	var failures error
	for attrs, err := range s.all(ctx, "delete", key, true) {
		if err != nil {
			return deleted, err
		}
		if attrs.Name != s.prefix+key { // a longer one
			continue
		}
		err = s.bucket.Object(attrs.Name).Generation(attrs.Generation).Delete(ctx)
		switch {
		case ctx.Err() != nil:
			return deleted, s.error(ctx, "delete", key, err)
		case err == nil:
			deleted++
		case !errors.Is(err, gcs.ErrObjectNotExist):
			failures = errors.Join(failures, s.deleteError(ctx, key, s.info(attrs), err))
		}
	}
	return deleted, failures
}

// deleteError tells a generation that is locked from one that these credentials may not
// delete: to both Google says that it is forbidden.
func (s *gcsStore) deleteError(ctx context.Context, key string, info Info, err error) error {
	mapped := s.error(ctx, "delete", key, err)
	if !errors.Is(mapped, ErrAccessDenied) && !errors.Is(mapped, ErrRefused) {
		return mapped
	}
	locked := &Error{Op: "delete", Object: s.objectURL(key), Kind: ErrLocked}
	switch {
	case info.RetainUntil.After(time.Now()):
		locked.Hint = "version " + info.Version + " cannot be deleted before " + info.RetainUntil.UTC().Format(time.RFC3339)
	case info.LegalHold:
		locked.Hint = "version " + info.Version + " is under a legal hold of the store"
	default:
		return mapped
	}
	return locked
}
