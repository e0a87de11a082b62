package store

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/logging"
	"golang.org/x/sync/errgroup"
)

const (
	// partSize, the least that S3 takes, times maxParts bounds an object: 48 GiB.
	// Two parts are in memory at once, on their way or being filled.
	partSize    = 5 << 20
	maxParts    = 10_000
	partsFlying = 2

	// partTimeout bounds the upload of one part with its retries, stallTimeout
	// the silence of a store in the middle of an answer.
	partTimeout    = 5 * time.Minute
	stallTimeout   = time.Minute
	cleanupTimeout = 15 * time.Second
)

// s3Store keeps objects in a bucket of S3 or of what speaks its protocol.
type s3Store struct {
	client *s3.Client
	bucket string
	prefix string // "" or "a/b/"
	opts   Options
	// parts are buffers that are not in use. A pool of the runtime's would drop
	// them at every collection and make the next Put allocate anew.
	parts chan *[partSize]byte
}

func openS3(ctx context.Context, bucket, prefix string, opts Options) (*s3Store, error) {
	s := &s3Store{bucket: bucket, opts: opts, parts: make(chan *[partSize]byte, partsFlying)}
	if prefix != "" {
		s.prefix = prefix + "/"
	}

	// AWS_CA_BUNDLE needs the SDK's own client; a plain http.Client makes the
	// configuration fail where it is set.
	client := awshttp.NewBuildableClient().WithTransportOptions(func(t *http.Transport) {
		t.ResponseHeaderTimeout = stallTimeout
		// As many as are asked for at once keep their connections; the SDK would keep ten.
		t.MaxIdleConnsPerHost = 32
	})
	cfg, err := config.LoadDefaultConfig(ctx, config.WithHTTPClient(client), config.WithAppID("pgcustody"),
		config.WithLogger(logging.Nop{})) // what matters comes back as an error
	if err != nil {
		return nil, &Error{Op: "open", Object: s.URL(), Kind: ErrBadURL, Hint: "mend the AWS settings", Err: err}
	}
	s.client = s3.NewFromConfig(cfg, func(o *s3.Options) {
		if o.BaseEndpoint != nil {
			// Other servers than Amazon's rarely answer to bucket.host.
			o.UsePathStyle = true
			o.Region = cmp.Or(o.Region, "us-east-1")
		}
		if opts.PathStyle != "" {
			o.UsePathStyle = opts.PathStyle == "true"
		}
		o.Retryer = retry.NewStandard(func(r *retry.StandardOptions) {
			r.MaxAttempts = cmp.Or(o.RetryMaxAttempts, 4) // AWS_MAX_ATTEMPTS
			r.MaxBackoff = 5 * time.Second
		})
	})
	if s.client.Options().Region == "" {
		return nil, &Error{Op: "open", Object: s.URL(), Kind: ErrBadURL, Hint: "set AWS_REGION"}
	}
	if _, err := cfg.Credentials.Retrieve(ctx); err != nil {
		return nil, &Error{Op: "open", Object: s.URL(), Kind: cmp.Or(ctx.Err(), ErrAccessDenied),
			Hint: "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE", Err: err}
	}
	return s, nil
}

func (s *s3Store) URL() string {
	return strings.TrimSuffix("s3://"+s.bucket+"/"+s.prefix, "/")
}

func (s *s3Store) objectURL(key string) string {
	return "s3://" + s.bucket + "/" + s.prefix + key
}

func (s *s3Store) key(key string) *string { return aws.String(s.prefix + key) }

func (s *s3Store) Put(ctx context.Context, key string, body io.Reader, opts PutOptions) (PutResult, error) {
	part, source := s.buffer(), &source{ctx: ctx, from: body}
	n, last, err := readPart(source, part[:])
	if err == nil && !last {
		return s.putParts(ctx, key, part, source, opts)
	}
	defer s.free(part)
	if err != nil {
		return PutResult{}, source.error(ctx, s, key)
	}
	return s.putWhole(ctx, key, part[:n], opts)
}

// buffer returns a part's buffer, free takes it back.
func (s *s3Store) buffer() *[partSize]byte {
	select {
	case part := <-s.parts:
		return part
	default:
		return new([partSize]byte)
	}
}

func (s *s3Store) free(part *[partSize]byte) {
	select {
	case s.parts <- part:
	default:
	}
}

