// Package seal seals single values, each to its place in the database, so that
// it opens nowhere else. It is the Go side of custody.seal_value and
// custody.open_value and writes the same bytes.
//
// # Format, version 1
//
// A256CBC-HS512, the authenticated encryption of RFC 7518, section 5.2.5:
//
//	byte  0        0x01, the version of this format
//	bytes 1 to 4   version of the key, unsigned, big-endian
//	bytes 5 to 20  IV
//	       …       ciphertext: AES-256 in CBC mode, padded by PKCS #7
//	last 32 bytes  tag: the first half of an HMAC-SHA-512
//
// A key is 64 bytes: the first half is the MAC's, the second the cipher's. The
// MAC is taken over the associated data, the IV, the ciphertext, and the length
// of the associated data in bits as an unsigned 64-bit big-endian number. The IV
// is the first 16 bytes of an HMAC-SHA-512, under the MAC's key, over a byte 0, the
// associated data, a byte 0, and the plaintext: no other input of that MAC begins
// with a byte 0.
//
// So the same text at the same place under the same key gives the same bytes,
// which is how a value that did not change is told without opening it. Nobody
// needs good random numbers for it, and all that it shows is that a cell has again
// the value that it had before.
//
// The associated data are those of a flattened JWE, in ASCII: BASE64URL of the
// header {"alg":"dir","enc":"A256CBC-HS512"}, a dot, BASE64URL of the place,
// both without padding. The place is the UTF-8 text
//
//	tenant/identity/table/column/row
//
// with the identity as a lower-case UUID. Only the row may hold a slash, and it
// comes last, so that no two places have the same text. [JWE] writes a sealed
// value as that flattened JWE, for any other JOSE library to open.
//
// A sealed value is 53 bytes and 1 to 16 of padding longer than its plaintext:
// who sees it learns the length of the text, rounded up.
//
// # What it does not do
//
// The first five bytes say which key to take and are not under the tag: when the
// key version is changed, the caller takes another key, and with that one the
// value does not open. And an older value, put back into its own place, opens.
package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/google/uuid"
)

const (
	// KeySize is the length of a key in bytes.
	KeySize = 64

	formatVersion = 1

	ivStart   = 1 + 4 // behind the versions of format and key
	textStart = ivStart + aes.BlockSize
	tagSize   = 32
	minSize   = textStart + aes.BlockSize + tagSize

	macKeySize = 32
)

// What can be wrong. Compare with errors.Is.
var (
	// ErrNotOpened: a byte was changed, or it is the value of another place or
	// under another key. Which of them is not told.
	ErrNotOpened = errors.New("sealed value does not open: it was changed, or belongs to another place or key")
	// ErrFormat: the value was sealed by a newer version of this format, or is no
	// sealed value.
	ErrFormat = errors.New("unknown version of the sealed format")
	// ErrKeySize: the key does not have KeySize bytes.
	ErrKeySize = fmt.Errorf("key for sealed values must be %d bytes", KeySize)
	// ErrPlace: a component of the place cannot be written down unambiguously.
	ErrPlace = errors.New("place of a sealed value is incomplete or ambiguous")
)

// header is the protected header of the JWE, byte for byte what is authenticated.
const header = `{"alg":"dir","enc":"A256CBC-HS512"}`

var b64 = base64.RawURLEncoding

// protected is the first part of all associated data.
var protected = b64.EncodeToString([]byte(header))

// Place is where a sealed value stands, and the only place where it opens.
type Place struct {
	Tenant   string    // slug of the tenant
	Identity uuid.UUID // whose data key it is
	Table    string    // name without its schema
	Column   string
	Row      string // the rest of the row's primary key, as text; any text
}

// text writes the place down: what is authenticated.
func (p Place) text() (string, error) {
	for _, part := range [...]struct{ name, value string }{{"tenant", p.Tenant}, {"table", p.Table}, {"column", p.Column}} {
		if part.value == "" || strings.Contains(part.value, "/") || !utf8.ValidString(part.value) {
			return "", fmt.Errorf("%w: its %s must be UTF-8 text of at least one character, without a slash", ErrPlace, part.name)
		}
	}
	if !utf8.ValidString(p.Row) {
		return "", fmt.Errorf("%w: its row must be UTF-8 text", ErrPlace)
	}
	return strings.Join([]string{p.Tenant, p.Identity.String(), p.Table, p.Column, p.Row}, "/"), nil
}

func (p Place) associated() ([]byte, error) {
	text, err := p.text()
	if err != nil {
		return nil, err
	}
	return b64.AppendEncode([]byte(protected+"."), []byte(text)), nil
}

// Seal encrypts plaintext under a key of [KeySize] bytes and binds it to its
// place. The version is the key's and is written into the value in the clear.
func Seal(key []byte, version uint32, place Place, plaintext []byte) ([]byte, error) {
	aad, err := place.associated()
	if err != nil {
		return nil, err
	}
	if len(key) != KeySize {
		return nil, fmt.Errorf("%w, this one is %d", ErrKeySize, len(key))
	}
	iv := initial(key, aad, plaintext)
	sealed := make([]byte, textStart, minSize+len(plaintext))
	sealed[0] = formatVersion
	binary.BigEndian.PutUint32(sealed[1:], version)
	copy(sealed[ivStart:], iv)
	return encrypt(sealed, key, iv, aad, plaintext)
}

