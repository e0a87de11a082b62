// Package keys gets the key-encryption keys (KEKs) of tenants, which are kept
// outside Postgres, from where they are kept.
//
// A KEK is 64 random bytes and belongs to one tenant. It wraps the data keys of
// the tenant's identities, and has versions: rotation makes the next one, wraps
// the data keys anew and destroys the old one. What the database keeps of a
// version is its [Ref].
//
// # Who keeps what where
//
//	file:/dir    /dir/TENANT.VERSION.key holds the KEK, as 128 hexadecimal digits;
//	             TENANT.VERSION.destroyed, empty, stays when it has been destroyed.
//	             The directory has mode 0700, the files have 0600. For development.
//	env:         PGCUSTODY_KEK_TENANT_VERSION holds the KEK, in hexadecimal or
//	             base64; the tenant in upper case, with _ for -. Nothing is written.
//	             For development.
//	awskms:KEY   KMS keeps only KEY, its own key, which never leaves it. The KEK
//	             is stored as KMS ciphertext in Ref.Stored, by the caller, and is
//	             decrypted into memory for five minutes at a time.
//
// Another provider, for Vault say, is a file with the three methods of [Provider]
// and a case in [Parse].
//
// # How an application unlocks
//
// The key goes to custody.unlock as a bound parameter, in the transaction whose
// context has been set, and is good until its end:
//
//	tx, err := pool.Begin(ctx)
//	…
//	_, err = tx.Exec(ctx, "select custody.set_context($1, $2, $3)", tenant, actor, purpose)
//	…
//	_, err = tx.Exec(ctx, "select custody.unlock($1)", key)
//
// A [Key] is such a parameter as it is. pgx binds its bytes in the extended
// protocol (all modes but the last two of pgx.QueryExecMode), and its tracers and
// loggers see "[redacted key]". Behind a pooler that wants
// pgx.QueryExecModeExec, pass key.Bytes(). Never use
// pgx.QueryExecModeSimpleProtocol for it, nor write the key into the statement:
// both make it a literal, which servers log. The example of the package is the
// whole of it.
package keys

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// Provider keeps KEKs. Its methods may be called at once from many goroutines,
// and their errors are an [*Error], or hold one.
type Provider interface {
	// NewKEK makes a version of a tenant's KEK and has stored it for good when it
	// returns. Called again for the same version, a provider that keeps the key
	// itself returns the one that is there, so that a caller who was killed may
	// begin again, and of two callers at once both get the same. One that keeps
	// nothing makes another: the Ref that the caller commits is the one that
	// counts, and its key has to be got by KEK.
	NewKEK(ctx context.Context, tenant string, version int) (Ref, Key, error)

	// KEK gets the key that NewKEK returned with this Ref. The caller owns it and
	// should Wipe it.
	KEK(ctx context.Context, ref Ref) (Key, error)

	// Destroy makes the provider forget the key for good; KEK returns
	// ErrDestroyed from then on. It may be called again. Final tells whether the
	// key is beyond reach by that: if not, whoever still has a copy of ref.Stored,
	// in a backup of the database say, and the right to use the provider, can get
	// it as before.
	Destroy(ctx context.Context, ref Ref) (final bool, err error)

	// String is the spec that Parse made it from. Nothing in it is secret.
	fmt.Stringer
}

// Ref names one version of a tenant's KEK. It is what the database keeps, and
// holds nothing secret.
type Ref struct {
	Tenant  string `json:"tenant"`  // slug
	Version int    `json:"version"` // from 1 on
	// Stored is what the provider needs to get the key again. It is empty where
	// the provider finds the key by tenant and version.
	Stored []byte `json:"stored,omitempty"`
}

// String names the key in words.
func (r Ref) String() string { return fmt.Sprintf("KEK %d of tenant %s", r.Version, r.Tenant) }

var slug = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,62}$`)

// check refuses what could not be the name of a key, or would name a file
// elsewhere.
func (r Ref) check(op string) error {
	switch {
	case !slug.MatchString(r.Tenant):
		return &Error{Op: op, Object: fmt.Sprintf("KEK %d of tenant %q", r.Version, r.Tenant), Kind: ErrInvalid,
			Hint: "a tenant is 1 to 63 of a-z, 0-9, _ and -, the first a letter or digit"}
	case r.Version < 1 || r.Version > math.MaxInt32:
		return &Error{Op: op, Object: r.String(), Kind: ErrInvalid, Hint: "versions count from 1"}
	}
	return nil
}

const specHint = "write it as file:/directory, env: or awskms:KEY-ID-OR-ALIAS"

// Parse makes a provider from a spec:
//
//	file:/directory       an absolute path
//	env:
//	awskms:KEY[,KEY…]     ids, ARNs or aliases of symmetric keys of AWS KMS. The
//	                      first encrypts new KEKs; those of all of them open.
//
// Development lets weak and published keys pass. For AWS KMS, region,
// credentials and endpoint come from AWS's own settings (AWS_REGION, AWS_PROFILE,
// AWS_ENDPOINT_URL_KMS, AWS_CA_BUNDLE and so on). Nothing is asked of the disk or
// the network yet.
func Parse(ctx context.Context, spec string, development bool) (Provider, error) {
	bad := func(hint string) error {
		// A key that was set by mistake in place of the spec must not be shown.
		scheme, _, ok := strings.Cut(spec, ":")
		if !ok || !slug.MatchString(scheme) || len(scheme) > 16 {
			scheme = "…"
		}
		return &Error{Op: "open", Object: "key provider " + scheme + ":", Kind: ErrInvalid, Hint: cmp.Or(hint, specHint)}
	}
	scheme, rest, _ := strings.Cut(spec, ":")
	switch scheme {
	case "file":
		if !filepath.IsAbs(rest) {
			return nil, bad("give the directory as an absolute path: file:/directory")
		}
		return &fileProvider{dir: filepath.Clean(rest), development: development}, nil
	case "env":
		if spec != "env:" {
			return nil, bad("nothing stands behind env:, the variables have fixed names, PGCUSTODY_KEK_TENANT_VERSION")
		}
		return &envProvider{lookup: os.LookupEnv, development: development}, nil
	case "awskms":
		ids := strings.Split(rest, ",")
		for _, id := range ids {
			if id == "" || strings.ContainsFunc(id, func(r rune) bool { return r <= ' ' || r > '~' }) {
				return nil, bad("name the key: awskms:KEY-ID-OR-ALIAS, several with commas and without spaces")
			}
		}
		return openKMS(ctx, ids, development)
	}
	return nil, bad("")
}