func (s *s3Store) putWhole(ctx context.Context, key string, body []byte, opts PutOptions) (PutResult, error) {
	sum := sha256.Sum256(body)
	in := &s3.PutObjectInput{
		Bucket:         &s.bucket,
		Key:            s.key(key),
		Body:           bytes.NewReader(body),
		ContentLength:  aws.Int64(int64(len(body))),
		ContentType:    aws.String(cmp.Or(opts.ContentType, "application/octet-stream")),
		ChecksumSHA256: aws.String(base64.StdEncoding.EncodeToString(sum[:])),
	}
	if opts.IfNoneMatch {
		in.IfNoneMatch = aws.String("*")
	}
	if !opts.RetainUntil.IsZero() {
		in.ObjectLockMode, in.ObjectLockRetainUntilDate = types.ObjectLockModeCompliance, aws.Time(opts.RetainUntil.UTC())
		if len(body) >= classFrom {
			in.StorageClass = types.StorageClass(s.opts.StorageClass)
		}
	}
	in.ServerSideEncryption, in.SSEKMSKeyId = s.encryption()
	timeout, cancel := context.WithTimeout(ctx, partTimeout)
	defer cancel()
	out, err := s.client.PutObject(timeout, in)
	if err != nil {
		return PutResult{}, s.putError(ctx, key, opts, err)
	}
	return PutResult{
		Key: key, Version: aws.ToString(out.VersionId), Size: int64(len(body)), Checksum: *in.ChecksumSHA256,
	}, s.compareChecksum(key, *in.ChecksumSHA256, out.ChecksumSHA256)
}

// encryption is what is asked of the store: nothing, its own key, or one of KMS.
func (s *s3Store) encryption() (types.ServerSideEncryption, *string) {
	if s.opts.SSEKMSKey == "" {
		return types.ServerSideEncryption(s.opts.SSE), nil
	}
	return types.ServerSideEncryption(s.opts.SSE), &s.opts.SSEKMSKey
}

// putParts uploads first and then what is left of body. It gives first back to
// the pool.
func (s *s3Store) putParts(ctx context.Context, key string, first *[partSize]byte, body *source, opts PutOptions) (_ PutResult, err error) {
	in := &s3.CreateMultipartUploadInput{
		Bucket:            &s.bucket,
		Key:               s.key(key),
		ContentType:       aws.String(cmp.Or(opts.ContentType, "application/octet-stream")),
		ChecksumAlgorithm: types.ChecksumAlgorithmSha256,
		ChecksumType:      types.ChecksumTypeComposite,
	}
	if !opts.RetainUntil.IsZero() {
		in.ObjectLockMode, in.ObjectLockRetainUntilDate = types.ObjectLockModeCompliance, aws.Time(opts.RetainUntil.UTC())
		in.StorageClass = types.StorageClass(s.opts.StorageClass)
	}
	in.ServerSideEncryption, in.SSEKMSKeyId = s.encryption()
	upload, err := s.client.CreateMultipartUpload(ctx, in)
	if err != nil {
		s.free(first)
		return PutResult{}, s.putError(ctx, key, opts, err)
	}
	defer func() {
		if err != nil {
			s.abort(ctx, key, *upload.UploadId)
		}
	}()

	var (
		group, groupCtx = errgroup.WithContext(ctx)
		flying          = make(chan struct{}, partsFlying)
		mu              sync.Mutex
		done            []types.CompletedPart // part n at n-1
		size            int64
		sums            = sha256.New() // over the parts' sums, in order
		failed          bool           // the source
	)
	send := func(part *[partSize]byte, n int) error {
		number := int32(len(done) + 1)
		if number > maxParts {
			s.free(part)
			return &Error{Op: "put", Object: s.objectURL(key), Kind: ErrTooLarge,
				Hint: fmt.Sprintf("an object holds at most %d GiB", partSize*maxParts>>30)}
		}
		size += int64(n)
		sum := sha256.Sum256(part[:n])
		sums.Write(sum[:])
		mu.Lock()
		done = append(done, types.CompletedPart{
			PartNumber: aws.Int32(number), ChecksumSHA256: aws.String(base64.StdEncoding.EncodeToString(sum[:])),
		})
		checksum := done[number-1].ChecksumSHA256
		mu.Unlock()
		group.Go(func() error {
			defer func() { s.free(part); <-flying }()
			timeout, cancel := context.WithTimeout(groupCtx, partTimeout)
			defer cancel()
			out, err := s.client.UploadPart(timeout, &s3.UploadPartInput{
				Bucket: &s.bucket, Key: s.key(key), UploadId: upload.UploadId, PartNumber: &number,
				Body: bytes.NewReader(part[:n]), ContentLength: aws.Int64(int64(n)), ChecksumSHA256: checksum,
			})
			if err != nil {
				return s.error(ctx, "put", key, err)
			}
			mu.Lock()
			done[number-1].ETag = out.ETag
			mu.Unlock()
			return s.compareChecksum(key, *checksum, out.ChecksumSHA256)
		})
		return nil
	}

	flying <- struct{}{}
	err = send(first, partSize)
	for last := false; err == nil && !failed && !last; {
		select {
		case flying <- struct{}{}:
		case <-groupCtx.Done():
			last = true
			continue
		}
		part := s.buffer()
		var n int
		var readErr error
		n, last, readErr = readPart(body, part[:])
		failed = readErr != nil
		if n == 0 || failed {
			s.free(part)
			<-flying
			continue
		}
		err = send(part, n)
	}
	if groupErr := group.Wait(); err == nil && groupErr != nil {
		err = groupErr
	}
	switch {
	case failed:
		return PutResult{}, body.error(ctx, s, key)
	case err != nil:
		return PutResult{}, err
	case ctx.Err() != nil:
		return PutResult{}, s.error(ctx, "put", key, ctx.Err())
	}

	complete := &s3.CompleteMultipartUploadInput{
		Bucket: &s.bucket, Key: s.key(key), UploadId: upload.UploadId,
		MultipartUpload: &types.CompletedMultipartUpload{Parts: done},
		ChecksumType:    types.ChecksumTypeComposite,
		MpuObjectSize:   &size,
	}
	if opts.IfNoneMatch {
		complete.IfNoneMatch = aws.String("*")
	}
	out, err := s.client.CompleteMultipartUpload(ctx, complete)
	if err != nil {
		return PutResult{}, s.putError(ctx, key, opts, err)
	}
	want := fmt.Sprintf("%s-%d", base64.StdEncoding.EncodeToString(sums.Sum(nil)), len(done))
	res := PutResult{Key: key, Version: aws.ToString(out.VersionId), Size: size, Checksum: want}
	if err := s.compareChecksum(key, want, out.ChecksumSHA256); err != nil {
		return res, err
	}
	return res, nil
}

