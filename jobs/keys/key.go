package keys

import (
	"crypto/rand"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
)

// Size is the length of a key in bytes.
const Size = 64

const redacted = "[redacted key]"

// Key is a key in memory. However it is printed, logged or marshalled, it shows
// "[redacted key]". As a parameter of pgx it is a bytea; see the package
// documentation. The zero Key holds nothing.
type Key struct {
	// fmt goes through unexported fields of other structs without asking methods.
	// It follows one pointer at most.
	bytes **[Size]byte
}

func hold(bytes [Size]byte) Key {
	held := &bytes
	return Key{&held}
}

// NewKey takes a copy of 64 bytes as a key. Keys that cannot have come from a
// random source are refused with ErrWeak, and so are those published for tests;
// development lets both pass, but not a key of zeros, which is how a wiped one
// looks.
func NewKey(b []byte, development bool) (Key, error) {
	never := len(b) != Size || zero(b)
	if reason := weakness(b); reason != "" && (never || !development) {
		return Key{}, fmt.Errorf("%w: %s", ErrWeak, reason)
	}
	return hold([Size]byte(b)), nil
}

func zero(b []byte) bool {
	var all byte
	for _, c := range b {
		all |= c
	}
	return all == 0
}

// randomKey draws a key from the operating system.
func randomKey() Key {
	var bytes [Size]byte
	_, _ = rand.Read(bytes[:]) // it never fails
	return hold(bytes)
}

// Bytes are the bytes of the key, which end with Wipe, or nil after it. Who has
// them must neither change nor log them.
func (k Key) Bytes() []byte {
	if k.bytes == nil || zero((*k.bytes)[:]) {
		return nil
	}
	return (*k.bytes)[:]
}

// BytesValue makes a Key a parameter for pgx (it is a pgtype.BytesValuer).
func (k Key) BytesValue() ([]byte, error) {
	if b := k.Bytes(); b != nil {
		return b, nil
	}
	return nil, errors.New("the key is empty: it was wiped, or never got")
}

// Wipe overwrites the key, in all copies of this Key. Copies that drivers or the
// runtime made of the bytes are out of its reach.
func (k Key) Wipe() {
	if k.bytes != nil {
		clear((*k.bytes)[:])
	}
}

func (k Key) clone() Key { return hold(**k.bytes) }

// String redacts.
func (Key) String() string { return redacted }

// GoString redacts.
func (Key) GoString() string { return redacted }

// Format redacts, whatever the verb.
func (Key) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// LogValue redacts.
func (Key) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalJSON redacts.
func (Key) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }

// MarshalText redacts.
func (Key) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// decode reads a key that somebody wrote down, in hexadecimal or base64. The
// errors of the decoders are not passed on, because they quote the text.
func decode(text string, development bool) (Key, error) {
	text = strings.TrimSpace(text)
	var b []byte
	var err error
	if len(text) == hex.EncodedLen(Size) {
		b, err = hex.DecodeString(text)
	} else {
		unpadded := strings.NewReplacer("-", "+", "_", "/").Replace(strings.TrimRight(text, "="))
		b, err = base64.RawStdEncoding.DecodeString(unpadded)
	}
	defer clear(b)
	if err != nil {
		return Key{}, fmt.Errorf("%w: neither 128 hexadecimal digits nor base64", ErrWeak)
	}
	return NewKey(b, development)
}

// A random key has some 57 different bytes; one with fewer than minDistinct, or
// with a step between neighbours that comes more often than maxSameStep, is met
// less than once in 2^80.
const (
	minDistinct = 24
	maxSameStep = 16
)

// weakness says why b cannot be a key of random bytes, or nothing. It must not
// say what is in it.
func weakness(b []byte) string {
	if len(b) != Size {
		return fmt.Sprintf("it has %d bytes", len(b))
	}
	seen, steps := map[byte]int{}, map[byte]int{}
	printable := true
	for i, c := range b {
		seen[c]++
		printable = printable && c >= ' ' && c <= '~'
		if i > 0 {
			steps[c-b[i-1]]++
		}
	}
	for period := 1; period <= Size/2; period++ {
		if repeats(b, period) {
			return fmt.Sprintf("it repeats itself every %d bytes", period)
		}
	}
	for _, times := range steps {
		if times > maxSameStep {
			return "it is a sequence"
		}
	}
	switch {
	case len(seen) < minDistinct:
		return fmt.Sprintf("only %d of its bytes differ", len(seen))
	case printable:
		return "it is printable text, perhaps a key that has not been decoded"
	case published(b):
		return "it is a published test key"
	}
	return ""
}

func repeats(b []byte, period int) bool {
	for i := period; i < len(b); i++ {
		if b[i] != b[i-period] {
			return false
		}
	}
	return true
}

// published tells whether b is one of the keys of our own test vectors
// (jobs/seal/testdata). That of RFC 7518 is a sequence.
func published(b []byte) bool {
	for n := 1; n <= 9; n++ {
		if [Size]byte(b) == sha512.Sum512(fmt.Appendf(nil, "pgcustody published test key %d", n)) {
			return true
		}
	}
	return false
}
