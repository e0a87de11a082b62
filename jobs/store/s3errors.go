package store

import (
	"context"
	"errors"
	"net/http"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// error turns what the SDK returns into an *Error. A store answers a HEAD
// without a body, so a missing bucket and a missing object look the same there
// and it has to be asked again.
func (s *s3Store) error(ctx context.Context, op, key string, err error) error {
	var known *Error
	if errors.As(err, &known) {
		return err
	}
	e := &Error{Op: op, Object: s.objectURL(key), Err: shorten(err)}
	if ctx.Err() != nil {
		e.Kind, e.Err = ctx.Err(), nil
		return e
	}

	status := 0
	var response *smithyhttp.ResponseError
	if errors.As(err, &response) {
		status = response.HTTPStatusCode()
	}
	code := ""
	var api smithy.APIError
	if errors.As(err, &api) {
		code = api.ErrorCode()
	}
	switch {
	case code == "NoSuchBucket":
		e.Kind, e.Hint = ErrBucketMissing, "create bucket "+s.bucket+" with Object Lock, or correct PGCUSTODY_STORE"
		e.Object = s.URL()
	case code == "NoSuchKey", code == "NoSuchVersion", code == "NoSuchUpload":
		e.Kind = ErrNotFound
	case op == "head" && status == http.StatusNotFound:
		if err := s.listOne(ctx); err != nil {
			return err
		}
		e.Kind = ErrNotFound
	case status == http.StatusMethodNotAllowed && (op == "head" || op == "get"):
		// So answers a delete marker that is asked for by its version.
		e.Kind = ErrNotFound
	case code == "PreconditionFailed", status == http.StatusPreconditionFailed:
		e.Kind = ErrExists
	case code == "InvalidAccessKeyId", code == "SignatureDoesNotMatch", code == "AuthorizationHeaderMalformed",
		code == "XAdminUserNotFound": // versitygw's word for an unknown key
		e.Kind, e.Hint = ErrAccessDenied, "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION"
	case code == "ExpiredToken", code == "InvalidToken":
		e.Kind, e.Hint = ErrAccessDenied, "renew the AWS credentials"
	case code == "RequestTimeTooSkewed":
		e.Kind, e.Hint = ErrAccessDenied, "set this machine's clock right"
	case status == http.StatusForbidden, status == http.StatusUnauthorized:
		e.Kind, e.Hint = ErrAccessDenied, "give these credentials the right to it, or check whether a lock forbids it"
	case status == http.StatusMovedPermanently, status == http.StatusTemporaryRedirect:
		e.Kind, e.Hint = ErrRefused, "set AWS_REGION to the bucket's region"
	case status == 0, status >= http.StatusInternalServerError, status == http.StatusTooManyRequests,
		status == http.StatusRequestTimeout:
		e.Kind, e.Hint = ErrUnreachable, "check AWS_ENDPOINT_URL_S3, the network and the store; run again when it answers"
	default:
		e.Kind = ErrRefused
	}
	return e
}

// putError is error for writes, where a refusal may mean that the bucket has no
// Object Lock, and a conflict that another writer won.
func (s *s3Store) putError(ctx context.Context, key string, opts PutOptions, err error) error {
	mapped := s.error(ctx, "put", key, err)
	if ctx.Err() != nil {
		return mapped
	}
	var response *smithyhttp.ResponseError
	if !errors.As(err, &response) {
		return mapped
	}
	switch response.HTTPStatusCode() {
	case http.StatusConflict:
		if opts.IfNoneMatch {
			if _, headErr := s.Head(ctx, key, ""); headErr == nil {
				return &Error{Op: "put", Object: s.objectURL(key), Kind: ErrExists}
			}
			return &Error{Op: "put", Object: s.objectURL(key), Kind: ErrUnreachable,
				Hint: "another writer was at the same object: run again", Err: shorten(err)}
		}
	case http.StatusBadRequest:
		if !opts.RetainUntil.IsZero() {
			findings, err := s.CheckSettings(ctx)
			if err == nil {
				err = Accept(findings, nil)
			}
			if err != nil {
				return err
			}
		}
	}
	return mapped
}

// listOne asks for the first object, which tells whether the bucket is there
// and these credentials are known.
func (s *s3Store) listOne(ctx context.Context) error {
	_, err := s.client.ListObjectsV2(ctx, &s3.ListObjectsV2Input{Bucket: &s.bucket, Prefix: &s.prefix, MaxKeys: aws.Int32(1)})
	if err != nil {
		return s.error(ctx, "list", "", err)
	}
	return nil
}

// shorten drops the SDK's wrapping, which repeats operation, request ids and
// host, down to what the store or the network said.
func shorten(err error) error {
	var api smithy.APIError
	if errors.As(err, &api) {
		return api
	}
	var send *smithyhttp.RequestSendError
	if errors.As(err, &send) {
		return send.Err
	}
	return err
}
