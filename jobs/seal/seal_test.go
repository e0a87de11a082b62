package seal

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

var here = Place{
	Tenant: "acme", Identity: uuid.MustParse("0196f3a1-5d0c-7c3e-9a4b-2f6d8e1c7b50"),
	Table: "user_profiles", Column: "email", Row: "profile",
}

func newKey() []byte {
	key := make([]byte, KeySize)
	_, _ = rand.Read(key)
	return key
}

// hexBytes are bytes that a vector writes in hexadecimal.
type hexBytes []byte

func (b *hexBytes) UnmarshalText(text []byte) error {
	decoded, err := hex.DecodeString(string(text))
	*b = decoded
	return err
}

type vector struct {
	Name    string
	Key     hexBytes
	Version uint32
	Place   struct {
		Tenant, Table, Column, Row string
		Identity                   uuid.UUID
	}
	IV, Plaintext, Sealed hexBytes
}

type vectors struct {
	Sealed []vector
	RFC    struct {
		Key, AAD, IV, Plaintext, Ciphertext, Tag hexBytes
	} `json:"rfc7518_b3"`
}

func readVectors(t testing.TB) (v vectors) {
	t.Helper()
	content, err := os.ReadFile("testdata/vectors.json")
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(content, &v))
	return v
}

// TestRFC7518 are the values of its Appendix B.3.
func TestRFC7518(t *testing.T) {
	t.Parallel()
	rfc := readVectors(t).RFC
	require.Len(t, rfc.Ciphertext, 144)

	sealed, err := encrypt(nil, rfc.Key, rfc.IV, rfc.AAD, rfc.Plaintext)
	require.NoError(t, err)
	require.Equal(t, hex.EncodeToString(append(rfc.Ciphertext, rfc.Tag...)), hex.EncodeToString(sealed))

	plaintext, err := decrypt(rfc.Key, rfc.IV, rfc.AAD, rfc.Ciphertext, rfc.Tag)
	require.NoError(t, err)
	require.Equal(t, string(rfc.Plaintext), string(plaintext))
}

func TestKnownAnswers(t *testing.T) {
	t.Parallel()
	known := readVectors(t).Sealed
	require.GreaterOrEqual(t, len(known), 5)
	for _, v := range known {
		t.Run(v.Name, func(t *testing.T) {
			t.Parallel()
			place := Place{v.Place.Tenant, v.Place.Identity, v.Place.Table, v.Place.Column, v.Place.Row}

			sealed, err := Seal(v.Key, v.Version, place, v.Plaintext)
			require.NoError(t, err)
			require.Equal(t, hex.EncodeToString(v.Sealed), hex.EncodeToString(sealed))

			plaintext, err := Open(v.Key, place, v.Sealed)
			require.NoError(t, err)
			require.Equal(t, string(v.Plaintext), string(plaintext))

			version, err := KeyVersion(v.Sealed)
			require.NoError(t, err)
			require.Equal(t, v.Version, version)
			requireJOSE(t, v.Key, place, v.Sealed, v.Plaintext)
		})
	}
}

// requireJOSE opens a sealed value by an independent library.
func requireJOSE(t testing.TB, key []byte, place Place, sealed, plaintext []byte) {
	t.Helper()
	serialised, err := JWE(place, sealed)
	require.NoError(t, err)

	message, err := jose.ParseEncryptedJSON(string(serialised), []jose.KeyAlgorithm{jose.DIRECT}, []jose.ContentEncryption{jose.A256CBC_HS512})
	require.NoError(t, err)
	text, err := place.text()
	require.NoError(t, err)
	require.Equal(t, text, string(message.GetAuthData()))
	opened, err := message.Decrypt(key)
	require.NoError(t, err)
	require.Equal(t, string(plaintext), string(opened))
	_, _, opened, err = message.DecryptMulti(key)
	require.NoError(t, err)
	require.Equal(t, string(plaintext), string(opened))

	_, err = message.Decrypt(newKey())
	require.Error(t, err)
}