// Open returns the plaintext of a value that was sealed under this key for this
// place, and ErrNotOpened for every other.
func Open(key []byte, place Place, sealed []byte) ([]byte, error) {
	aad, err := place.associated()
	if err != nil {
		return nil, err
	}
	iv, ciphertext, tag, err := split(sealed)
	if err != nil {
		return nil, err
	}
	return decrypt(key, iv, aad, ciphertext, tag)
}

// KeyVersion tells under which version of its key a value was sealed. Nothing
// vouches for it until the value has opened under that key.
func KeyVersion(sealed []byte) (uint32, error) {
	if _, _, _, err := split(sealed); err != nil {
		return 0, err
	}
	return binary.BigEndian.Uint32(sealed[1:ivStart]), nil
}

// JWE writes a sealed value as a flattened JWE (RFC 7516, section 7.2.2), which
// any JOSE library opens that is given the key. It neither needs the key nor
// checks the value: that is for who opens it. The key version is left out.
func JWE(place Place, sealed []byte) ([]byte, error) {
	text, err := place.text()
	if err != nil {
		return nil, err
	}
	iv, ciphertext, tag, err := split(sealed)
	if err != nil {
		return nil, err
	}
	return json.Marshal(struct {
		Protected  string `json:"protected"`
		AAD        string `json:"aad"`
		IV         string `json:"iv"`
		Ciphertext string `json:"ciphertext"`
		Tag        string `json:"tag"`
	}{protected, b64.EncodeToString([]byte(text)), b64.EncodeToString(iv), b64.EncodeToString(ciphertext), b64.EncodeToString(tag)})
}

// split takes a sealed value apart.
func split(sealed []byte) (iv, ciphertext, tag []byte, err error) {
	if len(sealed) > 0 && sealed[0] != formatVersion {
		return nil, nil, nil, fmt.Errorf("%w: %d, this program knows %d", ErrFormat, sealed[0], formatVersion)
	}
	if len(sealed) < minSize || (len(sealed)-minSize)%aes.BlockSize != 0 {
		return nil, nil, nil, ErrNotOpened
	}
	tagStart := len(sealed) - tagSize
	return sealed[ivStart:textStart], sealed[textStart:tagStart], sealed[tagStart:], nil
}

// initial derives the IV.
func initial(key, aad, plaintext []byte) []byte {
	h := hmac.New(sha512.New, key[:macKeySize])
	h.Write([]byte{0})
	h.Write(aad)
	h.Write([]byte{0})
	h.Write(plaintext)
	return h.Sum(nil)[:aes.BlockSize]
}

// encrypt appends ciphertext and tag to dst: RFC 7518, section 5.2.2.1.
func encrypt(dst, key, iv, aad, plaintext []byte) ([]byte, error) {
	block, err := newCipher(key)
	if err != nil {
		return nil, err
	}
	start := len(dst)
	dst = append(dst, plaintext...)
	padding := aes.BlockSize - len(plaintext)%aes.BlockSize
	for range padding {
		dst = append(dst, byte(padding))
	}
	cipher.NewCBCEncrypter(block, iv).CryptBlocks(dst[start:], dst[start:])
	return append(dst, mac(key, iv, aad, dst[start:])...), nil
}

// decrypt checks the tag, and only then decrypts: RFC 7518, section 5.2.2.2.
func decrypt(key, iv, aad, ciphertext, tag []byte) ([]byte, error) {
	block, err := newCipher(key)
	if err != nil {
		return nil, err
	}
	if !hmac.Equal(tag, mac(key, iv, aad, ciphertext)) {
		return nil, ErrNotOpened
	}
	plaintext := make([]byte, len(ciphertext))
	cipher.NewCBCDecrypter(block, iv).CryptBlocks(plaintext, ciphertext)
	size, ok := unpadded(plaintext)
	if !ok {
		return nil, ErrNotOpened
	}
	return plaintext[:size], nil
}

func newCipher(key []byte) (cipher.Block, error) {
	if len(key) != KeySize {
		return nil, fmt.Errorf("%w, this one is %d", ErrKeySize, len(key))
	}
	return aes.NewCipher(key[macKeySize:])
}

func mac(key, iv, aad, ciphertext []byte) []byte {
	h := hmac.New(sha512.New, key[:macKeySize])
	h.Write(aad)
	h.Write(iv)
	h.Write(ciphertext)
	h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(aad))*8))
	return h.Sum(nil)[:tagSize]
}

// unpadded returns the length of a text without its padding, and whether that is
// as PKCS #7 wants it. It takes as long for every padding.
func unpadded(text []byte) (size int, ok bool) {
	padding := int(text[len(text)-1])
	good := subtle.ConstantTimeLessOrEq(1, padding) & subtle.ConstantTimeLessOrEq(padding, aes.BlockSize)
	for i := 1; i <= aes.BlockSize; i++ {
		inside := subtle.ConstantTimeLessOrEq(i, padding)
		same := subtle.ConstantTimeByteEq(text[len(text)-i], byte(padding))
		good &= subtle.ConstantTimeSelect(inside, same, 1)
	}
	return len(text) - padding, good == 1
}
