package store

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// dirStore keeps objects in a directory, for development: whoever may write there may
// delete everything. Version 3 of a/b is the file a/b@3, and beside it a/b@3.meta says
// what a store would know, its lock included, which Delete honours and nobody else.
// After the newest version was deleted its number is given again.
type dirStore struct {
	dir string
}

// uploadsDir holds what is being written. No key is in it: a leading dot is escaped.
const uploadsDir = ".uploads"

// meta is what is known of a version beside its bytes.
type meta struct {
	Size        int64     `json:"size"`
	SHA256      string    `json:"sha256"` // base64, as S3 writes it
	ContentType string    `json:"content_type"`
	RetainUntil time.Time `json:"retain_until,omitzero"`
	LegalHold   bool      `json:"legal_hold,omitempty"`
}

func (s *dirStore) URL() string { return "file://" + s.dir }

func (s *dirStore) objectURL(key string) string { return s.URL() + "/" + key }

func (s *dirStore) error(op, key string, err error) error {
	var known *Error
	if err == nil || errors.As(err, &known) {
		return err
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return &Error{Op: op, Object: s.objectURL(key), Kind: err}
	}
	e := &Error{Op: op, Object: s.objectURL(key), Kind: ErrRefused, Err: err}
	// The path is in Object already.
	if path := new(fs.PathError); errors.As(err, &path) {
		e.Err = path.Err
	}
	if link := new(os.LinkError); errors.As(err, &link) {
		e.Err = link.Err
	}
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		e.Kind, e.Hint = ErrFull, "nothing was stored; free space in "+s.dir+" and run again"
	case errors.Is(err, syscall.EFBIG):
		e.Kind, e.Hint = ErrTooLarge, "nothing was stored; the file system or a limit of this process takes no file of this size"
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		e.Kind, e.Hint = ErrAccessDenied, "give this user the right to read and write "+s.dir
	case errors.Is(err, fs.ErrNotExist):
		e.Kind = ErrNotFound
		if missing := s.reachable(op); missing != nil {
			return missing
		}
	case errors.Is(err, syscall.EIO), errors.Is(err, syscall.ESTALE):
		e.Kind, e.Hint = ErrUnreachable, "look at the disk under "+s.dir
	}
	return e
}

// reachable looks whether the directory is there. It is never made: on a machine where
// the disk is not mounted an archive would go elsewhere without a word.
func (s *dirStore) reachable(op string) error {
	info, err := os.Stat(s.dir)
	switch {
	case errors.Is(err, fs.ErrNotExist), err == nil && !info.IsDir():
		return &Error{Op: op, Object: s.URL(), Kind: ErrBucketMissing, Hint: "make the directory, mount its disk, or correct PGCUSTODY_STORE"}
	case err != nil:
		return s.error(op, "", err)
	}
	return nil
}

// path is where the versions of a key are, without @ and number.
func (s *dirStore) path(key string) string {
	parts := strings.Split(key, "/")
	for i, part := range parts {
		part = strings.NewReplacer("%", "%25", "@", "%40").Replace(part)
		if strings.HasPrefix(part, ".") {
			part = "%2E" + part[1:]
		}
		parts[i] = cmp.Or(part, "%")
	}
	return filepath.Join(s.dir, filepath.Join(parts...))
}

// keyOf is the reverse of path, given relative to the directory.
func keyOf(path string) (string, error) {
	parts := strings.Split(path, "/")
	for i, part := range parts {
		if part == "%" {
			parts[i] = ""
			continue
		}
		var err error
		if parts[i], err = url.PathUnescape(part); err != nil {
			return "", err
		}
	}
	return strings.Join(parts, "/"), nil
}

// stored is a version in the directory.
type stored struct {
	path   string // with @ and number
	number int
}

func (v stored) version() string { return strconv.Itoa(v.number) }

// parseStored tells a version's file from others.
func parseStored(path string) (base string, v stored, ok bool) {
	base, number, ok := strings.Cut(filepath.Base(path), "@")
	n, err := strconv.Atoi(number)
	if !ok || err != nil || n < 1 || strconv.Itoa(n) != number {
		return "", v, false
	}
	return filepath.Join(filepath.Dir(path), base), stored{path, n}, true
}

// of lists the versions of a key, the oldest first.
func (s *dirStore) of(key string) ([]stored, error) {
	base := s.path(key)
	entries, err := os.ReadDir(filepath.Dir(base))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var versions []stored
	for _, entry := range entries {
		of, v, ok := parseStored(filepath.Join(filepath.Dir(base), entry.Name()))
		if ok && of == base && entry.Type().IsRegular() {
			versions = append(versions, v)
		}
	}
	slices.SortFunc(versions, func(a, b stored) int { return a.number - b.number })
	return versions, nil
}

