package keys

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgtype"
	"github.com/stretchr/testify/require"

	"pgcustody/jobs/keys/keystest"
)

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return b
}

// requireKind looks at the error and returns what it says, which must give away
// none of the secrets.
func requireKind(t testing.TB, err, kind error, secrets ...[]byte) string {
	t.Helper()
	require.ErrorIs(t, err, kind)
	var e *Error
	require.ErrorAs(t, err, &e)
	for _, other := range []error{ErrUnavailable, ErrRefused, ErrUnknown, ErrDestroyed, ErrWeak, ErrExposed, ErrInvalid} {
		require.Equal(t, errors.Is(other, kind), errors.Is(err, other), other)
	}
	for _, secret := range secrets {
		keystest.RequireSilent(t, fmt.Sprintf("%v %+v %#v %q", err, err, err, err), secret)
		for inner := error(e); inner != nil; {
			keystest.RequireSilent(t, inner.Error(), secret)
			parts, ok := inner.(interface{ Unwrap() []error })
			if !ok {
				break
			}
			inner = parts.Unwrap()[len(parts.Unwrap())-1]
		}
	}
	return err.Error()
}

func TestRandomKeysPass(t *testing.T) {
	t.Parallel()
	for range 20_000 {
		require.Empty(t, weakness(randomKey().Bytes()))
	}
}

func weakKeys(t testing.TB) map[string][]byte {
	sequence := func(step, start int) []byte {
		b := make([]byte, Size)
		for i := range b {
			b[i] = byte(start + i*step)
		}
		return b
	}
	half := random(Size / 2)
	weak := map[string][]byte{
		"one byte":            bytes.Repeat([]byte{0x42}, Size),
		"ones":                bytes.Repeat([]byte{0xff}, Size),
		"two bytes":           bytes.Repeat([]byte{1, 2}, Size/2),
		"a pattern of 5":      bytes.Repeat([]byte("\x91\x02\xf3\x54\xa5"), 13)[:Size],
		"a word":              bytes.Repeat([]byte("password"), Size/8),
		"halves alike":        slices.Concat(half, half),
		"RFC 7518":            sequence(1, 0),
		"backwards":           sequence(-1, 255),
		"steps of 3":          sequence(3, 17),
		"two sequences":       slices.Concat(sequence(1, 0)[:32], sequence(2, 100)[:32]),
		"half a key":          slices.Concat(half, make([]byte, Size/2)),
		"a short key, padded": slices.Concat(random(20), bytes.Repeat([]byte{7}, 44)),
		"hexadecimal text":    []byte(hex.EncodeToString(random(32))),
		"base64 text":         []byte(base64.RawStdEncoding.EncodeToString(random(48))),
	}
	few := make([]byte, Size)
	for i, c := range random(Size) {
		few[i] = c%23 + 150
	}
	weak["few bytes"] = few

	content, err := os.ReadFile("../seal/testdata/vectors.json")
	require.NoError(t, err)
	var vectors struct {
		Sealed []struct{ Name, Key string }
		RFC    struct{ Key string } `json:"rfc7518_b3"`
	}
	require.NoError(t, json.Unmarshal(content, &vectors))
	require.NotEmpty(t, vectors.Sealed)
	for _, v := range vectors.Sealed {
		weak["vector "+v.Name], err = hex.DecodeString(v.Key)
		require.NoError(t, err)
	}
	weak["vector of the RFC"], err = hex.DecodeString(vectors.RFC.Key)
	require.NoError(t, err)
	return weak
}

func TestWeakKeysAreRefused(t *testing.T) {
	t.Parallel()
	for name, b := range weakKeys(t) {
		require.Len(t, b, Size, name)
		_, err := NewKey(b, false)
		require.ErrorIs(t, err, ErrWeak, name)
		keystest.RequireSilent(t, err.Error(), b)
		key, err := NewKey(b, true)
		require.NoError(t, err, name)
		require.Equal(t, b, key.Bytes())
	}
	for _, size := range []int{0, 1, 32, 63, 65, 128} {
		for _, development := range []bool{false, true} {
			_, err := NewKey(random(size), development)
			require.ErrorIs(t, err, ErrWeak)
			require.ErrorContains(t, err, fmt.Sprintf("it has %d bytes", size))
		}
	}
	for _, development := range []bool{false, true} {
		_, err := NewKey(make([]byte, Size), development)
		require.ErrorIs(t, err, ErrWeak)
	}
}

