package keys

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// maxFileSize is far beyond a key and what may stand around it.
const maxFileSize = 1024

// fileProvider keeps each KEK in a file of a directory that is ours alone.
type fileProvider struct {
	dir         string
	development bool
}

func (p *fileProvider) String() string { return "file:" + p.dir }

func keyFile(ref Ref) string { return fmt.Sprintf("%s.%d.key", ref.Tenant, ref.Version) }

// graveFile stays behind when a key is destroyed, so that its version is never
// used again and is known to be gone, not lost.
func graveFile(ref Ref) string { return fmt.Sprintf("%s.%d.destroyed", ref.Tenant, ref.Version) }

// tempPrefix begins the names of files that are not yet a key.
func tempPrefix(ref Ref) string { return fmt.Sprintf(".%s.%d.", ref.Tenant, ref.Version) }

// NewKEK writes the key beside its place and links it there, which one of many
// can do; the others read what that one wrote.
func (p *fileProvider) NewKEK(_ context.Context, tenant string, version int) (Ref, Key, error) {
	const op = "make"
	ref := Ref{Tenant: tenant, Version: version}
	if err := ref.check(op); err != nil {
		return ref, Key{}, err
	}
	if err := p.makeDir(); err != nil {
		return ref, Key{}, p.error(op, ref, err)
	}
	root, err := p.open(op, ref)
	if err != nil {
		return ref, Key{}, err
	}
	defer root.Close()

	key, err := p.read(op, root, ref)
	if errors.Is(err, ErrUnknown) {
		if err := create(root, ref); err != nil {
			return ref, Key{}, p.error(op, ref, err)
		}
		key, err = p.read(op, root, ref)
		if errors.Is(err, ErrDestroyed) {
			// Somebody destroyed this version in between, and found no key.
			err = errors.Join(err, wipe(root, ref))
		}
	}
	if err != nil {
		return ref, Key{}, err
	}
	// Whoever made it: it must be there for good before anything is wrapped by it.
	if err := syncDir(root); err != nil {
		key.Wipe()
		return ref, Key{}, p.error(op, ref, err)
	}
	return ref, key, nil
}

func (p *fileProvider) KEK(_ context.Context, ref Ref) (Key, error) {
	const op = "get"
	if err := ref.check(op); err != nil {
		return Key{}, err
	}
	root, err := p.open(op, ref)
	if err != nil {
		return Key{}, err
	}
	defer root.Close()
	return p.read(op, root, ref)
}

// Destroy writes the grave first: from then on nobody reads or makes the key,
// and whoever is killed in the middle may begin again. Overwriting reaches the
// bytes on the disk only where a file system overwrites in place.
func (p *fileProvider) Destroy(_ context.Context, ref Ref) (bool, error) {
	const op = "destroy"
	if err := ref.check(op); err != nil {
		return false, err
	}
	root, err := os.OpenRoot(p.dir)
	if err != nil {
		return false, p.error(op, ref, err)
	}
	defer root.Close()
	if _, err := root.Lstat(graveFile(ref)); err != nil {
		// A key that was never here must not pass for destroyed.
		_, err := root.Lstat(keyFile(ref))
		if err == nil {
			err = bury(root, ref)
		} else if _, grave := root.Lstat(graveFile(ref)); grave == nil {
			err = nil // another destroyer came between the two looks
		}
		if err != nil {
			return false, p.error(op, ref, err)
		}
	}
	if err := wipe(root, ref); err != nil {
		return false, p.error(op, ref, err)
	}
	return true, nil
}

// makeDir makes the directory if it is missing, not those above it.
func (p *fileProvider) makeDir() error {
	err := os.Mkdir(p.dir, 0o700)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	parent, err := os.Open(filepath.Dir(p.dir))
	if err != nil {
		return err
	}
	defer parent.Close()
	return parent.Sync()
}

// open opens the directory, if it is ours alone.
func (p *fileProvider) open(op string, ref Ref) (*os.Root, error) {
	root, err := os.OpenRoot(p.dir)
	if err != nil {
		return nil, p.error(op, ref, err)
	}
	info, err := root.Stat(".")
	if err != nil {
		root.Close()
		return nil, p.error(op, ref, err)
	}
	if err := private(info); err != nil {
		root.Close()
		return nil, &Error{Op: op, Object: p.dir, Kind: ErrExposed, Err: err, Hint: "chmod 700 it, chown it to who runs this; take a key that others may have read out of use"}
	}
	return root, nil
}