// find returns a version, or the newest.
func (s *dirStore) find(op, key, version string) (stored, error) {
	versions, err := s.of(key)
	if err != nil {
		return stored{}, s.error(op, key, err)
	}
	for _, v := range slices.Backward(versions) {
		if version == "" || v.version() == version {
			return v, nil
		}
	}
	return stored{}, s.error(op, key, fs.ErrNotExist)
}

func (s *dirStore) info(key string, v stored) (Info, error) {
	file, err := os.Stat(v.path)
	if err != nil {
		return Info{}, err
	}
	m, err := readMeta(v)
	if err != nil {
		return Info{}, err
	}
	info := Info{
		Key: key, Version: v.version(), Size: m.Size, Modified: file.ModTime(), Checksum: m.SHA256,
		RetainUntil: m.RetainUntil, LegalHold: m.LegalHold,
	}
	if !m.RetainUntil.IsZero() {
		info.RetainMode = ModeCompliance
	}
	return info, nil
}

func readMeta(v stored) (meta, error) {
	var m meta
	text, err := os.ReadFile(v.path + ".meta")
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal(text, &m); err != nil {
		return m, fmt.Errorf("%s.meta: %w", filepath.Base(v.path), err)
	}
	return m, nil
}

func (s *dirStore) Put(ctx context.Context, key string, body io.Reader, opts PutOptions) (_ PutResult, err error) {
	defer func() { err = s.error("put", key, err) }()
	if err := s.reachable("put"); err != nil {
		return PutResult{}, err
	}
	if err := mkdir(filepath.Join(s.dir, uploadsDir)); err != nil {
		return PutResult{}, err
	}
	upload, err := os.OpenFile(s.upload(key)+rand.Text(), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return PutResult{}, err
	}
	defer func() { err = cmp.Or(err, removeIfThere(upload.Name())) }()
	defer upload.Close()

	source := &source{ctx: ctx, from: body}
	sum := sha256.New()
	size, err := io.Copy(io.MultiWriter(upload, sum), source)
	if source.err != nil && ctx.Err() == nil {
		return PutResult{}, &Error{Op: "put", Object: s.objectURL(key), Kind: ErrSource, Err: source.err}
	}
	if err == nil {
		err = cmp.Or(ctx.Err(), upload.Sync())
	}
	if err != nil {
		return PutResult{}, err
	}
	m := meta{
		Size: size, SHA256: base64.StdEncoding.EncodeToString(sum.Sum(nil)), RetainUntil: opts.RetainUntil.UTC().Truncate(time.Second),
		ContentType: cmp.Or(opts.ContentType, "application/octet-stream"),
	}
	if opts.RetainUntil.IsZero() {
		m.RetainUntil = time.Time{}
	}

	unlock, err := s.lock()
	if err != nil {
		return PutResult{}, err
	}
	defer unlock()
	versions, err := s.of(key)
	if err != nil {
		return PutResult{}, err
	}
	if opts.IfNoneMatch && len(versions) > 0 {
		return PutResult{}, &Error{Op: "put", Object: s.objectURL(key), Kind: ErrExists}
	}
	base := s.path(key)
	if err := mkdir(filepath.Dir(base)); err != nil {
		return PutResult{}, err
	}
	next := stored{number: 1}
	if len(versions) > 0 {
		next.number = versions[len(versions)-1].number + 1
	}
	next.path = base + "@" + next.version()
	// The lock is there before what it locks. Without the latter it counts for nothing.
	if err := s.writeMeta(key, next, m); err != nil {
		return PutResult{}, err
	}
	if err := os.Link(upload.Name(), next.path); err != nil {
		if errors.Is(err, fs.ErrExist) { // by somebody who does not take our lock
			return PutResult{}, &Error{Op: "put", Object: s.objectURL(key), Kind: ErrExists}
		}
		return PutResult{}, cmp.Or(err, removeIfThere(next.path+".meta"))
	}
	if err := syncDir(filepath.Dir(base)); err != nil {
		return PutResult{}, err
	}
	return PutResult{Key: key, Version: next.version(), Size: size, Checksum: m.SHA256}, nil
}

// upload is where a key's unfinished objects are, but for what makes each unique.
func (s *dirStore) upload(key string) string {
	return filepath.Join(s.dir, uploadsDir, url.QueryEscape(key)+"@")
}