// abort gives up an upload although the caller's context may be done: what it
// left would be paid for and never seen. A part that was on its way when its
// connection was cut may still arrive and bring the upload back, so it asks until
// the store knows of none.
func (s *s3Store) abort(ctx context.Context, key, uploadID string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	pause := time.NewTimer(0)
	defer pause.Stop()
	for wait := 20 * time.Millisecond; wait < time.Second; wait *= 2 {
		_, err := s.client.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{
			Bucket: &s.bucket, Key: s.key(key), UploadId: &uploadID,
		})
		if err != nil {
			// Gone, or the store is away. The error that led here is the one to
			// report, and Sweep finds what is left.
			return
		}
		pause.Reset(wait)
		select {
		case <-ctx.Done():
			return
		case <-pause.C:
		}
	}
}

// compareChecksum holds the store's sum against ours. A store that answers with
// none has compared at least each part with the sum that it was sent.
func (s *s3Store) compareChecksum(key, sent string, got *string) error {
	if got == nil || *got == sent {
		return nil
	}
	return &Error{Op: "put", Object: s.objectURL(key), Kind: ErrRefused,
		Hint: "the object was changed on its way: look for a proxy that rewrites bodies, then run again",
		Err:  fmt.Errorf("sent SHA-256 %s, stored %s", sent, *got)}
}

func (s *s3Store) Get(ctx context.Context, key, version string) (*Object, error) {
	reading, cancel := context.WithCancelCause(ctx)
	in := &s3.GetObjectInput{Bucket: &s.bucket, Key: s.key(key)}
	if version != "" {
		in.VersionId = &version
	}
	out, err := s.client.GetObject(reading, in)
	if err != nil {
		cancel(nil)
		if frozen := new(types.InvalidObjectState); errors.As(err, &frozen) {
			return nil, s.thaw(ctx, key, version, frozen)
		}
		return nil, s.error(ctx, "get", key, err)
	}
	info := Info{
		Key: key, Version: aws.ToString(out.VersionId), Size: aws.ToInt64(out.ContentLength),
		Modified: aws.ToTime(out.LastModified), Checksum: aws.ToString(out.ChecksumSHA256),
		RetainMode: string(out.ObjectLockMode), RetainUntil: aws.ToTime(out.ObjectLockRetainUntilDate),
		LegalHold: out.ObjectLockLegalHoldStatus == types.ObjectLockLegalHoldStatusOn, StorageClass: string(out.StorageClass),
	}
	stall := time.AfterFunc(stallTimeout, func() { cancel(errStalled) })
	stall.Stop()
	return &Object{Info: info, ReadCloser: &objectReader{
		store: s, parent: ctx, reading: reading, cancel: cancel, stall: stall, key: key, body: out.Body, left: info.Size,
	}}, nil
}