// TestAnotherLibrarySeals goes the other way: what go-jose seals with the same
// header and associated data opens here.
func TestAnotherLibrarySeals(t *testing.T) {
	t.Parallel()
	key := newKey()
	encrypter, err := jose.NewEncrypter(jose.A256CBC_HS512, jose.Recipient{Algorithm: jose.DIRECT, Key: key}, nil)
	require.NoError(t, err)
	text, err := here.text()
	require.NoError(t, err)
	message, err := encrypter.EncryptWithAuthData([]byte("alice@example.org"), []byte(text))
	require.NoError(t, err)

	var parts struct{ Protected, AAD, IV, Ciphertext, Tag string }
	require.NoError(t, json.Unmarshal([]byte(message.FullSerialize()), &parts))
	require.Equal(t, protected, parts.Protected, "both write the header alike")
	sealed := []byte{formatVersion, 0, 0, 0, 9}
	for _, part := range []string{parts.IV, parts.Ciphertext, parts.Tag} {
		sealed, err = b64.AppendDecode(sealed, []byte(part))
		require.NoError(t, err)
	}
	opened, err := Open(key, here, sealed)
	require.NoError(t, err)
	require.Equal(t, "alice@example.org", string(opened))
}

// The IV depends on all that is sealed, and on nothing else.
func TestTheSameBytesForTheSameValueAlone(t *testing.T) {
	t.Parallel()
	key := newKey()
	seal := func(key []byte, place Place, text string) []byte {
		sealed, err := Seal(key, 1, place, []byte(text))
		require.NoError(t, err)
		return sealed
	}
	one := seal(key, here, "text")
	require.Equal(t, one, seal(key, here, "text"))
	there := here
	there.Row += "x"
	for name, other := range map[string][]byte{
		"key": seal(newKey(), here, "text"), "place": seal(key, there, "text"), "text": seal(key, here, "text "),
	} {
		require.NotEqual(t, one[ivStart:textStart], other[ivStart:textStart], name)
	}
}

func TestEveryChangedBitIsRefused(t *testing.T) {
	t.Parallel()
	key := newKey()
	for _, plaintext := range []string{"", "x", "sixteen bytes...", strings.Repeat("long text ", 20)} {
		sealed, err := Seal(key, 7, here, []byte(plaintext))
		require.NoError(t, err)
		for i := range sealed {
			for bit := range 8 {
				changed := bytes.Clone(sealed)
				changed[i] ^= 1 << bit
				opened, err := Open(key, here, changed)
				switch {
				case i == 0:
					require.ErrorIs(t, err, ErrFormat)
				case i < ivStart:
					// It names the key that the caller has to take; see below.
					require.NoError(t, err)
					continue
				default:
					require.Equal(t, ErrNotOpened, err, "byte %d, bit %d", i, bit)
				}
				require.Nil(t, opened)
			}
		}
	}
}

// TestChangedKeyVersion opens nothing, because it leads to another key.
func TestChangedKeyVersion(t *testing.T) {
	t.Parallel()
	keys := map[uint32][]byte{1: newKey(), 2: newKey()}
	sealed, err := Seal(keys[1], 1, here, []byte("text"))
	require.NoError(t, err)
	sealed[4] = 2
	version, err := KeyVersion(sealed)
	require.NoError(t, err)
	_, err = Open(keys[version], here, sealed)
	require.Equal(t, ErrNotOpened, err)
}

func TestOtherPlacesAreRefused(t *testing.T) {
	t.Parallel()
	key := newKey()
	sealed, err := Seal(key, 1, here, []byte("text"))
	require.NoError(t, err)
	for name, move := range map[string]func(*Place){
		"tenant":       func(p *Place) { p.Tenant = "acme2" },
		"identity":     func(p *Place) { p.Identity[15]++ },
		"table":        func(p *Place) { p.Table = "user_profile" },
		"column":       func(p *Place) { p.Column = "phone" },
		"row":          func(p *Place) { p.Row = "profile2" },
		"empty row":    func(p *Place) { p.Row = "" },
		"case":         func(p *Place) { p.Row = "Profile" },
		"shifted":      func(p *Place) { p.Column, p.Row = p.Column[:4], p.Column[4:]+"/"+p.Row },
		"trailing NUL": func(p *Place) { p.Row += "\x00" },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			there := here
			move(&there)
			_, err := Open(key, there, sealed)
			require.Equal(t, ErrNotOpened, err)
		})
	}
}

