package keys

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/logging"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// How long KMS is asked, and its answer kept. Five attempts at the longest take
// about kmsWithin.
const (
	kmsKeep       = 5 * time.Minute
	kmsWithin     = 20 * time.Second
	kmsAttempt    = 3 * time.Second
	kmsAttempts   = 5 // or AWS_MAX_ATTEMPTS
	kmsMaxBackoff = 2 * time.Second
)

// kmsProvider has KEKs made and encrypted by AWS KMS, as an envelope. Tenant and
// version are bound to the ciphertext as its encryption context, which KMS writes
// to CloudTrail in plaintext with each use:
//
//	{"pgcustody": "TENANT", "version": "VERSION"}
//
// It needs kms:GenerateDataKey and kms:Decrypt; a runner that makes no keys, and
// an application, need kms:Decrypt alone.
//
// Decrypt names the configured keys, because a ciphertext alone would choose its
// key itself: who can write to the database could put one there that was made
// under a KMS key of his own.
type kmsProvider struct {
	client      *kms.Client
	credentials aws.CredentialsProvider
	ids         []string
	within      time.Duration
	development bool
	cache       cache
}

func openKMS(ctx context.Context, ids []string, development bool) (*kmsProvider, error) {
	// AWS_CA_BUNDLE needs the SDK's own client.
	client := awshttp.NewBuildableClient().WithTimeout(kmsAttempt)
	cfg, err := config.LoadDefaultConfig(ctx, config.WithHTTPClient(client), config.WithAppID("pgcustody"),
		config.WithLogger(logging.Nop{})) // what matters comes back as an error
	if err != nil {
		return nil, &Error{Op: "open", Object: "key provider awskms:", Kind: ErrInvalid, Hint: "mend the AWS settings", Err: err}
	}
	return newKMS(cfg, ids, development)
}

func newKMS(cfg aws.Config, ids []string, development bool, options ...func(*kms.Options)) (*kmsProvider, error) {
	p := &kmsProvider{ids: ids, within: kmsWithin, development: development, cache: cache{keep: kmsKeep}}
	standard := func(o *kms.Options) {
		if o.BaseEndpoint != nil {
			o.Region = cmp.Or(o.Region, "us-east-1")
		}
		o.Retryer = retry.NewStandard(func(r *retry.StandardOptions) {
			r.MaxAttempts = cmp.Or(o.RetryMaxAttempts, kmsAttempts)
			r.MaxBackoff = kmsMaxBackoff
		})
	}
	p.client = kms.NewFromConfig(cfg, append([]func(*kms.Options){standard}, options...)...)
	p.credentials = cfg.Credentials
	if p.client.Options().Region == "" {
		return nil, &Error{Op: "open", Object: "key provider " + p.String(), Kind: ErrInvalid, Hint: "set AWS_REGION"}
	}
	return p, nil
}

func (p *kmsProvider) String() string { return "awskms:" + strings.Join(p.ids, ",") }

func encryptionContext(ref Ref) map[string]string {
	return map[string]string{"pgcustody": ref.Tenant, "version": strconv.Itoa(ref.Version)}
}

// cacheID names a ciphertext. Two Refs of one version, of which one was never
// committed, have different keys.
func cacheID(ref Ref) string {
	return fmt.Sprintf("%s/%d/%x", ref.Tenant, ref.Version, sha256.Sum256(ref.Stored))
}

