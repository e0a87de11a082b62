package store

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func openDir(t *testing.T) *dirStore {
	t.Helper()
	opened, err := OpenURL(t.Context(), "file://"+t.TempDir())
	require.NoError(t, err)
	return opened.(*dirStore)
}

// files lists what is in the directory, but for the lock.
func files(t *testing.T, s *dirStore) (files []string) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(s.dir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() && entry.Name() != ".lock" {
			files = append(files, strings.TrimPrefix(path, s.dir+"/"))
		}
		return err
	}))
	return files
}

func TestDirectorySaysThatItLocksNothing(t *testing.T) {
	s := openDir(t)
	for _, check := range []func(context.Context) ([]Finding, error){s.Check, s.CheckSettings} {
		findings, err := check(t.Context())
		require.NoError(t, err)
		require.Equal(t, []string{NoLock}, names(findings))
		require.ErrorIs(t, Accept(findings, nil), ErrNoObjectLock)
		require.NoError(t, Accept(findings, []string{NoLock}))
	}
}

// TestDirectoryIsPlain: without this program the objects are files by their names.
func TestDirectoryIsPlain(t *testing.T) {
	s := openDir(t)
	put(t, s, "audit-archives/2026/11/x.age", "first", PutOptions{RetainUntil: inAnHour()})
	put(t, s, "audit-archives/2026/11/x.age", "second", PutOptions{})
	require.Equal(t, []string{
		"audit-archives/2026/11/x.age@1", "audit-archives/2026/11/x.age@1.meta",
		"audit-archives/2026/11/x.age@2", "audit-archives/2026/11/x.age@2.meta",
	}, files(t, s))
	content, err := os.ReadFile(filepath.Join(s.dir, "audit-archives/2026/11/x.age@1"))
	require.NoError(t, err)
	require.Equal(t, "first", string(content))
}

func TestDirectoryMissing(t *testing.T) {
	s := &dirStore{filepath.Join(t.TempDir(), "none")}
	_, putErr := s.Put(t.Context(), "k", strings.NewReader("x"), PutOptions{})
	_, getErr := s.Get(t.Context(), "k", "")
	_, sweepErr := s.Sweep(t.Context(), "k")
	_, checkErr := s.Check(t.Context())
	_, deleteErr := s.Delete(t.Context(), "k")
	var listErr error
	for _, listErr = range s.List(t.Context(), "") {
		break
	}
	for op, err := range map[string]error{
		"put": putErr, "get": getErr, "sweep": sweepErr, "check": checkErr, "delete": deleteErr, "list": listErr,
		"hold": s.SetLegalHold(t.Context(), "k", "", true),
	} {
		require.ErrorIs(t, err, ErrBucketMissing, op)
	}
	require.NoDirExists(t, s.dir, "it was made, on what may be another disk")
}

func TestDirectoryNoticesDamage(t *testing.T) {
	s := openDir(t)
	put(t, s, "k", "a long enough body", PutOptions{})
	require.NoError(t, os.Truncate(filepath.Join(s.dir, "k@1"), 5))
	object, err := s.Get(t.Context(), "k", "")
	require.NoError(t, err)
	defer object.Close()
	_, err = io.ReadAll(object)
	require.ErrorIs(t, err, ErrTruncated)
	require.NoError(t, os.WriteFile(filepath.Join(s.dir, "k@1.meta"), []byte("{"), 0o600))
	_, err = s.Head(t.Context(), "k", "")
	require.ErrorIs(t, err, ErrRefused)
	require.ErrorContains(t, err, "k@1.meta")
}

