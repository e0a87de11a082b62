package jobs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"pgcustody/db"
	"pgcustody/jobs/fault"
	"pgcustody/jobs/ledger"
	"pgcustody/jobs/segment"
	"pgcustody/jobs/store"
)

const (
	// indexOverlap is how far behind the newest index segments are looked at again: a
	// transaction that recorded one may have ended later than one that began after it,
	// and a writer that nobody waits for any more may still write.
	indexOverlap = 48 * time.Hour
	// indexLines bounds an index: signed notes are read whole.
	indexLines = 2000
	indexLimit = 1 << 20
	// indexKept is how long an index is locked at least.
	indexKept = 30 * 24 * time.Hour
	// indexWait is how long a run waits for who else signs.
	indexWait = 10 * time.Second
)

// index writes the signed index of what came to the archive, and went from it, since
// the last one. What that costs grows with what is new.
func (w *ArchiveWorker) index(ctx context.Context, run *Run) error {
	if w.Signer == nil {
		run.Count("index_skipped", 1)
		return nil
	}
	for {
		wrote, err := w.indexOnce(ctx, run)
		switch {
		case errors.Is(err, store.ErrExists): // another worker was first
		case errors.Is(err, ledger.ErrBusy):
			run.Count("index_skipped", 1) // the next run lists it
			return nil
		case err != nil:
			return fail("index archive", err)
		case !wrote:
			return nil
		}
	}
}

// indexOnce writes the next index, if there is anything to list.
func (w *ArchiveWorker) indexOnce(ctx context.Context, run *Run) (bool, error) {
	last, err := newestIndex(ctx, w.Store)
	if err != nil {
		return false, err
	}
	next := ledger.ArchiveIndex{Number: last + 1, Time: time.Now().UTC().Truncate(time.Second)}
	listed, since := map[string]bool{}, time.Time{}
	for number := last; number > 0; number-- {
		content, index, err := readIndex(ctx, w.Deps, number)
		if err != nil {
			return false, err
		}
		if number == last {
			next.Previous, since = sha256.Sum256(content), index.Time.Add(-indexOverlap)
		}
		for _, line := range index.Lines {
			listed[line] = true
		}
		if index.Time.Before(since) {
			break
		}
	}
	var segments []db.ArchivedSinceRow
	err = InContext(ctx, w.Pool, w.archiveScope(), func(tx pgx.Tx) (err error) {
		segments, err = db.New().ArchivedSince(ctx, tx, &since)
		return err
	})
	if err != nil {
		return false, err
	}
	until := next.Time.Add(indexKept)
	add := func(retain time.Time, form string, args ...any) {
		line := fmt.Sprintf(form, args...)
		if !listed[line] && len(next.Lines) < indexLines {
			listed[line] = true
			next.Lines = append(next.Lines, line)
			if retain.After(until) {
				until = retain
			}
		}
	}
	for _, s := range segments {
		if s.Expired {
			add(time.Time{}, "expired %s %x", s.ManifestKey, sha256.Sum256([]byte(s.Leaves)))
			continue
		}
		manifest, version, err := findManifest(ctx, w.Store, s.ManifestKey, s.ManifestSha256)
		if err != nil {
			return false, err
		}
		add(s.RetainUntil, "segment %s %s %x", s.ManifestKey, version, s.ManifestSha256)
		known := map[string]bool{s.ManifestKey + " " + version: true, s.ObjectKey + " " + manifest.ObjectVersion: true}
		for _, superseded := range manifest.SupersededVersions {
			known[s.ObjectKey+" "+superseded] = true
		}
		for _, key := range []string{s.ObjectKey, s.ManifestKey} {
			versions, err := versionsOf(ctx, w.Store, key)
			if err != nil {
				return false, err
			}
			for _, info := range versions {
				if name := key + " " + info.Version; !known[name] {
					add(time.Time{}, "orphan %s", name)
				}
			}
		}
	}
	if len(next.Lines) == 0 {
		return false, nil
	}
	waiting, cancel := context.WithTimeout(ctx, indexWait)
	defer cancel()
	signed, err := w.Signer.SignArchiveIndex(waiting, next)
	if err != nil {
		return false, err
	}
	fault.Point("before put index")
	key := ledger.ArchiveIndexKey(next.Number)
	put, err := w.Store.Put(ctx, key, bytes.NewReader(signed), store.PutOptions{RetainUntil: until, ContentType: "text/plain", IfNoneMatch: true})
	if err != nil {
		return false, err
	}
	fault.Point("after put index")
	back, err := readAll(ctx, w.Store, key, put.Version, indexLimit)
	if err != nil {
		return false, err
	}
	if !bytes.Equal(back, signed) {
		return false, &ArchiveFinding{Object: key, What: "index is not what was written", Do: "find out who wrote it"}
	}
	run.Count("indexes", 1)
	return true, nil
}