// NewKEK makes another key at every call, and nothing of it stays in KMS.
func (p *kmsProvider) NewKEK(ctx context.Context, tenant string, version int) (Ref, Key, error) {
	const op = "make"
	ref := Ref{Tenant: tenant, Version: version}
	if err := ref.check(op); err != nil {
		return ref, Key{}, err
	}
	var out *kms.GenerateDataKeyOutput
	err := p.call(ctx, func(ctx context.Context, option func(*kms.Options)) (err error) {
		out, err = p.client.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{
			KeyId: &p.ids[0], NumberOfBytes: aws.Int32(Size), EncryptionContext: encryptionContext(ref),
		}, option)
		return err
	})
	if err != nil {
		return ref, Key{}, p.error(ctx, op, ref, err)
	}
	key, err := p.take(op, ref, out.Plaintext)
	if err != nil {
		return ref, Key{}, err
	}
	if len(out.CiphertextBlob) == 0 {
		key.Wipe()
		return ref, Key{}, p.kind(op, ref, ErrRefused, errors.New("KMS returned no ciphertext"), "check AWS_ENDPOINT_URL_KMS")
	}
	ref.Stored = out.CiphertextBlob
	p.cache.put(cacheID(ref), key.clone())
	return ref, key, nil
}

func (p *kmsProvider) KEK(ctx context.Context, ref Ref) (Key, error) {
	const op = "get"
	if err := ref.check(op); err != nil {
		return Key{}, err
	}
	if len(ref.Stored) == 0 {
		return Key{}, p.kind(op, ref, ErrUnknown, errors.New("its ciphertext is missing"), "it was made by another provider, or never")
	}
	id := cacheID(ref)
	if p.cache.isGone(id) {
		return Key{}, p.kind(op, ref, ErrDestroyed, nil, "")
	}
	key, err := p.cache.get(ctx, id, func(ctx context.Context) (Key, error) { return p.decrypt(ctx, op, ref) })
	if err != nil {
		var known *Error
		if !errors.As(err, &known) { // this caller gave up
			err = p.kind(op, ref, ErrUnavailable, err, "")
		}
		return Key{}, err
	}
	return key, nil
}

// decrypt tries the configured keys one after the other.
func (p *kmsProvider) decrypt(ctx context.Context, op string, ref Ref) (Key, error) {
	var out *kms.DecryptOutput
	err := p.call(ctx, func(ctx context.Context, option func(*kms.Options)) (err error) {
		for _, id := range p.ids {
			out, err = p.client.Decrypt(ctx, &kms.DecryptInput{
				KeyId: &id, CiphertextBlob: ref.Stored, EncryptionContext: encryptionContext(ref),
			}, option)
			if code(err) != "IncorrectKeyException" {
				break
			}
		}
		return err
	})
	if err != nil {
		return Key{}, p.error(ctx, op, ref, err)
	}
	return p.take(op, ref, out.Plaintext)
}

// take makes a key of what KMS returned and wipes that.
func (p *kmsProvider) take(op string, ref Ref, plaintext []byte) (Key, error) {
	defer clear(plaintext)
	key, err := NewKey(plaintext, p.development)
	if err != nil {
		return Key{}, p.kind(op, ref, ErrWeak, err, "make a new version; this one was not made by pgcustody, or not by KMS")
	}
	return key, nil
}

// Destroy forgets the key in this process. KMS has nothing of its own to destroy:
// the caller deletes ref.Stored, and copies of it open for as long as the KMS key
// lives. To put an end to those of old backups too, let each generation of KEKs
// have a KMS key of its own, and schedule the deletion of the old one.
func (p *kmsProvider) Destroy(_ context.Context, ref Ref) (bool, error) {
	if err := ref.check("destroy"); err != nil {
		return false, err
	}
	p.cache.forget(cacheID(ref))
	return false, nil
}

// call runs a request with its retries within the set time.
func (p *kmsProvider) call(ctx context.Context, request func(context.Context, func(*kms.Options)) error) error {
	bounded, cancel := context.WithTimeout(ctx, p.within)
	defer cancel()
	if _, err := p.credentials.Retrieve(bounded); err != nil {
		return &credentialsError{err}
	}
	var seen witness
	err := request(bounded, func(o *kms.Options) {
		if retryer, ok := o.Retryer.(aws.RetryerV2); ok {
			seen.RetryerV2 = retryer
			o.Retryer = &seen
		}
	})
	if err != nil && ctx.Err() == nil && bounded.Err() != nil && seen.last != nil {
		return seen.last // why it took so long, rather than that it did
	}
	return err
}