func TestOtherKeysAreRefused(t *testing.T) {
	t.Parallel()
	key := newKey()
	sealed, err := Seal(key, 1, here, []byte("text"))
	require.NoError(t, err)
	for _, i := range []int{0, macKeySize - 1, macKeySize, KeySize - 1} {
		other := bytes.Clone(key)
		other[i] ^= 1
		opened, err := Open(other, here, sealed)
		if i < macKeySize {
			require.Equal(t, ErrNotOpened, err)
		} else {
			// The tag is the MAC key's alone; the other half shows as garbage or as
			// bad padding, and keys are not mixed from halves.
			require.NotEqual(t, "text", string(opened))
		}
	}
}

func TestTruncatedAndForeignValues(t *testing.T) {
	t.Parallel()
	key := newKey()
	sealed, err := Seal(key, 1, here, []byte("some text that is longer than a block"))
	require.NoError(t, err)
	for i := range sealed {
		for _, part := range [][]byte{sealed[:i], append(sealed[:1:1], sealed[1+i:]...)} {
			if len(part) == len(sealed) {
				continue
			}
			_, err := Open(key, here, part)
			require.Equal(t, ErrNotOpened, err, "%d bytes", len(part))
		}
	}
	for _, longer := range [][]byte{append(bytes.Clone(sealed), 0), append(bytes.Clone(sealed), make([]byte, 16)...)} {
		_, err := Open(key, here, longer)
		require.Equal(t, ErrNotOpened, err)
	}

	for _, short := range [][]byte{nil, {}, {1}, sealed[:minSize-1], sealed[:len(sealed)-1]} {
		_, err := KeyVersion(short)
		require.Equal(t, ErrNotOpened, err)
		_, err = JWE(here, short)
		require.Equal(t, ErrNotOpened, err)
	}
	for _, foreign := range [][]byte{[]byte("alice@example.org"), {0}, {2}, {255}} {
		_, err := Open(key, here, foreign)
		require.ErrorIs(t, err, ErrFormat)
		_, err = KeyVersion(foreign)
		require.ErrorIs(t, err, ErrFormat)
		_, err = JWE(here, foreign)
		require.ErrorIs(t, err, ErrFormat)
	}
}

// TestBadPaddingUnderAGoodTag is what only the holder of the key can make.
func TestBadPaddingUnderAGoodTag(t *testing.T) {
	t.Parallel()
	key, iv := newKey(), make([]byte, aes.BlockSize)
	block, err := newCipher(key)
	require.NoError(t, err)
	last := func(tail ...byte) []byte { return append(bytes.Repeat([]byte{'x'}, aes.BlockSize-len(tail)), tail...) }
	for name, test := range map[string]struct {
		text []byte
		ok   bool
	}{
		"none":              {last(0), false},
		"one":               {last(1), true},
		"two":               {last(2, 2), true},
		"one of two wrong":  {last(3, 2), false},
		"first of 16 wrong": {append([]byte{0}, bytes.Repeat([]byte{16}, 15)...), false},
		"sixteen":           {bytes.Repeat([]byte{16}, 16), true},
		"seventeen":         {bytes.Repeat([]byte{17}, 16), false},
		"all ones":          {bytes.Repeat([]byte{255}, 16), false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ciphertext := make([]byte, len(test.text))
			cipher.NewCBCEncrypter(block, iv).CryptBlocks(ciphertext, test.text)
			_, err := decrypt(key, iv, nil, ciphertext, mac(key, iv, nil, ciphertext))
			if test.ok {
				require.NoError(t, err)
			} else {
				require.Equal(t, ErrNotOpened, err)
			}
		})
	}
}