func (p *fileProvider) read(op string, root *os.Root, ref Ref) (Key, error) {
	name := keyFile(ref)
	path := filepath.Join(p.dir, name)
	content, err := contentOf(root, name)
	defer clear(content)
	// Looked at afterwards: a key is overwritten only when its grave is there.
	if _, statErr := root.Lstat(graveFile(ref)); statErr == nil {
		return Key{}, p.kind(op, ref, ErrDestroyed, nil, "")
	} else if !errors.Is(statErr, fs.ErrNotExist) {
		return Key{}, p.error(op, ref, statErr)
	}
	if errors.Is(err, ErrExposed) {
		return Key{}, p.kind(op, ref, ErrExposed, err, "chmod 600 "+path+", chown it to who runs this; take a key that others may have read out of use")
	}
	if err != nil {
		return Key{}, p.error(op, ref, err)
	}
	key, err := decode(string(content), p.development)
	if err != nil {
		return Key{}, p.kind(op, ref, ErrWeak, err, "put back "+path+" from its copy; it holds 64 random bytes in hexadecimal")
	}
	return key, nil
}

// contentOf reads a file that is ours alone. It need not mind a file that changes
// under its hands: nobody else can write to the directory.
func contentOf(root *os.Root, name string) ([]byte, error) {
	info, err := root.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxFileSize {
		return nil, fmt.Errorf("%s is not a file of a key", name)
	}
	if err := private(info); err != nil {
		return nil, err
	}
	return root.ReadFile(name)
}

// private refuses what others than we and root can read or change.
func private(info fs.FileInfo) error {
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return fmt.Errorf("%w: its mode is %#o", ErrExposed, mode)
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok && stat.Uid != 0 && int(stat.Uid) != os.Geteuid() {
		return fmt.Errorf("%w: it belongs to user %d", ErrExposed, stat.Uid)
	}
	return nil
}

// create puts a new key in its place, unless one is there.
func create(root *os.Root, ref Ref) error {
	key := randomKey()
	defer key.Wipe()
	text := append(hex.AppendEncode(make([]byte, 0, 2*Size+1), key.Bytes()), '\n')
	defer clear(text)

	temp := tempPrefix(ref) + rand.Text() + ".tmp"
	defer root.Remove(temp) // what stays behind, Destroy removes
	if err := writeSync(root, temp, os.O_CREATE|os.O_EXCL, text); err != nil {
		return err
	}
	if err := root.Link(temp, keyFile(ref)); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// bury notes that a key is destroyed.
func bury(root *os.Root, ref Ref) error {
	if err := writeSync(root, graveFile(ref), os.O_CREATE, nil); err != nil {
		return err
	}
	return syncDir(root)
}

// wipe overwrites and removes a key, and what makers of it who were killed left.
func wipe(root *os.Root, ref Ref) error {
	entries, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		return err
	}
	for _, entry := range entries {
		name := entry.Name()
		if name != keyFile(ref) && !strings.HasPrefix(name, tempPrefix(ref)) {
			continue
		}
		if err := wipeFile(root, name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return syncDir(root)
}

func wipeFile(root *os.Root, name string) error {
	info, err := root.Stat(name)
	if err != nil {
		return err
	}
	noise := make([]byte, info.Size())
	_, _ = rand.Read(noise)
	if err := root.Chmod(name, 0o600); err != nil {
		return err
	}
	if err := writeSync(root, name, 0, noise); err != nil {
		return err
	}
	return root.Remove(name)
}

func writeSync(root *os.Root, name string, flag int, content []byte) error {
	file, err := root.OpenFile(name, os.O_WRONLY|flag, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(content)
	return errors.Join(err, file.Sync(), file.Close())
}

func syncDir(root *os.Root) error {
	dir, err := root.Open(".")
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

func (p *fileProvider) kind(op string, ref Ref, kind, err error, hint string) error {
	return &Error{Op: op, Object: ref.String() + " in " + p.dir, Kind: kind, Err: err, Hint: hint}
}

// error turns what the file system says into an *Error.
func (p *fileProvider) error(op string, ref Ref, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return p.kind(op, ref, ErrUnknown, err, "put the file of the key back from its copy, or correct the directory in the spec of the key provider")
	case errors.Is(err, fs.ErrPermission):
		return p.kind(op, ref, ErrRefused, err, "give who runs this the right to "+p.dir)
	}
	return p.kind(op, ref, ErrUnavailable, err, "mend "+p.dir)
}
