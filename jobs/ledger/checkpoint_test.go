package ledger

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/mod/sumdb/tlog"
)

func TestCheckpointText(t *testing.T) {
	t.Parallel()
	c := testCheckpoint(tlog.Tree{N: 42, Hash: emptyRoot()}, 3)
	text, err := c.Text()
	require.NoError(t, err)
	require.Equal(t, `example.com/custody
42
47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=
pgcustody/v1 {"number":3,"time":"2026-11-21T12:00:00Z","system_identifier":"7400000000000000001","timeline":1,"incarnation_id":"01a1fd8f-a944-73e5-8efc-e491a597d13b","sealed_to":"812","waiting_since":"2026-11-21T11:58:59.876544Z"}
`, text)
	again, err := Parse(text)
	require.NoError(t, err)
	require.Equal(t, c, again)

	for _, other := range []struct{ old, new string }{
		{"custody\n", "custody \n"},
		{"\n42\n", "\n042\n"}, {"\n42\n", "\n-42\n"}, {"\n42\n", "\n+42\n"}, {"\n42\n", "\n\n"},
		{"47DEQ", "47DE"}, {"FU=\n", "FV=\n"},
		{"pgcustody/v1 ", "pgcustody/v2 "}, {"v1 {", "v1  {"},
		{`"number":3`, `"number":0`}, {`"number":3`, `"number": 3`}, {`"number":3`, `"number":3,"more":1`}, {`"number":3`, `"number":3,"number":3`},
		{"12:00:00Z", "12:00:00+00:00"}, {"12:00:00Z", "13:00:00+01:00"},
		{"}\n", "}\nmore\n"}, {"}\n", "}"}, {"\n42\n", "\n42\r\n"},
	} {
		altered := strings.Replace(text, other.old, other.new, 1)
		require.NotEqual(t, text, altered)
		_, err := Parse(altered)
		require.ErrorIs(t, err, ErrMalformed, altered)
	}
}

func TestOpen(t *testing.T) {
	t.Parallel()
	signer, key := testKey(t, origin)
	other, otherKey := testKey(t, origin)
	elsewhere, elsewhereKey := testKey(t, "example.com/other")
	c := testCheckpoint(tlog.Tree{N: 1, Hash: emptyRoot()}, 1)
	signed := sign(t, c, signer)

	for name, keys := range map[string][]VerifierKey{
		"alone": {key}, "among others": {otherKey, elsewhereKey, key}, "twice": {key, key},
	} {
		found, err := Open(signed, origin, keys)
		require.NoError(t, err, name)
		require.Equal(t, c, found)
	}
	for name, keys := range map[string][]VerifierKey{"none": nil, "another": {otherKey}, "another log's": {elsewhereKey}} {
		_, err := Open(signed, origin, keys)
		require.ErrorIs(t, err, ErrUnsigned, name)
	}
	// One signature that counts is enough, and one that is wrong is too much.
	both := sign(t, c, signer, other)
	for _, keys := range [][]VerifierKey{{key}, {otherKey}, {key, otherKey}} {
		_, err := Open(both, origin, keys)
		require.NoError(t, err)
	}
	broken := []byte(strings.Replace(string(signed), "\n1\n", "\n2\n", 1))
	_, err := Open(broken, origin, []VerifierKey{key})
	require.ErrorIs(t, err, ErrUnsigned)

	// Another log's checkpoint, under its own key and under ours.
	c.Origin = "example.com/other"
	for _, signed := range [][]byte{sign(t, c, elsewhere), sign(t, c, signer)} {
		_, err = Open(signed, origin, []VerifierKey{key, elsewhereKey})
		require.ErrorIs(t, err, ErrUnsigned)
	}
	_, err = Open([]byte("nothing"), origin, []VerifierKey{key})
	require.ErrorIs(t, err, ErrUnsigned)

	// Keys count for a time, by the checkpoint's own.
	for _, window := range []struct {
		from, until time.Time
		counts      bool
	}{
		{time.Time{}, time.Time{}, true},
		{noon, time.Time{}, true},
		{noon.Add(time.Second), time.Time{}, false},
		{time.Time{}, noon, false},
		{time.Time{}, noon.Add(time.Second), true},
	} {
		in := key
		in.From, in.Until = window.from, window.until
		again, err := ParseVerifierKey(in.String())
		require.NoError(t, err)
		require.Equal(t, in.String(), again.String())
		_, err = Open(signed, origin, []VerifierKey{again})
		if window.counts {
			require.NoError(t, err)
		} else {
			require.ErrorIs(t, err, ErrUnsigned)
		}
		// Another stretch of time of the same key.
		_, err = Open(signed, origin, []VerifierKey{again, key})
		require.NoError(t, err)
	}
}

func TestParseVerifierKey(t *testing.T) {
	t.Parallel()
	_, key := testKey(t, origin)
	for _, line := range []string{"", "x", key.Key + "x", key.Key + " yesterday", key.Key + " - 12", key.Key + " - - -", "PRIVATE+KEY+example.com+1234abcd+c2VjcmV0"} {
		_, err := ParseVerifierKey(line)
		require.ErrorIs(t, err, ErrMalformed, line)
		require.NotContains(t, err.Error(), "c2VjcmV0")
	}
}
