package keys

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"pgcustody/jobs/keys/keystest"
)

func newFiles(t testing.TB) *fileProvider {
	return &fileProvider{dir: filepath.Join(t.TempDir(), "keys")}
}

func list(t testing.TB, dir string) (names []string) {
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	return names
}

func TestFileMakesGetsDestroys(t *testing.T) {
	t.Parallel()
	ctx, p := t.Context(), newFiles(t)

	_, err := p.KEK(ctx, Ref{Tenant: "acme", Version: 1})
	requireKind(t, err, ErrUnknown)
	_, err = os.Stat(p.dir)
	require.ErrorIs(t, err, os.ErrNotExist, "only NewKEK makes the directory")

	ref, key, err := p.NewKEK(ctx, "acme", 1)
	require.NoError(t, err)
	require.Equal(t, Ref{Tenant: "acme", Version: 1}, ref)
	require.Empty(t, weakness(key.Bytes()))

	require.Equal(t, []string{"acme.1.key"}, list(t, p.dir))
	path := filepath.Join(p.dir, "acme.1.key")
	for file, mode := range map[string]os.FileMode{p.dir: 0o700 | os.ModeDir, path: 0o600} {
		info, err := os.Stat(file)
		require.NoError(t, err)
		require.Equal(t, mode, info.Mode())
	}
	content, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, hex.EncodeToString(key.Bytes())+"\n", string(content))

	again, err := p.KEK(ctx, ref)
	require.NoError(t, err)
	require.Equal(t, key.Bytes(), again.Bytes())
	_, again, err = p.NewKEK(ctx, "acme", 1)
	require.NoError(t, err)
	require.Equal(t, key.Bytes(), again.Bytes(), "who was killed may begin again")

	for _, other := range []Ref{{Tenant: "acme", Version: 2}, {Tenant: "acme2", Version: 1}} {
		_, key2, err := p.NewKEK(ctx, other.Tenant, other.Version)
		require.NoError(t, err)
		require.NotEqual(t, key.Bytes(), key2.Bytes())
	}

	// The descriptor stays on the bytes that Destroy overwrites before it unlinks.
	old, err := os.Open(path)
	require.NoError(t, err)
	defer old.Close()
	for range 2 {
		final, err := p.Destroy(ctx, ref)
		require.NoError(t, err)
		require.True(t, final)
		_, err = p.KEK(ctx, ref)
		requireKind(t, err, ErrDestroyed, key.Bytes())
		_, _, err = p.NewKEK(ctx, "acme", 1)
		requireKind(t, err, ErrDestroyed, key.Bytes())
	}
	left := make([]byte, len(content))
	_, err = old.ReadAt(left, 0)
	require.NoError(t, err)
	keystest.RequireSilent(t, string(left), key.Bytes())
	require.Equal(t, []string{"acme.1.destroyed", "acme.2.key", "acme2.1.key"}, list(t, p.dir))
}

func TestFileDestroyNeedsAKey(t *testing.T) {
	t.Parallel()
	p := newFiles(t)
	_, err := p.Destroy(t.Context(), Ref{Tenant: "acme", Version: 1})
	requireKind(t, err, ErrUnknown)
	require.NoError(t, os.Mkdir(p.dir, 0o700))
	_, err = p.Destroy(t.Context(), Ref{Tenant: "acme", Version: 1})
	requireKind(t, err, ErrUnknown)
	require.Empty(t, list(t, p.dir))
}

// TestFileAfterKills starts from what a process leaves that is killed.
func TestFileAfterKills(t *testing.T) {
	t.Parallel()
	ctx, p := t.Context(), newFiles(t)
	ref, key, err := p.NewKEK(ctx, "acme", 1)
	require.NoError(t, err)
	path := filepath.Join(p.dir, "acme.1.key")

	// A maker, before and after it linked the key.
	require.NoError(t, os.WriteFile(filepath.Join(p.dir, ".acme.1.AAAA.tmp"), []byte(hex.EncodeToString(random(30))), 0o600))
	require.NoError(t, os.Link(path, filepath.Join(p.dir, ".acme.1.BBBB.tmp")))
	require.NoError(t, os.WriteFile(filepath.Join(p.dir, ".acme.12.CCCC.tmp"), nil, 0o600))
	again, err := p.KEK(ctx, ref)
	require.NoError(t, err)
	require.Equal(t, key.Bytes(), again.Bytes())

	// A destroyer, after it dug the grave.
	root, err := os.OpenRoot(p.dir)
	require.NoError(t, err)
	defer root.Close()
	require.NoError(t, bury(root, ref))
	_, err = p.KEK(ctx, ref)
	requireKind(t, err, ErrDestroyed, key.Bytes())

	final, err := p.Destroy(ctx, ref)
	require.NoError(t, err)
	require.True(t, final)
	require.Equal(t, []string{".acme.12.CCCC.tmp", "acme.1.destroyed"}, list(t, p.dir))
}