// writeMeta replaces a version's meta at once.
func (s *dirStore) writeMeta(key string, v stored, m meta) error {
	text, err := json.Marshal(m)
	if err != nil {
		return err
	}
	temporary, err := os.OpenFile(s.upload(key)+rand.Text(), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = temporary.Write(append(text, '\n'))
	if err == nil {
		err = temporary.Sync()
	}
	err = cmp.Or(err, temporary.Close())
	if err == nil {
		err = os.Rename(temporary.Name(), v.path+".meta")
	}
	if err == nil {
		err = syncDir(filepath.Dir(v.path))
	}
	return cmp.Or(err, removeIfThere(temporary.Name()))
}

// lock keeps other writers out until it is called back. A process that is killed
// holds nothing.
func (s *dirStore) lock() (func(), error) {
	if err := s.reachable("lock"); err != nil {
		return nil, err
	}
	if err := mkdir(filepath.Join(s.dir, uploadsDir)); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(filepath.Join(s.dir, uploadsDir, ".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err = syscall.Flock(int(file.Fd()), syscall.LOCK_EX)
		if !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if err != nil {
		_ = file.Close()
		return nil, err
	}
	return func() { _ = file.Close() }, nil
}

func (s *dirStore) Get(ctx context.Context, key, version string) (*Object, error) {
	v, err := s.find("get", key, version)
	if err != nil {
		return nil, err
	}
	info, err := s.info(key, v)
	if err != nil {
		return nil, s.error("get", key, err)
	}
	file, err := os.Open(v.path)
	if err != nil {
		return nil, s.error("get", key, err)
	}
	return &Object{Info: info, ReadCloser: &dirReader{store: s, ctx: ctx, key: key, file: file, left: info.Size}}, nil
}

// dirReader fails where the file is not as long as it was.
type dirReader struct {
	store *dirStore
	ctx   context.Context
	key   string
	file  *os.File
	left  int64
}

func (r *dirReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, r.store.error("get", r.key, err)
	}
	n, err := r.file.Read(p)
	r.left -= int64(n)
	atEnd := errors.Is(err, io.EOF)
	if atEnd && r.left != 0 {
		return n, &Error{Op: "get", Object: r.store.objectURL(r.key), Kind: ErrTruncated, Hint: "the object is damaged",
			Err: fmt.Errorf("%d bytes are missing", r.left)}
	}
	if err != nil && !atEnd {
		err = r.store.error("get", r.key, err)
	}
	return n, err
}

func (r *dirReader) Close() error { return r.file.Close() }

func (s *dirStore) Head(_ context.Context, key, version string) (Info, error) {
	v, err := s.find("head", key, version)
	if err != nil {
		return Info{}, err
	}
	info, err := s.info(key, v)
	return info, s.error("head", key, err)
}

// keys lists the keys that start with prefix, in order, with their versions.
func (s *dirStore) keys(ctx context.Context, prefix string) ([]string, map[string][]stored, error) {
	if err := s.reachable("list"); err != nil {
		return nil, nil, err
	}
	from := s.dir
	if i := strings.LastIndexByte(prefix, '/'); i > 0 {
		from = s.path(prefix[:i])
	}
	versions := map[string][]stored{}
	err := filepath.WalkDir(from, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist): // gone meanwhile, or nothing there
			return nil
		case err != nil:
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		case entry.IsDir() && path == filepath.Join(s.dir, uploadsDir):
			return fs.SkipDir
		}
		base, v, ok := parseStored(path)
		if !ok || !entry.Type().IsRegular() {
			return nil
		}
		relative, err := filepath.Rel(s.dir, base)
		if err != nil {
			return err
		}
		key, err := keyOf(relative)
		if err == nil && strings.HasPrefix(key, prefix) {
			versions[key] = append(versions[key], v)
		}
		return nil // a name that is no key was made by somebody else
	})
	if err != nil {
		return nil, nil, s.error("list", prefix, err)
	}
	keys := make([]string, 0, len(versions))
	for key, of := range versions {
		keys = append(keys, key)
		slices.SortFunc(of, func(a, b stored) int { return a.number - b.number })
	}
	slices.Sort(keys)
	return keys, versions, nil
}

// list yields the versions of each key that pick gives.
func (s *dirStore) list(ctx context.Context, prefix string, pick func([]stored) []stored) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		keys, versions, err := s.keys(ctx, prefix)
		if err != nil {
			yield(Info{}, err)
			return
		}
		for _, key := range keys {
			for _, v := range pick(versions[key]) {
				info, err := s.info(key, v)
				if errors.Is(err, fs.ErrNotExist) {
					continue
				}
				if !yield(info, s.error("list", key, err)) || err != nil {
					return
				}
			}
		}
	}
}

func (s *dirStore) List(ctx context.Context, prefix string) iter.Seq2[Info, error] {
	return s.list(ctx, prefix, func(all []stored) []stored { return all[len(all)-1:] })
}

func (s *dirStore) Versions(ctx context.Context, prefix string) iter.Seq2[Info, error] {
	return s.list(ctx, prefix, func(all []stored) []stored { return all })
}

// History is Versions: there are no delete markers.
func (s *dirStore) History(ctx context.Context, prefix string) iter.Seq2[Info, error] {
	return s.Versions(ctx, prefix)
}

