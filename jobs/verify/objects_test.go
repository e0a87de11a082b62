package verify_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/stretchr/testify/require"

	"pgcustody/jobs/ledger"
	"pgcustody/jobs/segment"
	"pgcustody/jobs/store"
	"pgcustody/jobs/verify"
)

func fromObjects(o *verify.Options) { o.Database = nil }

// TestObjects verifies from the bucket alone: whatever is done to the database, and
// everything that is done to the bucket.
func TestObjects(t *testing.T) {
	t.Parallel()
	tile := ledger.TileKey(origin, 0, 1, 256)
	edge := ledger.TileKey(origin, 0, 2, 757-512)
	top := ledger.TileKey(origin, 1, 0, 2)
	flip := func(key string) func(f *fixture) {
		return func(f *fixture) {
			f.only(func(k string, content []byte) []byte {
				if k == key {
					content[100] ^= 1
				}
				return content
			})
		}
	}
	over := func(key string) func(f *fixture) {
		return func(f *fixture) { f.ownLog(); f.put(key, []byte("x")) }
	}
	inPlace := func(name string, do func(f *fixture), found ...string) tampering {
		return tampering{name: name, places: []string{hot}, do: func(f *fixture, _ event) { do(f) }, found: just(found...)}
	}
	cases := append(bucketTamperings(),
		inPlace("nothing", func(*fixture) {}),
		inPlace("tile put over", over(tile), "object_hidden "+tile),
		inPlace("tile changed", flip(tile), "object_changed "+tile),
		inPlace("tile at the edge changed", flip(edge), "object_changed "+edge),
		inPlace("tile of level 1 changed", func(f *fixture) {
			f.only(func(k string, content []byte) []byte {
				if k == top {
					content[0] ^= 1
				}
				return content
			})
		}, "object_changed "+top),
		inPlace("tile gone", func(f *fixture) {
			f.only(func(k string, content []byte) []byte {
				if k == top {
					return nil
				}
				return content
			})
		}, "object_changed "+top),
	)
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := copyOf(t)
			require.Equal(t, 757, len(f.events), "names of tiles depend on it")
			c.do(f, f.at(hot))
			report := f.verify(append(c.change, fromObjects)...)
			want := c.found(f, f.at(hot), hot)
			if want == nil {
				want = []string{}
			}
			require.Equal(t, want, told(report.Findings))
			if len(want) == 0 {
				require.EqualValues(t, 270, report.Archived)
				require.EqualValues(t, len(f.events), report.Leaves)
			}
		})
	}
}

// TestArchiveObjects tampers with the archive.
func TestArchiveObjects(t *testing.T) {
	t.Parallel()
	day := func(f *fixture, place string) segment.Name { return segment.NewName(f.at(place).occurred.UTC(), 1) }
	for name, c := range map[string]struct {
		do    func(f *fixture)
		found func(f *fixture) []string
		// objects tells whether only the verification from objects reads the lines.
		objects bool
	}{
		"events put over": {
			do:    func(f *fixture) { f.put(day(f, archived).ObjectKey(), []byte("x")) },
			found: func(f *fixture) []string { return []string{"object_hidden " + day(f, archived).ObjectKey()} }},
		"manifest put over": {
			do:    func(f *fixture) { f.put(day(f, archived).ManifestKey(), []byte("x")) },
			found: func(f *fixture) []string { return []string{"object_hidden " + day(f, archived).ManifestKey()} }},
		"forged segment": {
			do: func(f *fixture) {
				// Of a day that has no segment yet, as if its only event were one that never was.
				e := f.at(archived)
				forgedDay := segment.NewName(e.occurred.UTC().AddDate(0, 0, 1), 1)
				f.forgeSegment(forgedDay, e)
			},
			found: func(f *fixture) []string {
				return []string{"object_changed " + segment.NewName(f.at(archived).occurred.UTC().AddDate(0, 0, 1), 1).ObjectKey()}
			}, objects: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := build(t)
			c.do(f)
			require.Equal(t, c.found(f), told(f.verify(fromObjects).Findings))
			want := c.found(f)
			if c.objects {
				want = []string{}
			}
			require.Equal(t, want, told(f.verify().Findings))
		})
	}
}

// forgeSegment archives an event that never was, and says that it is the leaf of
// another.
func (f *fixture) forgeSegment(name segment.Name, like event) {
	f.Helper()
	var entry string
	require.NoError(f, f.conn.QueryRow(f.Context(), "select custody.audit_entry(a) from custody_data.audit_logs a"+thisRow, like.id, like.occurred).Scan(&entry))
	at := like.occurred.UTC().AddDate(0, 0, 1)
	entry = strings.Replace(entry, like.occurred.UTC().Format(time.DateOnly), at.Format(time.DateOnly), 1)
	f.putSegment(name, segment.Runs{{First: like.leaf, Count: 1}}, []string{entry}, time.Now().Add(24*time.Hour))
}

// TestLogins verifies as each login that may: the one of the jobs under its policies
// and that of backups.
func TestLogins(t *testing.T) {
	t.Parallel()
	f := copyOf(t)
	for _, login := range []string{"custody_dump", "custody_runner"} {
		conn := f.login(login)
		report := f.verify(func(o *verify.Options) {
			o.Database = conn
			o.Prepare = inSystemContext
		})
		require.Equal(t, []string{}, told(report.Findings), login)
		require.EqualValues(t, len(f.events), report.Events)
		require.NotEmpty(t, report.Notes)
	}
}

// refusing is a store that is asked before it gives an object.
type refusing struct {
	store.Store
	ask func(key string) error
}

func (s refusing) Get(ctx context.Context, key, version string) (*store.Object, error) {
	if err := s.ask(key); err != nil {
		return nil, err
	}
	return s.Store.Get(ctx, key, version)
}

// TestObjectsThatCannotBeRead has the store fail, and the caller give up, while tiles
// and the archive are read side by side: nothing is found, and nothing said to be intact.
func TestObjectsThatCannotBeRead(t *testing.T) {
	t.Parallel()
	f := copyOf(t)
	key, err := ledger.ParseVerifierKey(f.vkey)
	require.NoError(t, err)
	for name, of := range map[string]func(key string) bool{
		"tile":      func(key string) bool { return strings.HasPrefix(key, ledger.Prefix(origin)+"tile/") },
		"upper":     func(key string) bool { return strings.HasPrefix(key, ledger.Prefix(origin)+"tile/1/") },
		"manifest":  func(key string) bool { return strings.HasSuffix(key, ".manifest.json") },
		"its lines": func(key string) bool { return strings.HasSuffix(key, ".jsonl.zst.age") },
	} {
		for _, gaveUp := range []bool{false, true} {
			ctx, cancel := context.WithCancel(t.Context())
			want := store.ErrUnreachable
			if gaveUp {
				want = context.Canceled
			}
			report, err := verify.Run(ctx, verify.Options{Origin: origin, Keys: []ledger.VerifierKey{key}, Identities: []age.Identity{opens},
				Store: refusing{f.store, func(key string) error {
					switch {
					case !of(key):
						return nil
					case gaveUp:
						cancel()
						return nil
					}
					return &store.Error{Op: "get", Object: key, Kind: store.ErrUnreachable}
				}}})
			cancel()
			require.ErrorIs(t, err, want, "%s, given up: %t", name, gaveUp)
			require.ErrorAs(t, err, new(*verify.CannotCheck))
			require.Equal(t, verify.StatusUnchecked, report.Status)
			require.Empty(t, report.Findings)
		}
	}
}