func TestFileRefusesWhatOthersMayRead(t *testing.T) {
	t.Parallel()
	ctx, p := t.Context(), newFiles(t)
	ref, key, err := p.NewKEK(ctx, "acme", 1)
	require.NoError(t, err)
	path := filepath.Join(p.dir, "acme.1.key")

	refused := func(file string) {
		t.Helper()
		_, err := p.KEK(ctx, ref)
		require.Contains(t, requireKind(t, err, ErrExposed, key.Bytes()), file)
		_, _, err = p.NewKEK(ctx, "acme", 1)
		requireKind(t, err, ErrExposed, key.Bytes())
	}
	for _, mode := range []os.FileMode{0o640, 0o604, 0o620, 0o601, 0o644, 0o777} {
		require.NoError(t, os.Chmod(path, mode))
		refused("acme.1.key")
	}
	for _, mode := range []os.FileMode{0o400, 0o600} {
		require.NoError(t, os.Chmod(path, mode))
		_, err = p.KEK(ctx, ref)
		require.NoError(t, err)
	}
	for _, mode := range []os.FileMode{0o750, 0o705, 0o710, 0o777} {
		require.NoError(t, os.Chmod(p.dir, mode))
		refused(p.dir)
	}
	require.NoError(t, os.Chmod(p.dir, 0o700))

	if os.Geteuid() == 0 {
		require.NoError(t, os.Chown(path, 12345, -1))
		refused("acme.1.key")
		require.NoError(t, os.Chown(path, 0, -1))
		require.NoError(t, os.Chown(p.dir, 12345, -1))
		refused(p.dir)
		require.NoError(t, os.Chown(p.dir, 0, -1))
	}

	// What has been read by others can still be destroyed.
	require.NoError(t, os.Chmod(p.dir, 0o755))
	require.NoError(t, os.Chmod(path, 0o444))
	_, err = p.Destroy(ctx, ref)
	require.NoError(t, err)
	require.NoFileExists(t, path)
}

