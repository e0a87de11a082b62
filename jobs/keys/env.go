package keys

import (
	"context"
	"fmt"
	"strings"
)

// envProvider finds KEKs in the environment and never writes one.
type envProvider struct {
	lookup      func(string) (string, bool)
	development bool
}

func (p *envProvider) String() string { return "env:" }

// variable names the variable of a key. Tenants with an underscore have none: it
// would be that of the tenant with a dash in its place.
func (p *envProvider) variable(op string, ref Ref) (string, error) {
	if err := ref.check(op); err != nil {
		return "", err
	}
	if strings.Contains(ref.Tenant, "_") {
		return "", &Error{Op: op, Object: ref.String() + " in the environment", Kind: ErrInvalid,
			Hint: "a tenant with an underscore would share the variable of one with a dash: keep its keys in files, file:/directory"}
	}
	name := strings.ToUpper(strings.ReplaceAll(ref.Tenant, "-", "_"))
	return fmt.Sprintf("PGCUSTODY_KEK_%s_%d", name, ref.Version), nil
}

// NewKEK takes over the key that the operator has set.
func (p *envProvider) NewKEK(_ context.Context, tenant string, version int) (Ref, Key, error) {
	ref := Ref{Tenant: tenant, Version: version}
	key, err := p.get("make", ref)
	return ref, key, err
}

func (p *envProvider) KEK(_ context.Context, ref Ref) (Key, error) { return p.get("get", ref) }

func (p *envProvider) get(op string, ref Ref) (Key, error) {
	variable, err := p.variable(op, ref)
	if err != nil {
		return Key{}, err
	}
	object := ref.String() + " in " + variable
	text, ok := p.lookup(variable)
	if !ok || text == "" {
		hint := "set " + variable + " to the key"
		if op == "make" {
			hint = "keys cannot be made in the environment: set " + variable + " to the output of `openssl rand -hex 64`, start again, and keep a copy"
		}
		return Key{}, &Error{Op: op, Object: object, Kind: ErrUnknown, Hint: hint}
	}
	key, err := decode(text, p.development)
	if err != nil {
		return Key{}, &Error{Op: op, Object: object, Kind: ErrWeak, Err: err,
			Hint: "set " + variable + " to 64 random bytes in hexadecimal or base64, such as the output of `openssl rand -hex 64`"}
	}
	return key, nil
}

// Destroy can only see whether the operator has done it.
func (p *envProvider) Destroy(_ context.Context, ref Ref) (bool, error) {
	variable, err := p.variable("destroy", ref)
	if err != nil {
		return false, err
	}
	if text, ok := p.lookup(variable); ok && text != "" {
		return false, &Error{Op: "destroy", Object: ref.String() + " in " + variable, Kind: ErrRefused,
			Hint: "unset " + variable + " wherever it is set, destroy the copies, and start again"}
	}
	return true, nil
}