func (s *dirStore) Extend(_ context.Context, key, version string, until time.Time) error {
	return s.change("extend", key, version, func(m *meta) error {
		until = until.UTC().Truncate(time.Second)
		if until.Before(m.RetainUntil) {
			return &Error{Op: "extend", Object: s.objectURL(key), Kind: ErrLocked,
				Hint: "a lock is never shortened; this one ends " + m.RetainUntil.Format(time.RFC3339)}
		}
		m.RetainUntil = until
		return nil
	})
}

func (s *dirStore) SetLegalHold(_ context.Context, key, version string, on bool) error {
	return s.change("hold", key, version, func(m *meta) error {
		m.LegalHold = on
		return nil
	})
}

// change writes a version's meta anew.
func (s *dirStore) change(op, key, version string, change func(*meta) error) error {
	unlock, err := s.lock()
	if err != nil {
		return s.error(op, key, err)
	}
	defer unlock()
	v, err := s.find(op, key, version)
	if err != nil {
		return err
	}
	m, err := readMeta(v)
	if err == nil {
		err = change(&m)
	}
	if err == nil {
		err = s.writeMeta(key, v, m)
	}
	return s.error(op, key, err)
}

func (s *dirStore) Sweep(_ context.Context, key string) (int, error) {
	swept := 0
	err := s.unfinished(key, func(of, name string) error {
		if of != key {
			return nil
		}
		if err := os.Remove(filepath.Join(s.dir, uploadsDir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return s.error("sweep", key, err)
		}
		swept++
		return nil
	})
	return swept, err
}

func (s *dirStore) Unfinished(_ context.Context, prefix string) (keys []string, err error) {
	err = s.unfinished(prefix, func(of, _ string) error {
		if strings.HasPrefix(of, prefix) {
			keys = append(keys, of)
		}
		return nil
	})
	slices.Sort(keys)
	return slices.Compact(keys), err
}

// unfinished calls each with the key of every unfinished upload and its file's name.
func (s *dirStore) unfinished(what string, each func(key, name string) error) error {
	entries, err := os.ReadDir(filepath.Join(s.dir, uploadsDir))
	if errors.Is(err, fs.ErrNotExist) {
		return s.reachable("sweep")
	}
	if err != nil {
		return s.error("sweep", what, err)
	}
	for _, entry := range entries {
		escaped, _, ok := strings.Cut(entry.Name(), "@")
		key, err := url.QueryUnescape(escaped)
		if !ok || err != nil {
			continue
		}
		if err := each(key, entry.Name()); err != nil {
			return err
		}
	}
	return nil
}

func (s *dirStore) Delete(ctx context.Context, key string) (int, error) {
	if _, err := s.Sweep(ctx, key); err != nil {
		return 0, err
	}
	unlock, err := s.lock()
	if err != nil {
		return 0, s.error("delete", key, err)
	}
	defer unlock()
	versions, err := s.of(key)
	if err != nil {
		return 0, s.error("delete", key, err)
	}
	deleted := 0
	var failures error
	for _, v := range versions {
		m, err := readMeta(v)
		if err == nil {
			err = s.locked(key, v, m)
		}
		// The lock goes after what it locked.
		if err == nil {
			err = os.Remove(v.path)
		}
		if err == nil {
			deleted++
			err = removeIfThere(v.path + ".meta")
		}
		failures = errors.Join(failures, s.error("delete", key, err))
	}
	return deleted, failures
}

// locked returns the error of a version that must stay.
func (s *dirStore) locked(key string, v stored, m meta) error {
	e := &Error{Op: "delete", Object: s.objectURL(key), Kind: ErrLocked}
	switch {
	case m.RetainUntil.After(time.Now()):
		e.Hint = "version " + v.version() + " cannot be deleted before " + m.RetainUntil.Format(time.RFC3339)
	case m.LegalHold:
		e.Hint = "version " + v.version() + " is under a legal hold of the store"
	default:
		return nil
	}
	return e
}

func (s *dirStore) CheckSettings(context.Context) ([]Finding, error) {
	if err := s.reachable("check"); err != nil {
		return nil, err
	}
	return []Finding{{
		Name: NoLock, Object: s.URL(), What: "a directory locks nothing: whoever may write there may delete everything",
		Do: "use it for development alone",
	}}, nil
}

// Check is CheckSettings: there is no lock that could be tried.
func (s *dirStore) Check(ctx context.Context) ([]Finding, error) { return s.CheckSettings(ctx) }

// mkdir makes a folder and those above it, so that they last.
func mkdir(dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	if err := mkdir(filepath.Dir(dir)); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(filepath.Dir(dir))
}

func syncDir(dir string) error {
	file, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer file.Close()
	return file.Sync()
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