func TestFileRefusesWhatIsNoKey(t *testing.T) {
	t.Parallel()
	ctx, p := t.Context(), newFiles(t)
	require.NoError(t, os.Mkdir(p.dir, 0o700))
	path, ref := filepath.Join(p.dir, "acme.1.key"), Ref{Tenant: "acme", Version: 1}
	b := random(Size)
	write := func(content string) {
		require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
	}

	for name, content := range map[string]string{
		"empty": "", "short": hex.EncodeToString(b[:63]), "raw": string(b), "cut": hex.EncodeToString(b)[:127], "twice": hex.EncodeToString(b) + hex.EncodeToString(b),
		"weak": hex.EncodeToString(weakKeys(t)["RFC 7518"]),
	} {
		write(content)
		_, err := p.KEK(ctx, ref)
		require.Contains(t, requireKind(t, err, ErrWeak, b), "acme.1.key", name)
		_, _, err = p.NewKEK(ctx, "acme", 1)
		requireKind(t, err, ErrWeak, b)
	}
	development := &fileProvider{dir: p.dir, development: true}
	write(hex.EncodeToString(weakKeys(t)["RFC 7518"]))
	_, err := development.KEK(ctx, ref)
	require.NoError(t, err)

	write(strings.Repeat(" ", maxFileSize) + hex.EncodeToString(b))
	_, err = p.KEK(ctx, ref)
	requireKind(t, err, ErrUnavailable, b)
	require.NoError(t, os.Remove(path))
	require.NoError(t, os.Mkdir(path, 0o700))
	_, err = p.KEK(ctx, ref)
	requireKind(t, err, ErrUnavailable, b)
	require.NoError(t, os.Remove(path))

	outside := filepath.Join(t.TempDir(), "outside")
	require.NoError(t, os.WriteFile(outside, []byte(hex.EncodeToString(b)), 0o600))
	require.NoError(t, os.Symlink(outside, path))
	_, err = p.KEK(ctx, ref)
	require.Error(t, err, "links out of the directory are not followed")
	keystest.RequireSilent(t, err.Error(), b)

	// As secrets are mounted in Kubernetes: a link that stays inside.
	require.NoError(t, os.Remove(path))
	require.NoError(t, os.Mkdir(filepath.Join(p.dir, "..data"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(p.dir, "..data", "key"), []byte(hex.EncodeToString(b)), 0o400))
	require.NoError(t, os.Symlink("..data/key", path))
	key, err := p.KEK(ctx, ref)
	require.NoError(t, err)
	require.Equal(t, b, key.Bytes())
}

// TestFileMakersAtOnce: one wins, the others read what it wrote.
func TestFileMakersAtOnce(t *testing.T) {
	t.Parallel()
	ctx, p := t.Context(), newFiles(t)
	for version := 1; version <= 20; version++ {
		const makers = 16
		made := make([]Key, makers)
		errs := make([]error, makers)
		start := make(chan struct{})
		var all sync.WaitGroup
		for i := range makers {
			all.Go(func() {
				<-start
				_, made[i], errs[i] = p.NewKEK(ctx, "acme", version)
			})
		}
		close(start)
		all.Wait()
		for i := range makers {
			require.NoError(t, errs[i])
			require.Equal(t, made[0].Bytes(), made[i].Bytes())
		}
	}
	require.Len(t, list(t, p.dir), 20, "nothing else stays behind")
}

// TestFileMakersAndDestroyersAtOnce: no key outlives its destruction.
func TestFileMakersAndDestroyersAtOnce(t *testing.T) {
	t.Parallel()
	ctx, p := t.Context(), newFiles(t)
	for version := 1; version <= 50; version++ {
		ref, first, err := p.NewKEK(ctx, "acme", version)
		require.NoError(t, err)
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() {
				_, key, err := p.NewKEK(ctx, "acme", version)
				if err == nil {
					require.Equal(t, first.Bytes(), key.Bytes())
				} else {
					requireKind(t, err, ErrDestroyed)
				}
			})
			all.Go(func() {
				key, err := p.KEK(ctx, ref)
				if err == nil {
					require.Equal(t, first.Bytes(), key.Bytes())
				} else {
					requireKind(t, err, ErrDestroyed)
				}
			})
			all.Go(func() {
				_, err := p.Destroy(ctx, ref)
				require.NoError(t, err)
			})
		}
		all.Wait()
	}
	for _, name := range list(t, p.dir) {
		require.Contains(t, name, ".destroyed")
	}
}

func newEnv(variables map[string]string) *envProvider {
	return &envProvider{lookup: func(name string) (string, bool) {
		value, ok := variables[name]
		return value, ok
	}}
}

func TestEnv(t *testing.T) {
	t.Parallel()
	ctx, b := t.Context(), random(Size)
	p := newEnv(map[string]string{
		"PGCUSTODY_KEK_ACME_1":       hex.EncodeToString(b),
		"PGCUSTODY_KEK_ACME_2":       base64.StdEncoding.EncodeToString(b),
		"PGCUSTODY_KEK_ACME_EU_12":   base64.RawURLEncoding.EncodeToString(b),
		"PGCUSTODY_KEK_ACME_3":       hex.EncodeToString(b[:32]),
		"PGCUSTODY_KEK_ACME_4":       "",
		"PGCUSTODY_KEK_ACME_5":       hex.EncodeToString(weakKeys(t)["RFC 7518"]),
		"PGCUSTODY_KEK_ACME_0":       hex.EncodeToString(b),
		"PGCUSTODY_KEK_ACME":         hex.EncodeToString(b),
		"PGCUSTODY_KEK_UNDER_SCORED": hex.EncodeToString(b),
	})
	for _, ref := range []Ref{{Tenant: "acme", Version: 1}, {Tenant: "acme", Version: 2}, {Tenant: "acme-eu", Version: 12}} {
		key, err := p.KEK(ctx, ref)
		require.NoError(t, err)
		require.Equal(t, b, key.Bytes())

		made, key, err := p.NewKEK(ctx, ref.Tenant, ref.Version)
		require.NoError(t, err, "it takes over what is set")
		require.Equal(t, ref, made)
		require.Equal(t, b, key.Bytes())

		final, err := p.Destroy(ctx, ref)
		require.False(t, final)
		require.Contains(t, requireKind(t, err, ErrRefused, b), "unset PGCUSTODY_KEK_ACME_")
	}
	_, err := p.KEK(ctx, Ref{Tenant: "acme", Version: 3})
	requireKind(t, err, ErrWeak, b)
	_, err = p.KEK(ctx, Ref{Tenant: "acme", Version: 5})
	requireKind(t, err, ErrWeak)
	p.development = true
	_, err = p.KEK(ctx, Ref{Tenant: "acme", Version: 5})
	require.NoError(t, err)

	for _, ref := range []Ref{{Tenant: "acme", Version: 4}, {Tenant: "other", Version: 1}} {
		_, err := p.KEK(ctx, ref)
		requireKind(t, err, ErrUnknown)
		_, _, err = p.NewKEK(ctx, ref.Tenant, ref.Version)
		require.Contains(t, requireKind(t, err, ErrUnknown),
			fmt.Sprintf("set PGCUSTODY_KEK_%s_%d", strings.ToUpper(ref.Tenant), ref.Version))
		final, err := p.Destroy(ctx, ref)
		require.NoError(t, err)
		require.True(t, final)
	}
	_, err = p.KEK(ctx, Ref{Tenant: "acme_eu", Version: 12})
	require.Contains(t, requireKind(t, err, ErrInvalid, b), "underscore")
}

