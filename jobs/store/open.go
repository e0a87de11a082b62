package store

import (
	"context"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"
)

// OpenURL is Open without options.
func OpenURL(ctx context.Context, rawURL string) (Store, error) {
	return Open(ctx, rawURL, Options{})
}

// Open opens the store at s3://bucket[/prefix], gs://bucket[/prefix] or
// file:///directory. Region, credentials, endpoint and CA come from the settings
// that AWS's and Google's own tools read (AWS_REGION, AWS_PROFILE,
// AWS_ENDPOINT_URL_S3, AWS_CA_BUNDLE, GOOGLE_APPLICATION_CREDENTIALS and so on).
// Nothing is asked of the network yet, save what the credentials need.
func Open(ctx context.Context, rawURL string, opts Options) (Store, error) {
	bad := func(hint string, err error) error {
		return &Error{Op: "open", Object: redact(rawURL), Kind: ErrBadURL, Hint: hint, Err: err}
	}
	const forms = "s3://bucket[/prefix], gs://bucket[/prefix] or file:///directory"
	if rawURL == "" {
		return nil, bad("set PGCUSTODY_STORE or --store to "+forms, nil)
	}
	u, err := url.Parse(rawURL)
	if err != nil {
		return nil, bad("write it as "+forms, nil)
	}
	bucket := u.Scheme == "s3" || u.Scheme == "gs"
	switch {
	case !bucket && u.Scheme != "file":
		return nil, bad("write it as "+forms, fmt.Errorf("unknown scheme %q", u.Scheme))
	case u.User != nil || u.Port() != "":
		return nil, bad("give credentials and endpoint by the variables of AWS or Google, as AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL_S3", nil)
	case u.RawQuery != "" || u.Fragment != "":
		return nil, bad("settings go into the environment, not behind ? or #", nil)
	case bucket && u.Host == "":
		return nil, bad("name the bucket: "+u.Scheme+"://bucket[/prefix]", nil)
	case !bucket && (u.Host != "" || u.Path == "" || u.Path == "/"):
		return nil, bad("name the directory by its whole path, behind three slashes: file:///directory", nil)
	}
	if err := opts.Check(); err != nil {
		return nil, bad("mend the setting", err)
	}
	if u.Scheme == "file" {
		return &dirStore{filepath.Clean(u.Path)}, nil
	}
	if u.Scheme == "gs" {
		return openGCS(ctx, u.Host, strings.Trim(u.Path, "/"), opts)
	}
	return openS3(ctx, u.Host, strings.Trim(u.Path, "/"), opts)
}

// redact drops what could be a secret from a URL that is shown in an error.
func redact(rawURL string) string {
	scheme, rest, ok := strings.Cut(rawURL, "://")
	if !ok {
		if rawURL == "" {
			return "(no URL)"
		}
		return "(not a URL)"
	}
	if i := strings.LastIndexByte(rest, '@'); i >= 0 {
		rest = "…@" + rest[i+1:]
	}
	rest, _, _ = strings.Cut(rest, "?")
	return scheme + "://" + rest
}
