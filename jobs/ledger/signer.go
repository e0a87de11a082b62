package ledger

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// Files of a signer. All are in one folder that is its user's alone, on a machine
// that is not the database's.
const (
	// keyFile holds the private key in the form of note.GenerateKey. After a rotation
	// the old one stands below the new until both have signed one checkpoint.
	keyFile = "key"
	// vkeysFile holds the public keys, those that signed before too, as lines that
	// [ParseVerifierKey] reads.
	vkeysFile = "vkeys"
	// stateFile holds what was signed last.
	stateFile = "state"
	// lockFile is locked by whoever signs.
	lockFile = "lock"
)

// maxSignerFile is far beyond any of them.
const maxSignerFile = 1 << 20

// Signer signs checkpoints of one log. It refuses what does not go on from the last
// that it signed, whatever the database and the bucket say.
type Signer struct {
	dir  string
	root *os.Root
	// private are the keys that sign, the newest first.
	private []note.Signer

	mu     sync.Mutex // for who asks while somebody anchors, and so reads the files anew
	origin string
	keys   []VerifierKey
}

// State is what a signer remembers between two checkpoints.
type State struct {
	// Number, Size and Root are of the checkpoint that was signed last. They are
	// written before it is anchored.
	Number int64     `json:"number"`
	Size   int64     `json:"size"`
	Root   tlog.Hash `json:"root"`
	// Finished is the number of the last checkpoint of which everything is done.
	Finished int64 `json:"finished"`
	// Adopted lets another cluster go on with the log, once.
	Adopted *Adoption `json:"adopted,omitempty"`
}

// Adoption is an operator's word that the database of another cluster, or one that
// was set back, goes on with the log after the checkpoint After.
type Adoption struct {
	SystemIdentifier string    `json:"system_identifier"`
	After            int64     `json:"after"`
	At               time.Time `json:"at"`
}

