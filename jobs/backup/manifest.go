package backup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"regexp"
	"strings"
	"time"

	"pgcustody/jobs/store"
)

// Where a backup is in the store. Keys lie apart, so that rules of the bucket
// and rights can tell them from the data.
const (
	DataPrefix = "backups/"
	KeysPrefix = "key-backups/"
)

var backupID = regexp.MustCompile(`^[0-9]{8}T[0-9]{6}Z-[a-z2-7]{8}$`)

func manifestKey(id string) string { return DataPrefix + id + "/manifest.json" }
func dataKey(id string) string     { return DataPrefix + id + "/data.dump.age" }
func keysKey(id string) string     { return KeysPrefix + id + "/keys.dump.age" }

const (
	manifestFormat  = "pgcustody-backup"
	manifestVersion = 1
	// maxManifest is far beyond a manifest of thousands of tenants.
	maxManifest = 16 << 20
)

// Manifest says what a backup is. It is written last: objects without one are no
// backup.
type Manifest struct {
	Format  string `json:"format"`
	Version int    `json:"version"`
	ID      string `json:"id"`

	StartedAt  time.Time `json:"started_at"`
	SnapshotAt time.Time `json:"snapshot_at"` // what was committed then is in it
	EndedAt    time.Time `json:"ended_at"`

	Database         string `json:"database"`
	SystemIdentifier string `json:"system_identifier"`
	LSN              string `json:"lsn"`     // of the write-ahead log, after the snapshot was taken
	Horizon          string `json:"horizon"` // transactions below it are in the snapshot
	Postgres         string `json:"postgres"`
	PostgresMajor    int    `json:"postgres_major"`
	SchemaVersion    int64  `json:"schema_version"`
	// What a cluster must have before this can be restored into it.
	Roles      []string    `json:"roles"`
	Extensions []Extension `json:"extensions"`

	Data Stored `json:"data"`
	Keys Stored `json:"keys"`
	// Recipients are the public keys that it is encrypted to.
	Recipients []string `json:"recipients"`
	// KEKs are the versions of each tenant's key-encryption key under which Keys has
	// data keys: one of them, of each tenant, is needed for as long as this backup is.
	KEKs []TenantKEKs `json:"keks"`

	Actor  string `json:"actor"`
	Login  string `json:"login"`
	Host   string `json:"host"`
	Binary string `json:"binary"`
}

// Stored is an object of a backup.
type Stored struct {
	Key           string    `json:"key"`
	ObjectVersion string    `json:"object_version"`
	Size          int64     `json:"size"`
	SHA256        string    `json:"sha256"` // of what is stored, which is ciphertext
	LockedUntil   time.Time `json:"locked_until"`
}

// Extension is one that the database has.
type Extension struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	Trusted bool   `json:"trusted"` // may be brought back without a superuser
}

// TenantKEKs is which versions of its key-encryption key a tenant had.
type TenantKEKs struct {
	Tenant string `json:"tenant"`
	Valid  []int  `json:"valid"`
}

// check refuses what is no manifest of this program's.
func (m *Manifest) check(key string) error {
	wrong := func(what string) error {
		return &Error{Code: exitCheck, What: "manifest cannot be used", Object: key, Do: what}
	}
	switch {
	case m.Format != manifestFormat:
		return wrong("it is none of pgcustody's")
	case m.Version != manifestVersion:
		return wrong(fmt.Sprintf("it is of version %d: use a newer pgcustody", m.Version))
	case !backupID.MatchString(m.ID) || key != manifestKey(m.ID) || m.Data.Key != dataKey(m.ID) || m.Keys.Key != keysKey(m.ID):
		return wrong("it is another backup's")
	}
	return nil
}

// Listed is a backup of the store.
type Listed struct {
	*Manifest
	ManifestVersion string `json:"manifest_object_version"`
	// HasData and HasKeys say whether the objects are still there.
	HasData bool `json:"has_data"`
	HasKeys bool `json:"has_keys"`
	// Problem is why the manifest cannot be read.
	Problem string `json:"problem,omitempty"`
}

// List returns the complete backups of a store, the oldest first. What somebody hid
// under a delete marker, or under another version, is seen all the same.
func List(ctx context.Context, s store.Store) ([]Listed, error) {
	there := map[string]bool{} // key and version
	list := []Listed{}
	for _, prefix := range []string{KeysPrefix, DataPrefix} {
		last := ""
		for object, err := range s.Versions(ctx, prefix) {
			if err != nil {
				return nil, err
			}
			there[object.Key+"\n"+object.Version] = true
			first := object.Key != last
			last = object.Key
			if !strings.HasSuffix(object.Key, "/manifest.json") || !first {
				continue
			}
			entry := Listed{Manifest: &Manifest{}, ManifestVersion: object.Version}
			manifest, err := readManifest(ctx, s, object.Key, object.Version)
			var refused *Error
			switch {
			case errors.As(err, &refused):
				entry.ID, entry.Problem = strings.TrimSuffix(strings.TrimPrefix(object.Key, DataPrefix), "/manifest.json"), refused.Do
			case err != nil:
				return nil, err
			default:
				entry.Manifest = manifest
			}
			list = append(list, entry)
		}
	}
	for i, entry := range list {
		list[i].HasData = there[entry.Data.Key+"\n"+entry.Data.ObjectVersion]
		list[i].HasKeys = there[entry.Keys.Key+"\n"+entry.Keys.ObjectVersion]
	}
	return list, nil
}

func readManifest(ctx context.Context, s store.Store, key, version string) (*Manifest, error) {
	object, err := s.Get(ctx, key, version)
	if err != nil {
		return nil, err
	}
	defer object.Close()
	text, err := io.ReadAll(io.LimitReader(object, maxManifest))
	if err != nil {
		return nil, err
	}
	m := new(Manifest)
	if err := json.Unmarshal(text, m); err != nil {
		return nil, &Error{Code: exitCheck, What: "manifest cannot be used", Object: key, Do: "it is no JSON of a manifest"}
	}
	return m, m.check(key)
}

// find returns the backup with an id, or the latest.
func find(ctx context.Context, s store.Store, id string) (*Listed, error) {
	if id != "latest" && !backupID.MatchString(id) {
		return nil, &Error{Code: exitUsage, What: "--backup", Object: fmt.Sprintf("%q", id), Do: "give an id as pgcustody backup list shows it, or latest"}
	}
	list, err := List(ctx, s)
	if err != nil {
		return nil, err
	}
	var found *Listed
	for i, entry := range list {
		if id == "latest" && entry.Problem == "" && entry.HasData || entry.ID == id {
			found = &list[i]
		}
	}
	switch {
	case found == nil:
		return nil, &Error{Code: exitRefused, What: "no such backup", Object: s.URL() + "/" + DataPrefix + id, Do: "pgcustody backup list shows which there are"}
	case found.Problem != "":
		return nil, &Error{Code: exitCheck, What: "manifest cannot be used", Object: manifestKey(id), Do: found.Problem}
	}
	return found, nil
}

// versionsOf groups what a store lists by key.
func versionsOf(objects iter.Seq2[store.Info, error]) (map[string][]store.Info, []string, error) {
	byKey, order := map[string][]store.Info{}, []string{}
	for object, err := range objects {
		if err != nil {
			return nil, nil, err
		}
		if byKey[object.Key] == nil {
			order = append(order, object.Key)
		}
		byKey[object.Key] = append(byKey[object.Key], object)
	}
	return byKey, order, nil
}