// place is what a reader needs to say what went wrong.
type place interface {
	objectURL(key string) string
	error(ctx context.Context, op, key string, err error) error
}

// objectReader hands out an object's bytes. It fails when fewer come than were
// announced and when the store falls silent.
type objectReader struct {
	store           place
	parent, reading context.Context
	cancel          context.CancelCauseFunc
	stall           *time.Timer
	key             string
	body            io.ReadCloser
	left            int64
}

var errStalled = fmt.Errorf("silent for %s", stallTimeout)

func (r *objectReader) Read(p []byte) (int, error) {
	r.stall.Reset(stallTimeout)
	n, err := r.body.Read(p)
	r.stall.Stop() // a caller may take its time between reads
	r.left -= int64(n)
	switch {
	case err == nil:
		return n, nil
	case err == io.EOF && r.left == 0:
		return n, io.EOF
	case err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF):
		return n, &Error{Op: "get", Object: r.store.objectURL(r.key), Kind: ErrTruncated,
			Hint: "run again; if it stays, the object is damaged",
			Err:  fmt.Errorf("%d bytes are missing", r.left)}
	case errors.Is(context.Cause(r.reading), errStalled):
		err = errStalled
	}
	return n, r.store.error(r.parent, "get", r.key, err)
}

func (r *objectReader) Close() error {
	r.stall.Stop()
	r.cancel(nil)
	return r.body.Close()
}

func (s *s3Store) Head(ctx context.Context, key, version string) (Info, error) {
	in := &s3.HeadObjectInput{Bucket: &s.bucket, Key: s.key(key), ChecksumMode: types.ChecksumModeEnabled}
	if version != "" {
		in.VersionId = &version
	}
	out, err := s.client.HeadObject(ctx, in)
	if err != nil {
		return Info{}, s.error(ctx, "head", key, err)
	}
	info := Info{
		Key: key, Version: aws.ToString(out.VersionId), Size: aws.ToInt64(out.ContentLength),
		Modified: aws.ToTime(out.LastModified), Checksum: aws.ToString(out.ChecksumSHA256),
		RetainMode: string(out.ObjectLockMode), RetainUntil: aws.ToTime(out.ObjectLockRetainUntilDate),
		LegalHold: out.ObjectLockLegalHoldStatus == types.ObjectLockLegalHoldStatusOn, StorageClass: string(out.StorageClass),
	}
	if info.RetainMode == "" {
		// Not every server tells the lock of a version that is not the current one.
		retention, err := s.client.GetObjectRetention(ctx, &s3.GetObjectRetentionInput{Bucket: &s.bucket, Key: s.key(key), VersionId: in.VersionId})
		var api smithy.APIError
		switch {
		case err == nil && retention.Retention != nil:
			info.RetainMode, info.RetainUntil = string(retention.Retention.Mode), aws.ToTime(retention.Retention.RetainUntilDate)
		case err != nil && !errors.As(err, &api):
			return info, s.error(ctx, "head", key, err)
		}
		// Whatever else it says means that no lock is known.
		if !info.LegalHold {
			info.LegalHold = s.onHold(ctx, key, in.VersionId)
		}
	}
	return info, nil
}

// onHold asks for the legal hold itself, for Head where that does not tell.
func (s *s3Store) onHold(ctx context.Context, key string, version *string) bool {
	hold, err := s.client.GetObjectLegalHold(ctx, &s3.GetObjectLegalHoldInput{Bucket: &s.bucket, Key: s.key(key), VersionId: version})
	return err == nil && hold.LegalHold != nil && hold.LegalHold.Status == types.ObjectLockLegalHoldStatusOn
}

func (s *s3Store) List(ctx context.Context, prefix string) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		pages := s3.NewListObjectsV2Paginator(s.client, &s3.ListObjectsV2Input{
			Bucket: &s.bucket, Prefix: s.key(prefix),
		})
		for pages.HasMorePages() {
			page, err := pages.NextPage(ctx)
			if err != nil {
				yield(Info{}, s.error(ctx, "list", prefix, err))
				return
			}
			for _, o := range page.Contents {
				if !yield(Info{
					Key: strings.TrimPrefix(aws.ToString(o.Key), s.prefix), Size: aws.ToInt64(o.Size),
					Modified: aws.ToTime(o.LastModified),
				}, nil) {
					return
				}
			}
		}
	}
}