// InitSigner makes a key for a log in a folder, which it makes if it is missing, and
// what else a signer needs. Where a key was lost, its folder may be used again: what
// was signed last, and the old verifier keys, stay known.
func InitSigner(dir, origin string, now time.Time) (*Signer, error) {
	if err := CheckOrigin(origin); err != nil {
		return nil, err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, signerError("make", dir, err)
	}
	s := &Signer{dir: dir, origin: origin}
	if err := s.open(); err != nil {
		return nil, err
	}
	if err := s.init(now); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

func (s *Signer) init(now time.Time) error {
	unlock, err := s.lock(context.Background())
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := s.root.Lstat(keyFile); err == nil {
		return &Error{Op: "make", Object: s.path(keyFile), Kind: ErrExists, Hint: "pgcustody signer rotate replaces it"}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return signerError("make", s.path(keyFile), err)
	}
	if err := s.readKeys(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	now = now.UTC().Truncate(time.Second)
	for i, key := range s.keys {
		if key.Name() != s.origin {
			return &Error{Op: "make", Object: s.path(keyFile), Kind: ErrExists, Err: fmt.Errorf("the folder is that of %s", key.Name()), Hint: "take a folder of its own for each log"}
		}
		if key.Until.IsZero() {
			s.keys[i].Until = now // it was lost
		}
	}
	if _, err := s.State(); errors.Is(err, fs.ErrNotExist) {
		if err := s.setState(State{Root: emptyRoot()}); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	private, err := s.newKey(now)
	if err != nil {
		return err
	}
	defer clear(private)
	if err := s.replace(keyFile, private); err != nil {
		return err
	}
	return s.readPrivate()
}

// OpenSigner opens the signer in a folder.
func OpenSigner(dir string) (*Signer, error) {
	s := &Signer{dir: dir}
	if err := s.open(); err != nil {
		return nil, err
	}
	err := s.readPrivate()
	if err == nil {
		err = s.readKeys()
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	for _, private := range s.private {
		if !slices.ContainsFunc(s.keys, func(k VerifierKey) bool {
			return k.verifier.KeyHash() == private.KeyHash() && k.Name() == private.Name()
		}) {
			s.Close()
			return nil, &Error{Op: "open", Object: s.path(vkeysFile), Kind: ErrMalformed, Err: errorString("it does not list the key that signs"), Hint: "put it back from its copy"}
		}
	}
	return s, nil
}

// Close forgets the keys.
func (s *Signer) Close() {
	s.private = nil
	if s.root != nil {
		s.root.Close()
	}
}

// Origin is the log whose checkpoints it signs.
func (s *Signer) Origin() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.origin
}

// VerifierKeys are the public keys, the oldest first.
func (s *Signer) VerifierKeys() []VerifierKey {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.keys)
}

func (s *Signer) takeKeys(keys []VerifierKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys = keys
}

// Rotate makes a new key. The next checkpoint is signed by both, so that who knows
// either accepts it; then the old one is removed, and its verifier key ends.
func (s *Signer) Rotate(ctx context.Context, now time.Time) error {
	unlock, err := s.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if err := s.reload(); err != nil {
		return err
	}
	if len(s.private) > 1 {
		return &Error{Op: "rotate", Object: s.path(keyFile), Kind: ErrBusy, Err: errorString("the last rotation is not over"), Hint: "the next checkpoint ends it: pgcustody anchor"}
	}
	content, err := s.read(keyFile)
	if err != nil {
		return err
	}
	defer clear(content)
	// The verifier key first: one too many does no harm, a signature that nobody can
	// check does.
	private, err := s.newKey(now)
	if err != nil {
		return err
	}
	defer clear(private)
	both := append(slices.Clone(private), content...)
	defer clear(both)
	if err := s.replace(keyFile, both); err != nil {
		return err
	}
	return s.readPrivate()
}

// newKey makes a private key, as it stands in its file, and lists its verifier key.
func (s *Signer) newKey(now time.Time) ([]byte, error) {
	private, public, err := note.GenerateKey(rand.Reader, s.origin)
	if err != nil {
		return nil, fmt.Errorf("make signing key: %w", err)
	}
	key, err := ParseVerifierKey(public + " " + now.UTC().Truncate(time.Second).Format(time.RFC3339))
	if err != nil {
		return nil, err
	}
	return []byte(private + "\n"), s.setKeys(append(s.keys, key))
}

// lock waits until nobody else signs with the key, or ctx is over. It ends with the
// process, however that ends.
func (s *Signer) lock(ctx context.Context) (unlock func(), err error) {
	file, err := s.root.OpenFile(lockFile, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, signerError("lock", s.path(lockFile), err)
	}
	for {
		err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		switch {
		case err == nil:
			return func() { file.Close() }, nil
		case !errors.Is(err, syscall.EWOULDBLOCK):
			file.Close()
			return nil, signerError("lock", s.path(lockFile), err)
		}
		select {
		case <-ctx.Done():
			file.Close()
			return nil, &Error{Op: "lock", Object: s.path(lockFile), Kind: ErrBusy, Hint: "wait until it is over"}
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// reload takes over what another process made of the files.
func (s *Signer) reload() error {
	if err := s.readPrivate(); err != nil {
		return err
	}
	return s.readKeys()
}

// State reads what was signed last.
func (s *Signer) State() (State, error) {
	var state State
	content, err := s.read(stateFile)
	if err != nil {
		return state, err
	}
	if err := json.Unmarshal(content, &state); err != nil {
		return state, &Error{Op: "read", Object: s.path(stateFile), Kind: ErrMalformed, Err: err, Hint: "pgcustody signer adopt makes it anew from the bucket"}
	}
	return state, nil
}

// Sign signs a checkpoint, by all keys that are in use, if its tree goes on from
// that of the last. reader has the hashes of the new tree. The signer remembers the
// checkpoint before anybody sees its signature.
func (s *Signer) Sign(c Checkpoint, reader tlog.HashReader) ([]byte, error) {
	state, err := s.State()
	if err != nil {
		return nil, err
	}
	refused := func(why string) error {
		return &Error{Op: "sign", Object: fmt.Sprintf("checkpoint %d of %s, size %d", c.Number, c.Origin, c.Size), Kind: ErrState,
			Err:  fmt.Errorf("%s; signed last: %d, size %d", why, state.Number, state.Size),
			Hint: "find out who set the database or the bucket back; pgcustody signer adopt goes on from what is in the bucket"}
	}
	switch {
	case c.Origin != s.origin:
		return nil, refused("it is of another log")
	case c.Number < state.Number:
		return nil, refused("a later number was signed")
	case c.Size < state.Size:
		return nil, refused("a larger tree was signed")
	}
	if ok, err := extends(tlog.Tree{N: state.Size, Hash: state.Root}, c.Tree(), reader); err != nil {
		return nil, err
	} else if !ok {
		return nil, refused("another tree was signed")
	}
	text, err := c.Text()
	if err != nil {
		return nil, err
	}
	if _, err := Parse(text); err != nil {
		return nil, err
	}
	state.Number, state.Size, state.Root = c.Number, c.Size, c.Root
	if err := s.setState(state); err != nil {
		return nil, err
	}
	signed, err := note.Sign(&note.Note{Text: text}, s.private...)
	if err != nil {
		return nil, fmt.Errorf("sign checkpoint %d: %w", c.Number, err)
	}
	return signed, nil
}

// finish notes that everything is done about a checkpoint of the bucket, and ends
// the rotation of which it bears both signatures.
func (s *Signer) finish(c Checkpoint, signed []byte) error {
	if len(s.private) > 1 {
		if err := s.endRotation(c, signed); err != nil {
			return err
		}
	}
	state, err := s.State()
	if err != nil {
		return err
	}
	state.Finished = c.Number
	if state.Number < c.Number {
		// Somebody else signed it with this key.
		state.Number, state.Size, state.Root = c.Number, c.Size, c.Root
	}
	if state.Adopted != nil && state.Adopted.After < c.Number {
		state.Adopted = nil
	}
	return s.setState(state)
}

func (s *Signer) endRotation(c Checkpoint, signed []byte) error {
	newest := s.private[0]
	for i, key := range s.keys {
		if key.verifier.KeyHash() != newest.KeyHash() {
			continue
		}
		if _, err := Open(signed, s.origin, []VerifierKey{key}); err != nil {
			return nil //nolint:nilerr // it was signed before the rotation: the next one ends it
		}
		ended := slices.Clone(s.keys)
		for j := range ended[:i] {
			if ended[j].Until.IsZero() {
				ended[j].Until = c.Time.Add(time.Second)
			}
		}
		if err := s.setKeys(ended); err != nil {
			return err
		}
		content, err := s.read(keyFile)
		if err != nil {
			return err
		}
		defer clear(content)
		first, _, _ := bytes.Cut(content, []byte("\n"))
		if err := s.replace(keyFile, append(slices.Clone(first), '\n')); err != nil {
			return err
		}
		return s.readPrivate()
	}
	return nil
}

// adopt writes down that the database of a cluster goes on after the newest
// checkpoint in the bucket, nil where there is none, and that what was signed last
// is that one.
func (s *Signer) adopt(newest *Checkpoint, systemIdentifier string, now time.Time) (State, error) {
	state := State{Root: emptyRoot(), Adopted: &Adoption{SystemIdentifier: systemIdentifier, At: now.UTC().Truncate(time.Second)}}
	if newest != nil {
		state.Number, state.Size, state.Root = newest.Number, newest.Size, newest.Root
		state.Adopted.After = newest.Number
	}
	// What was left undone about it is done again.
	state.Finished = max(state.Number-1, 0)
	return state, s.setState(state)
}

func (s *Signer) path(name string) string { return filepath.Join(s.dir, name) }

func (s *Signer) open() error {
	root, err := os.OpenRoot(s.dir)
	if err != nil {
		return signerError("open", s.dir, err)
	}
	info, err := root.Stat(".")
	if err != nil {
		root.Close()
		return signerError("open", s.dir, err)
	}
	if err := private(info); err != nil {
		root.Close()
		return &Error{Op: "open", Object: s.dir, Kind: ErrExposed, Err: err,
			Hint: "chmod 700 it, chown it to who runs this; rotate a key that others may have read"}
	}
	s.root = root
	return nil
}

func (s *Signer) readPrivate() error {
	content, err := s.read(keyFile)
	if err != nil {
		return err
	}
	defer clear(content)
	malformed := func(why string) error {
		return &Error{Op: "open", Object: s.path(keyFile), Kind: ErrMalformed, Err: errorString(why), Hint: "put it back from its copy"}
	}
	s.private = nil
	for line := range strings.Lines(string(content)) {
		signer, err := note.NewSigner(strings.TrimSuffix(line, "\n"))
		if err != nil {
			return malformed("a line is no signing key") // whose error may repeat a part of it
		}
		s.private = append(s.private, signer)
	}
	if len(s.private) == 0 {
		return malformed("it is empty")
	}
	for _, signer := range s.private {
		if signer.Name() != s.private[0].Name() {
			return malformed("its keys are of two logs")
		}
	}
	origin := s.private[0].Name()
	s.mu.Lock()
	s.origin = origin
	s.mu.Unlock()
	return CheckOrigin(origin)
}

func (s *Signer) readKeys() error {
	content, err := s.read(vkeysFile)
	if err != nil {
		return err
	}
	var keys []VerifierKey
	for line := range strings.Lines(string(content)) {
		if strings.TrimSpace(line) == "" {
			continue
		}
		key, err := ParseVerifierKey(line)
		if err != nil {
			return err
		}
		keys = append(keys, key)
	}
	s.takeKeys(keys)
	return nil
}

func (s *Signer) setKeys(keys []VerifierKey) error {
	var out bytes.Buffer
	for _, key := range keys {
		fmt.Fprintln(&out, key)
	}
	if err := s.replace(vkeysFile, out.Bytes()); err != nil {
		return err
	}
	s.takeKeys(keys)
	return nil
}

func (s *Signer) setState(state State) error {
	content, err := json.Marshal(state)
	if err != nil {
		return err
	}
	return s.replace(stateFile, append(content, '\n'))
}

// read reads a file that is ours alone.
func (s *Signer) read(name string) ([]byte, error) {
	info, err := s.root.Stat(name)
	if err != nil {
		return nil, signerError("open", s.path(name), err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxSignerFile {
		return nil, &Error{Op: "open", Object: s.path(name), Kind: ErrMalformed, Err: errorString("it is not a file of a signer")}
	}
	if err := private(info); err != nil {
		return nil, &Error{Op: "open", Object: s.path(name), Kind: ErrExposed, Err: err,
			Hint: "chmod 600 it, chown it to who runs this; rotate a key that others may have read"}
	}
	content, err := s.root.ReadFile(name)
	if err != nil {
		return nil, signerError("open", s.path(name), err)
	}
	return content, nil
}

// replace writes a file whole or not at all, and for good.
func (s *Signer) replace(name string, content []byte) error {
	if err := s.sweep(name); err != nil {
		return err
	}
	temp, err := s.write(name, content)
	if err != nil {
		return err
	}
	if err := s.root.Rename(temp, name); err != nil {
		return errors.Join(signerError("write", s.path(name), err), s.root.Remove(temp))
	}
	return s.sync()
}

// write writes a file beside its place.
func (s *Signer) write(name string, content []byte) (temp string, err error) {
	temp = "." + name + "." + rand.Text() + ".tmp"
	file, err := s.root.OpenFile(temp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return "", signerError("write", s.path(name), err)
	}
	_, err = file.Write(content)
	if err = errors.Join(err, file.Sync(), file.Close()); err != nil {
		return "", errors.Join(signerError("write", s.path(name), err), s.root.Remove(temp))
	}
	return temp, nil
}

// sweep removes what a writer of the file who was killed left, which may be a key.
// Files are written under the lock.
func (s *Signer) sweep(name string) error {
	entries, err := fs.ReadDir(s.root.FS(), ".")
	if err != nil {
		return signerError("write", s.path(name), err)
	}
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), "."+name+".") && strings.HasSuffix(entry.Name(), ".tmp") {
			if err := s.root.Remove(entry.Name()); err != nil {
				return signerError("write", s.path(name), err)
			}
		}
	}
	return nil
}

func (s *Signer) sync() error {
	dir, err := s.root.Open(".")
	if err != nil {
		return signerError("write", s.dir, err)
	}
	if err := errors.Join(dir.Sync(), dir.Close()); err != nil {
		return signerError("write", s.dir, err)
	}
	return nil
}

// private refuses what others than we and root can read or change.
func private(info fs.FileInfo) error {
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return fmt.Errorf("its mode is %#o", mode)
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok && stat.Uid != 0 && int(stat.Uid) != os.Geteuid() {
		return fmt.Errorf("it belongs to user %d", stat.Uid)
	}
	return nil
}

// signerError turns what the file system says into an *Error.
func signerError(op, path string, err error) error {
	e := &Error{Op: op, Object: path, Kind: ErrNoSigner, Err: err, Hint: "correct --signer or PGCUSTODY_SIGNER, or make one with pgcustody signer init"}
	switch {
	case errors.Is(err, fs.ErrPermission):
		e.Hint = "give who runs this the right to it"
	case filepath.Base(path) == stateFile:
		e.Kind, e.Hint = ErrState, "put it back from its copy; pgcustody signer adopt makes it anew from the bucket"
	case !errors.Is(err, fs.ErrNotExist):
		e.Hint = "mend it"
	}
	return e
}