func TestKeySize(t *testing.T) {
	t.Parallel()
	sealed, err := Seal(newKey(), 1, here, nil)
	require.NoError(t, err)
	for _, size := range []int{0, 1, 16, 32, 63, 65, 128} {
		_, err := Seal(make([]byte, size), 1, here, nil)
		require.ErrorIs(t, err, ErrKeySize)
		_, err = Open(make([]byte, size), here, sealed)
		require.ErrorIs(t, err, ErrKeySize)
	}
}

func TestPlaceIsUnambiguous(t *testing.T) {
	t.Parallel()
	key := newKey()
	sealed, err := Seal(key, 1, here, nil)
	require.NoError(t, err)
	for name, change := range map[string]func(*Place){
		"no tenant":           func(p *Place) { p.Tenant = "" },
		"no table":            func(p *Place) { p.Table = "" },
		"no column":           func(p *Place) { p.Column = "" },
		"slash in the tenant": func(p *Place) { p.Tenant = "a/b" },
		"slash in the table":  func(p *Place) { p.Table = "a/b" },
		"slash in the column": func(p *Place) { p.Column = "a/b" },
		"tenant not UTF-8":    func(p *Place) { p.Tenant = "a\xff" },
		"row not UTF-8":       func(p *Place) { p.Row = "secret row\xff" },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			place := here
			change(&place)
			_, err := Seal(key, 1, place, nil)
			require.ErrorIs(t, err, ErrPlace)
			require.NotContains(t, err.Error(), "secret row")
			_, err = Open(key, place, sealed)
			require.ErrorIs(t, err, ErrPlace)
			_, err = JWE(place, sealed)
			require.ErrorIs(t, err, ErrPlace)
		})
	}
}

func TestSealKeepsItsInput(t *testing.T) {
	t.Parallel()
	key := newKey()
	buffer := []byte("text and what stands behind it")
	sealed, err := Seal(key, 1, here, buffer[:4])
	require.NoError(t, err)
	require.Equal(t, "text and what stands behind it", string(buffer))
	before := bytes.Clone(sealed)
	_, err = Open(key, here, sealed)
	require.NoError(t, err)
	require.Equal(t, before, sealed)
}

func FuzzRoundTrip(f *testing.F) {
	f.Add([]byte(nil), uint32(0), "", []byte{})
	f.Add([]byte("alice@example.org"), uint32(1), "profile", []byte{1})
	f.Add(bytes.Repeat([]byte{16}, 16), uint32(1<<31), "a/b\n\"ü", []byte{0xff, 0, 3})
	key := newKey()
	f.Fuzz(func(t *testing.T, plaintext []byte, version uint32, row string, change []byte) {
		place := here
		place.Row = row
		sealed, err := Seal(key, version, place, plaintext)
		if err != nil {
			require.ErrorIs(t, err, ErrPlace)
			return
		}
		opened, err := Open(key, place, sealed)
		require.NoError(t, err)
		require.True(t, bytes.Equal(plaintext, opened))
		got, err := KeyVersion(sealed)
		require.NoError(t, err)
		require.Equal(t, version, got)
		requireJOSE(t, key, place, sealed, plaintext)

		changed := bytes.Clone(sealed)
		for i, b := range change {
			changed[ivStart+i%(len(changed)-ivStart)] ^= b
		}
		if !bytes.Equal(changed, sealed) {
			_, err = Open(key, place, changed)
			require.Equal(t, ErrNotOpened, err)
		}
	})
}

// FuzzOpen takes whatever stands in a cell.
func FuzzOpen(f *testing.F) {
	for _, v := range readVectors(f).Sealed {
		f.Add([]byte(v.Sealed))
	}
	key := newKey()
	f.Fuzz(func(t *testing.T, sealed []byte) {
		_, err := Open(key, here, sealed)
		require.Error(t, err)
		_, _ = KeyVersion(sealed)
		_, _ = JWE(here, sealed)
	})
}

func BenchmarkSeal(b *testing.B) {
	key, text := newKey(), []byte("alice@example.org")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Seal(key, 1, here, text); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkOpen(b *testing.B) {
	key := newKey()
	sealed, err := Seal(key, 1, here, []byte("alice@example.org"))
	require.NoError(b, err)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Open(key, here, sealed); err != nil {
			b.Fatal(err)
		}
	}
}
