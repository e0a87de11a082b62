package stack

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"filippo.io/age"
)

const (
	stateFile = "state.json"
	lockFile  = "lock"
)

// state is what is remembered of a stack between two programs.
type state struct {
	PGBin       string            `json:"pg_bin"`  // folder of Postgres's programs
	PGHome      string            `json:"pg_home"` // cluster, log and socket; the server's account owns it
	PGPort      int               `json:"pg_port"`
	Passwords   map[string]string `json:"passwords"` // by login
	NoFsync     bool              `json:"no_fsync"`
	Initialised bool              `json:"initialised"` // the cluster is complete
	Postgres    process           `json:"postgres"`

	S3Port     int    `json:"s3_port"`
	RootKey    string `json:"s3_root_key"` // of the S3 server's root, who may bypass what can be bypassed
	RootSecret string `json:"s3_root_secret"`
	AccessKey  string `json:"access_key"` // of the user who owns the buckets
	SecretKey  string `json:"secret_key"`
	Bucket     string `json:"bucket"`
	WebhookKey string `json:"webhook_key"` // hex
	// ArchiveKey is the identity of age that opens the archive.
	ArchiveKey string  `json:"archive_key"`
	Gateway    process `json:"gateway"`
}

func newState(o Options) state {
	return state{
		Passwords:  map[string]string{},
		NoFsync:    o.NoFsync,
		AccessKey:  random(8),
		SecretKey:  random(20),
		Bucket:     "custody-archive",
		WebhookKey: random(32),
	}
}

// addPasswords draws passwords for logins that have none, which may be newer
// than the stack.
func (st *state) addPasswords() {
	names := []string{Superuser, MigratorLogin}
	for _, l := range Logins {
		names = append(names, l.Name)
	}
	for _, name := range names {
		st.Passwords[name] = cmp.Or(st.Passwords[name], random(16))
	}
}

// addArchiveKey makes the identity that opens the archive, where there is none.
func (st *state) addArchiveKey() {
	if st.ArchiveKey != "" {
		return
	}
	if identity, err := age.GenerateX25519Identity(); err == nil { // fails where the system has no randomness
		st.ArchiveKey = identity.String()
	}
}

// archiveRecipient is the public key of the archive's identity.
func (st *state) archiveRecipient() string {
	identity, err := age.ParseX25519Identity(st.ArchiveKey)
	if err != nil {
		return ""
	}
	return identity.Recipient().String()
}

// random returns n random bytes in hex.
func random(n int) string {
	b := make([]byte, n)
	rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

func open(dir string) (*Stack, error) {
	s := &Stack{Dir: dir}
	text, err := os.ReadFile(s.path(stateFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", dir, ErrNoStack)
	} else if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(text, &s.state); err != nil {
		return nil, fmt.Errorf("%s: %w", s.path(stateFile), err)
	}
	return s, nil
}

func (s *Stack) save() error {
	text, err := json.MarshalIndent(s.state, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(s.path(stateFile), append(text, '\n'), 0o600)
}

// writeFile replaces a file as a whole: whoever reads it sees the old or the new.
func writeFile(path string, text []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(text)
	if err := errors.Join(err, f.Chmod(mode), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// lock keeps other programs from starting or stopping the same stack.
func lock(ctx context.Context, dir string) (unlock func(), err error) {
	path := filepath.Join(dir, lockFile)
	for {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return nil, err
		}
		if err := retry(ctx, 5*time.Minute, func() error {
			return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		}); err != nil {
			f.Close()
			return nil, fmt.Errorf("another program starts or stops the stack: lock %s: %w", path, err)
		}
		ours, err := f.Stat()
		if err != nil {
			f.Close()
			return nil, err
		}
		if current, err := os.Stat(path); err == nil && os.SameFile(ours, current) {
			return func() { f.Close() }, nil
		}
		f.Close() // removed with its stack while we waited
	}
}
