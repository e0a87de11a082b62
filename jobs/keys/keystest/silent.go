package keystest

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"
)

// Spellings are the ways in which a key could stand in a text, in parts too.
func Spellings(key []byte) []string {
	var all []string
	for _, part := range [][]byte{key, key[:len(key)/2], key[len(key)/2:]} {
		all = append(all, string(part), hex.EncodeToString(part), strings.ToUpper(hex.EncodeToString(part)),
			strings.TrimRight(base64.StdEncoding.EncodeToString(part), "=")[:len(part)],
			base64.RawURLEncoding.EncodeToString(part)[:len(part)],
			strings.Trim(fmt.Sprintf("%d", part), "[]"), strings.Trim(fmt.Sprintf("%#v", part), "[]byte{}"), fmt.Sprintf("%q", part))
	}
	return all
}

// RequireSilent fails the test when a text has a key in it, without showing either.
func RequireSilent(t testing.TB, text string, key []byte) {
	t.Helper()
	for i, spelling := range Spellings(key) {
		if strings.Contains(text, spelling) {
			t.Fatalf("the key stands in a text of %d bytes, in spelling %d", len(text), i)
		}
	}
}