// readIndex reads an index of this log.
func readIndex(ctx context.Context, d Deps, number int64) ([]byte, ledger.ArchiveIndex, error) {
	key := ledger.ArchiveIndexKey(number)
	content, err := readAll(ctx, d.Store, key, "", indexLimit)
	if err != nil {
		return nil, ledger.ArchiveIndex{}, err
	}
	index, err := ledger.OpenArchiveIndex(content, d.Signer.Origin(), d.Signer.VerifierKeys())
	if err != nil || index.Number != number {
		return nil, ledger.ArchiveIndex{}, &ArchiveFinding{Object: key, What: "index is not one of this log's signer", Do: "find out who wrote it, hide it under a delete marker and run again"}
	}
	return content, index, nil
}

// newestIndex finds the number of the newest index, 0 where there is none. They have
// no gaps, so that a search by halves asks for a few of them only.
func newestIndex(ctx context.Context, s store.Store) (int64, error) {
	there := func(number int64) (bool, error) {
		_, err := s.Head(ctx, ledger.ArchiveIndexKey(number), "")
		if errors.Is(err, store.ErrNotFound) {
			return false, nil
		}
		return err == nil, err
	}
	low, high := int64(0), int64(1) // low is there, or 0; high is not
	for {
		ok, err := there(high)
		if err != nil {
			return 0, err
		}
		if !ok {
			break
		}
		low, high = high, 2*high
	}
	for high-low > 1 {
		middle := (low + high) / 2
		ok, err := there(middle)
		if err != nil {
			return 0, err
		}
		if ok {
			low = middle
		} else {
			high = middle
		}
	}
	return low, nil
}

// findManifest reads the manifest that was recorded, which may lie under a delete
// marker or another version, and says which version it is.
func findManifest(ctx context.Context, s store.Store, key string, digest []byte) (*segment.Manifest, string, error) {
	read := func(version string) (*segment.Manifest, string, error) {
		object, err := s.Get(ctx, key, version)
		if err != nil {
			return nil, "", err
		}
		defer object.Close()
		sum := sha256.New()
		manifest, err := segment.DecodeManifest(io.TeeReader(object, sum))
		if unread := new(store.Error); errors.As(err, &unread) {
			return nil, "", err
		}
		if err != nil || !bytes.Equal(sum.Sum(nil), digest) {
			return nil, "", nil
		}
		return manifest, object.Info.Version, nil
	}
	manifest, version, err := read("")
	if err != nil && !errors.Is(err, store.ErrNotFound) || manifest != nil {
		return manifest, version, err
	}
	versions, err := versionsOf(ctx, s, key)
	if err != nil {
		return nil, "", err
	}
	for _, info := range versions {
		if manifest, _, err := read(info.Version); err != nil || manifest != nil {
			return manifest, info.Version, err
		}
	}
	return nil, "", &ArchiveFinding{Object: key, What: "manifest on record is not in the store", Do: "run pgcustody archive verify"}
}

// versionsOf lists the versions of one key, the oldest first.
func versionsOf(ctx context.Context, s store.Store, key string) (all []store.Info, err error) {
	for info, err := range s.Versions(ctx, key) {
		if err != nil {
			return nil, err
		}
		if info.Key == key {
			all = append(all, info)
		}
	}
	return all, nil
}

// readAll reads an object of at most so many bytes.
func readAll(ctx context.Context, s store.Store, key, version string, most int64) ([]byte, error) {
	object, err := s.Get(ctx, key, version)
	if err != nil {
		return nil, err
	}
	defer object.Close()
	content, err := io.ReadAll(io.LimitReader(object, most+1))
	if err == nil && int64(len(content)) > most {
		err = fmt.Errorf("%s has more than %d bytes", key, most)
	}
	return content, err
}

// isIndex tells whether an object of the archive is one of its indexes.
func isIndex(key string) bool { return strings.HasPrefix(key, ledger.ArchiveIndexPrefix) }

// indexedOrphans are the versions that indexes list as orphans: KEY VERSION. Without a
// signer there are no indexes.
func indexedOrphans(ctx context.Context, d Deps) (map[string]bool, error) {
	orphans := map[string]bool{}
	if d.Signer == nil {
		return orphans, nil
	}
	last, err := newestIndex(ctx, d.Store)
	for number := int64(1); number <= last && err == nil; number++ {
		var index ledger.ArchiveIndex
		if _, index, err = readIndex(ctx, d, number); err == nil {
			for _, line := range index.Lines {
				if orphan, ok := strings.CutPrefix(line, "orphan "); ok {
					orphans[orphan] = true
				}
			}
		}
	}
	return orphans, err
}