func TestEnvIsTheEnvironment(t *testing.T) {
	b := random(Size)
	t.Setenv("PGCUSTODY_KEK_ACME_7", hex.EncodeToString(b))
	p, err := Parse(t.Context(), "env:", false)
	require.NoError(t, err)
	key, err := p.KEK(t.Context(), Ref{Tenant: "acme", Version: 7})
	require.NoError(t, err)
	require.Equal(t, b, key.Bytes())
}

func TestNamesAreChecked(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	for _, p := range []Provider{newFiles(t), newEnv(nil), &kmsProvider{ids: []string{"alias/x"}}} {
		for _, ref := range []Ref{
			{}, {Tenant: "acme"}, {Tenant: "acme", Version: -1}, {Tenant: "acme", Version: 1 << 31}, {Version: 1},
			{Tenant: "../acme", Version: 1}, {Tenant: "a/b", Version: 1}, {Tenant: "a.b", Version: 1}, {Tenant: "ACME", Version: 1},
			{Tenant: "-acme", Version: 1}, {Tenant: "acme\n", Version: 1}, {Tenant: strings.Repeat("a", 64), Version: 1},
		} {
			_, err := p.KEK(ctx, ref)
			requireKind(t, err, ErrInvalid)
			_, _, err = p.NewKEK(ctx, ref.Tenant, ref.Version)
			requireKind(t, err, ErrInvalid)
			_, err = p.Destroy(ctx, ref)
			requireKind(t, err, ErrInvalid)
		}
	}
}

func TestParse(t *testing.T) {
	t.Setenv("AWS_REGION", "eu-central-1")
	t.Setenv("AWS_CONFIG_FILE", filepath.Join(t.TempDir(), "none"))
	ctx, secret := t.Context(), random(Size)
	for _, spec := range []string{"file:/var/lib/keys", "env:", "awskms:alias/pgcustody", "awskms:arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab,alias/old"} {
		p, err := Parse(ctx, spec, false)
		require.NoError(t, err, spec)
		require.Equal(t, spec, p.String())
	}
	for _, spec := range []string{
		"", "file:", "file:keys", "file:./keys", "env", "env:PGCUSTODY", "awskms", "awskms:", "awskms:a,", "awskms:a, b", "vault:secret/x",
		"FILE:/x", hex.EncodeToString(secret), base64.StdEncoding.EncodeToString(secret), hex.EncodeToString(secret[:32]) + ":" + hex.EncodeToString(secret[32:]),
	} {
		_, err := Parse(ctx, spec, false)
		requireKind(t, err, ErrInvalid, secret)
	}
	t.Setenv("AWS_REGION", "")
	t.Setenv("AWS_DEFAULT_REGION", "")
	_, err := Parse(ctx, "awskms:alias/pgcustody", false)
	require.Contains(t, requireKind(t, err, ErrInvalid), "AWS_REGION")
}