// TestDirectorySweepsUnfinished: what a killed writer leaves is a file that is no object.
func TestDirectorySweepsUnfinished(t *testing.T) {
	s := openDir(t)
	for _, key := range []string{"a/1", "a/1", "a/12", "b"} {
		started := make(chan struct{})
		ctx, cancel := context.WithCancel(t.Context())
		reader, writer := io.Pipe()
		done := make(chan error)
		go func() {
			_, err := s.Put(ctx, key, reader, PutOptions{RetainUntil: inAnHour()})
			done <- err
		}()
		go func() { _, _ = writer.Write([]byte("half")); close(started) }()
		<-started
		// As if it had been killed here: keep what it has written.
		written := 0
		for _, name := range files(t, s) {
			if !strings.HasSuffix(name, "-killed") {
				require.NoError(t, os.Link(filepath.Join(s.dir, name), filepath.Join(s.dir, name)+"-killed"))
				written++
			}
		}
		require.Equal(t, 1, written)
		cancel()
		_ = writer.Close()
		require.ErrorIs(t, <-done, context.Canceled)
	}
	for _, err := range s.Versions(t.Context(), "") {
		require.NoError(t, err)
		require.Fail(t, "an unfinished upload is an object")
	}
	n, err := s.Sweep(t.Context(), "a/1")
	require.NoError(t, err)
	require.Equal(t, 2, n)
	rest, err := SweepAll(t.Context(), s, "a/")
	require.NoError(t, err)
	require.Equal(t, 1, rest, "a longer key was swept with a shorter one")
	rest, err = SweepAll(t.Context(), s, "")
	require.NoError(t, err)
	require.Equal(t, 1, rest)
	require.Empty(t, files(t, s))
}

// TestDirectoryFull writes to a disk that is full: a small one, mounted for the purpose.
func TestDirectoryFull(t *testing.T) {
	if os.Getenv("STORE_TEST_MOUNTS") == "" {
		// In a mount namespace of its own, which needs no root where users may have one.
		test := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestDirectoryFull$", "-test.v")
		test.Env = append(os.Environ(), "STORE_TEST_MOUNTS=1")
		test.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
		if os.Getuid() != 0 {
			test.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
			test.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
			test.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
		}
		out, err := test.CombinedOutput()
		if errors.Is(err, syscall.EPERM) {
			t.Skip("this machine lets nobody mount a small disk")
		}
		require.NoError(t, err, string(out))
		require.Contains(t, string(out), "--- PASS: TestDirectoryFull")
		return
	}
	s := openDir(t)
	require.NoError(t, syscall.Mount("none", s.dir, "tmpfs", 0, "size=256k"))
	defer func() { require.NoError(t, syscall.Unmount(s.dir, 0)) }()
	const until = 30 * time.Minute
	small := put(t, s, "a/small", "before", PutOptions{RetainUntil: time.Now().Add(until)})
	before := files(t, s)
	for _, key := range []string{"a/big", "b/c/big", "a/small"} {
		_, err := s.Put(t.Context(), key, bytes.NewReader(make([]byte, 1<<20)), PutOptions{RetainUntil: inAnHour()})
		require.ErrorIs(t, err, ErrFull)
		require.ErrorIs(t, err, syscall.ENOSPC)
		require.ErrorContains(t, err, s.URL()+"/"+key)
		require.ErrorContains(t, err, "free space")
		require.Equal(t, before, files(t, s), "something was left behind")
	}
	// Full to the last block: not even its meta fits.
	filler, err := os.Create(filepath.Join(s.dir, "filler"))
	require.NoError(t, err)
	_, err = io.Copy(filler, neverEnding{})
	require.ErrorIs(t, err, syscall.ENOSPC)
	require.NoError(t, filler.Close())
	before = files(t, s)
	require.ErrorIs(t, s.SetLegalHold(t.Context(), "a/small", small.Version, true), ErrFull)
	_, err = s.Put(t.Context(), "empty", strings.NewReader(""), PutOptions{})
	require.ErrorIs(t, err, ErrFull)
	require.Equal(t, before, files(t, s), "something was left behind")
	require.Equal(t, "before", string(readAll(t, s, "a/small", "")))

	require.NoError(t, os.Remove(filler.Name()))
	put(t, s, "a/big", "fits now", PutOptions{IfNoneMatch: true})
}

type neverEnding struct{}

func (neverEnding) Read(p []byte) (int, error) { return len(p), nil }
