package backup_test

import (
	"net/url"
	"os"
	"os/user"
	"strconv"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"pgcustody/cmd/devstack/stack"
	"pgcustody/jobs/keys"
	"pgcustody/jobs/seal"
)

// serverAttributes runs a program as the account that the cluster's server has.
func serverAttributes(t *testing.T) *syscall.SysProcAttr {
	t.Helper()
	attributes := &syscall.SysProcAttr{Setsid: true}
	if os.Geteuid() != 0 {
		return attributes
	}
	account, err := user.Lookup("postgres")
	require.NoError(t, err)
	uid, err := strconv.ParseUint(account.Uid, 10, 32)
	require.NoError(t, err)
	gid, err := strconv.ParseUint(account.Gid, 10, 32)
	require.NoError(t, err)
	attributes.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	return attributes
}

// asServer gives a folder to that account.
func asServer(t *testing.T, dir string) {
	t.Helper()
	if account := serverAttributes(t).Credential; account != nil {
		require.NoError(t, os.Chown(dir, int(account.Uid), int(account.Gid)))
	}
}

// replicationURL is for the superuser over TLS, without a password.
func replicationURL(s *stack.Stack) string {
	u, _ := url.Parse(s.URL(stack.Superuser, "postgres"))
	u.User = url.User(stack.Superuser)
	return u.String()
}

func escape(text string) string { return url.QueryEscape(text) }

func itoa(n int) string { return strconv.Itoa(n) }

func keysRef(version int) keys.Ref { return keys.Ref{Tenant: tenant, Version: version} }

// unwrap opens a wrapped data key without the database.
func unwrap(kek []byte, p person, wrapped []byte) error {
	_, err := seal.Open(kek, seal.Place{Tenant: tenant, Identity: p.identity, Table: "wrapped_keys", Column: "wrapped", Row: "1"}, wrapped)
	return err
}