// witness remembers why the last attempt failed.
type witness struct {
	aws.RetryerV2
	last error
}

func (w *witness) IsErrorRetryable(err error) bool {
	w.last = err
	return w.RetryerV2.IsErrorRetryable(err)
}

type credentialsError struct{ err error }

func (e *credentialsError) Error() string { return e.err.Error() }
func (e *credentialsError) Unwrap() error { return e.err }

func code(err error) string {
	var api smithy.APIError
	if errors.As(err, &api) {
		return api.ErrorCode()
	}
	return ""
}

func (p *kmsProvider) kind(op string, ref Ref, kind, err error, hint string) error {
	return &Error{Op: op, Object: ref.String() + " by " + p.String(), Kind: kind, Err: err, Hint: hint}
}

// error turns what the SDK returns into an *Error: KMS is away, or it said no.
func (p *kmsProvider) error(ctx context.Context, op string, ref Ref, err error) error {
	refused := func(hint string) error { return p.kind(op, ref, ErrRefused, shorten(err), hint) }
	if ctx.Err() != nil {
		return p.kind(op, ref, ErrUnavailable, ctx.Err(), "")
	}
	var credentials *credentialsError
	if errors.As(err, &credentials) {
		return refused("no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give this machine a role")
	}
	status := 0
	var response *smithyhttp.ResponseError
	if errors.As(err, &response) {
		status = response.HTTPStatusCode()
	}
	var unread *smithy.DeserializationError
	code := code(err)
	_, throttled := retry.DefaultThrottleErrorCodes[code]
	switch code {
	case "NotFoundException":
		return p.kind(op, ref, ErrUnknown, shorten(err), "KMS does not know its own key: correct the id or alias, AWS_REGION, or the account")
	case "AccessDeniedException":
		return refused("allow kms:GenerateDataKey and kms:Decrypt on the KMS key to these credentials")
	case "DisabledException", "KMSInvalidStateException":
		return refused("enable the KMS key again, or cancel its deletion: until then no personal data can be read")
	case "InvalidCiphertextException":
		return refused("its ciphertext was changed, or is that of another tenant or version: restore what the database keeps of it")
	case "IncorrectKeyException":
		return refused("it was encrypted under a KMS key that the spec does not name: append that one, awskms:NEW,OLD")
	case "UnrecognizedClientException", "InvalidClientTokenId", "InvalidSignatureException", "SignatureDoesNotMatch",
		"IncompleteSignature", "MissingAuthenticationToken", "MissingAuthenticationTokenException":
		return refused("check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION, and this machine's clock")
	case "ExpiredTokenException", "ExpiredToken":
		return refused("renew the AWS credentials")
	}
	if throttled || errors.As(err, &unread) || code == "KeyUnavailableException" || code == "DependencyTimeoutException" ||
		status == 0 || status >= http.StatusInternalServerError || status == http.StatusTooManyRequests || status == http.StatusRequestTimeout {
		return p.kind(op, ref, ErrUnavailable, shorten(err), "check the network, AWS_ENDPOINT_URL_KMS and the state of AWS KMS; run again when it answers")
	}
	return refused("check the id or alias of the KMS key: it must be symmetric, for encryption")
}

// shorten drops the SDK's wrapping, which repeats operation, request ids and
// host, and every answer that it could not read, which may hold a key.
func shorten(err error) error {
	var unread *smithy.DeserializationError
	var api smithy.APIError
	var send *smithyhttp.RequestSendError
	var credentials *credentialsError
	switch {
	case errors.As(err, &unread):
		return errors.New("its answer could not be read")
	case errors.As(err, &api):
		return api
	case errors.As(err, &send):
		return send.Err
	case errors.As(err, &credentials):
		return credentials.err
	}
	return err
}