func TestKeyIsACopy(t *testing.T) {
	t.Parallel()
	b := random(Size)
	key, err := NewKey(b, false)
	require.NoError(t, err)
	want := bytes.Clone(b)
	clear(b)
	require.Equal(t, want, key.Bytes())
}

func TestKeyRedacts(t *testing.T) {
	t.Parallel()
	b := random(Size)
	key, err := NewKey(b, false)
	require.NoError(t, err)

	type exported struct{ Key Key }
	type hidden struct{ key Key }
	var out strings.Builder
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "% x", "%d", "%o", "%c", "%U", "%t", "%T", "%p"} {
		for _, value := range []any{key, &key, exported{key}, &exported{key}, hidden{key}, &hidden{key}, []Key{key}, map[string]Key{"k": key}, []any{key}} {
			fmt.Fprintf(&out, verb+"\n", value)
		}
	}
	fmt.Fprintln(&out, key, exported{key}, key.String(), key.GoString())
	for _, value := range []any{key, exported{key}, &key, map[string]any{"k": key}} {
		text, err := json.Marshal(value)
		require.NoError(t, err)
		require.Contains(t, string(text), redacted)
		out.Write(text)
	}
	text, err := xml.Marshal(exported{key})
	require.NoError(t, err)
	out.Write(text)
	for _, handler := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
		slog.New(handler).Info("key", "key", key, "struct", exported{key}, "hidden", hidden{key}, "pointer", &key, "list", []Key{key})
	}
	keystest.RequireSilent(t, out.String(), b)
	require.Contains(t, out.String(), redacted)
}

func TestWipe(t *testing.T) {
	t.Parallel()
	key := randomKey()
	same, clone, b := key, key.clone(), key.Bytes()
	key.Wipe()
	require.Equal(t, make([]byte, Size), b)
	for _, gone := range []Key{key, same, {}} {
		require.Nil(t, gone.Bytes())
		_, err := gone.BytesValue()
		require.ErrorContains(t, err, "wiped")
		gone.Wipe()
	}
	require.Len(t, clone.Bytes(), Size)
}

// TestKeyAsParameter asks pgx what it would send.
func TestKeyAsParameter(t *testing.T) {
	t.Parallel()
	key := randomKey()
	m := pgtype.NewMap()
	sent, err := m.Encode(pgtype.ByteaOID, pgtype.BinaryFormatCode, key, nil)
	require.NoError(t, err)
	require.Equal(t, key.Bytes(), sent)

	// The simple protocol makes a literal of this, and gets no key.
	sent, err = m.Encode(0, pgtype.TextFormatCode, key, nil)
	if err == nil {
		require.Equal(t, redacted, string(sent))
	}
	keystest.RequireSilent(t, string(sent), key.Bytes())

	key.Wipe()
	_, err = m.Encode(pgtype.ByteaOID, pgtype.BinaryFormatCode, key, nil)
	require.Error(t, err, "a wiped key is not sent as null")
}

func TestDecode(t *testing.T) {
	t.Parallel()
	b := random(Size)
	b[0], b[1] = 0xfb, 0xff // begins with + and / in base64
	for _, text := range []string{
		hex.EncodeToString(b), strings.ToUpper(hex.EncodeToString(b)), hex.EncodeToString(b) + "\n", "  " + hex.EncodeToString(b) + "\r\n",
		base64.StdEncoding.EncodeToString(b), base64.RawStdEncoding.EncodeToString(b),
		base64.URLEncoding.EncodeToString(b), base64.RawURLEncoding.EncodeToString(b) + "\n",
	} {
		key, err := decode(text, false)
		require.NoError(t, err)
		require.Equal(t, b, key.Bytes())
	}
	for name, text := range map[string]string{
		"empty":           "",
		"short":           hex.EncodeToString(b[:63]),
		"short base64":    base64.StdEncoding.EncodeToString(b[:63]),
		"odd":             hex.EncodeToString(b)[1:],
		"not hexadecimal": hex.EncodeToString(b)[:127] + "g",
		"prefixed":        `\x` + hex.EncodeToString(b),
		"two lines":       hex.EncodeToString(b[:32]) + "\n" + hex.EncodeToString(b[32:]),
		"raw":             string(b),
	} {
		_, err := decode(text, true)
		require.ErrorIs(t, err, ErrWeak, name)
		keystest.RequireSilent(t, err.Error(), b)
		require.NotContains(t, err.Error(), "'g'", "the decoder's words quote the text")
	}
}
