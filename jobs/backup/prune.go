package backup

import (
	"context"
	"errors"
	"strings"
	"time"

	"pgcustody/jobs/store"
)

// Pruned is what was deleted because its time is over.
type Pruned struct {
	// Keys and Data are objects with keys and with data; a backup that was killed on
	// its way may have left some.
	Keys int `json:"keys"`
	Data int `json:"data"`
	// Uploads are unfinished ones.
	Uploads int `json:"uploads"`
}

// Prune deletes backups whose lock is over, every version by its id: those of the
// keys without exception, of the data all but the newest that is complete. A
// manifest goes before what it names, so that no backup is ever half there.
func Prune(ctx context.Context, s store.Store) (Pruned, error) {
	var done Pruned
	list, err := List(ctx, s)
	if err != nil {
		return done, err
	}
	newest := ""
	for _, entry := range list {
		if entry.Problem == "" && entry.HasData {
			newest = entry.ID
		}
	}
	var failures error
	drop := func(prefix, suffix string, count *int) {
		byKey, order, err := versionsOf(s.Versions(ctx, prefix))
		failures = errors.Join(failures, err)
		for _, key := range order {
			id, _, _ := strings.Cut(strings.TrimPrefix(key, prefix), "/")
			if !strings.HasSuffix(key, suffix) || !backupID.MatchString(id) || prefix == DataPrefix && id == newest {
				continue
			}
			over, err := lockIsOver(ctx, s, byKey[key])
			if err == nil && over {
				_, err = s.Delete(ctx, key)
				if err == nil && count != nil {
					*count++
				}
			}
			failures = errors.Join(failures, err)
		}
	}
	drop(KeysPrefix, ".age", &done.Keys)
	drop(DataPrefix, "/manifest.json", nil)
	drop(DataPrefix, ".age", &done.Data)
	return done, failures
}

// slack is for clocks that differ, and for stores that report whole seconds.
const slack = 5 * time.Second

// lockIsOver tells whether every version was locked and is so no longer. What never
// was is not ours to delete.
func lockIsOver(ctx context.Context, s store.Store, versions []store.Info) (bool, error) {
	for _, version := range versions {
		info, err := s.Head(ctx, version.Key, version.Version)
		if errors.Is(err, store.ErrNotFound) {
			continue // gone meanwhile
		}
		if err != nil {
			return false, err
		}
		if info.RetainMode == "" || info.RetainUntil.Add(slack).After(time.Now()) {
			return false, nil
		}
	}
	return true, nil
}
