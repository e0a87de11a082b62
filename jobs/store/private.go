package store

import (
	"context"
	"crypto/subtle"
	"errors"
	"io"
	"net"
	"net/url"
	"strings"
)

// PrivateStackID is the object whose content names the private stack that a
// bucket belongs to.
const PrivateStackID = "private-stack-id"

// IsPrivateStack tells whether s is the store of the private stack with this
// id: its endpoint is on this machine and the object PrivateStackID holds the
// id. Nothing is asked of a store elsewhere.
func IsPrivateStack(ctx context.Context, s Store, id string) (bool, error) {
	local, ok := s.(interface{ loopback(context.Context) bool })
	if id == "" || !ok || !local.loopback(ctx) {
		return false, nil
	}
	object, err := s.Get(ctx, PrivateStackID, "")
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer object.Close()
	content, err := io.ReadAll(io.LimitReader(object, 1024))
	if err != nil {
		return false, err
	}
	got := strings.TrimSpace(string(content))
	return subtle.ConstantTimeCompare([]byte(got), []byte(id)) == 1, nil
}

// loopback tells whether every address of the endpoint is this machine's.
func (s *s3Store) loopback(ctx context.Context) bool {
	endpoint := s.client.Options().BaseEndpoint
	if endpoint == nil {
		return false
	}
	u, err := url.Parse(*endpoint)
	if err != nil || u.Hostname() == "" {
		return false
	}
	addrs, err := net.DefaultResolver.LookupIPAddr(ctx, u.Hostname())
	if err != nil || len(addrs) == 0 {
		return false
	}
	for _, a := range addrs {
		if !a.IP.IsLoopback() {
			return false
		}
	}
	return true
}