func (s *s3Store) Extend(ctx context.Context, key, version string, until time.Time) error {
	_, err := s.client.PutObjectRetention(ctx, s.retention(key, version, until))
	if err != nil {
		return s.error(ctx, "extend", key, err)
	}
	return nil
}

func (s *s3Store) retention(key, version string, until time.Time) *s3.PutObjectRetentionInput {
	in := &s3.PutObjectRetentionInput{
		Bucket: &s.bucket, Key: s.key(key), ChecksumAlgorithm: types.ChecksumAlgorithmSha256,
		Retention: &types.ObjectLockRetention{
			Mode: types.ObjectLockRetentionModeCompliance, RetainUntilDate: aws.Time(until.UTC()),
		},
	}
	if version != "" {
		in.VersionId = &version
	}
	return in
}

func (s *s3Store) SetLegalHold(ctx context.Context, key, version string, on bool) error {
	in := &s3.PutObjectLegalHoldInput{
		Bucket: &s.bucket, Key: s.key(key), ChecksumAlgorithm: types.ChecksumAlgorithmSha256,
		LegalHold: &types.ObjectLockLegalHold{Status: types.ObjectLockLegalHoldStatusOff},
	}
	if on {
		in.LegalHold.Status = types.ObjectLockLegalHoldStatusOn
	}
	if version != "" {
		in.VersionId = &version
	}
	if _, err := s.client.PutObjectLegalHold(ctx, in); err != nil {
		return s.error(ctx, "hold", key, err)
	}
	return nil
}

func (s *s3Store) Sweep(ctx context.Context, key string) (int, error) {
	swept := 0
	pages := s3.NewListMultipartUploadsPaginator(s.client, &s3.ListMultipartUploadsInput{
		Bucket: &s.bucket, Prefix: s.key(key),
	})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return swept, s.error(ctx, "sweep", key, err)
		}
		for _, u := range page.Uploads {
			if aws.ToString(u.Key) != *s.key(key) {
				continue
			}
			_, err := s.client.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{
				Bucket: &s.bucket, Key: u.Key, UploadId: u.UploadId,
			})
			if err != nil {
				return swept, s.error(ctx, "sweep", key, err)
			}
			swept++
		}
	}
	return swept, nil
}

func (s *s3Store) Delete(ctx context.Context, key string) (int, error) {
	if _, err := s.Sweep(ctx, key); err != nil {
		return 0, err
	}
	deleted := 0
	var failures error
	remove := func(version *string) error {
		_, err := s.client.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &s.bucket, Key: s.key(key), VersionId: version})
		if err != nil {
			return s.deleteError(ctx, key, aws.ToString(version), err)
		}
		return nil
	}
	pages := s3.NewListObjectVersionsPaginator(s.client, &s3.ListObjectVersionsInput{Bucket: &s.bucket, Prefix: s.key(key)})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return deleted, s.error(ctx, "delete", key, err)
		}
		for _, v := range page.Versions {
			if aws.ToString(v.Key) != *s.key(key) { // a longer one
				continue
			}
			if err := remove(v.VersionId); err != nil {
				failures = errors.Join(failures, err)
				continue
			}
			deleted++
		}
		for _, m := range page.DeleteMarkers {
			if aws.ToString(m.Key) == *s.key(key) {
				failures = errors.Join(failures, remove(m.VersionId))
			}
		}
		if ctx.Err() != nil {
			return deleted, s.error(ctx, "delete", key, ctx.Err())
		}
	}
	return deleted, failures
}

// deleteError tells a version that is locked from one that these credentials may
// not delete: to both a store says that access is denied.
func (s *s3Store) deleteError(ctx context.Context, key, version string, err error) error {
	mapped := s.error(ctx, "delete", key, err)
	if !errors.Is(mapped, ErrAccessDenied) && !errors.Is(mapped, ErrRefused) {
		return mapped
	}
	locked := &Error{Op: "delete", Object: s.objectURL(key), Kind: ErrLocked, Err: shorten(err)}
	if info, err := s.Head(ctx, key, version); err == nil && info.RetainUntil.After(time.Now()) {
		locked.Hint = "version " + version + " cannot be deleted before " + info.RetainUntil.UTC().Format(time.RFC3339)
		return locked
	}
	if s.onHold(ctx, key, &version) {
		locked.Hint = "version " + version + " is under a legal hold of the store"
		return locked
	}
	return mapped
}
