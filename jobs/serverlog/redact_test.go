package serverlog

import (
	"bytes"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestRedact(t *testing.T) {
	for _, c := range [][2]string{
		{``, ``},
		{`select a, "b 'c'" from t1 where x = $1`, `select a, "b 'c'" from t1 where x = $1`},
		{`select 'a', 'it''s', '', 'a' 'b'`, `select ?, ?, ?, ? ?`},
		{`select 'a\\', b`, `select ?, b`},
		{`select 'a\', b, 'c'`, `select ?`},  // standard_conforming_strings may be off
		{`select 'a\''; b, 'c'`, `select ?`}, // and here it may be on
		{`select E'it\'s \\', e'', b`, `select ?, ?, b`},
		{`select E'it\\\'s', b`, `select ?, b`},
		{`select the'a', tE'b\'`, `select the?, tE?`},
		{`select U&'d\0061t' uescape '!', u&'x', U&"d\0061ta"`, `select ? uescape ?, ?, U&"d\0061ta"`},
		{`select b'01', X'1F', n'x', B '1'`, `select ?, ?, ?, B ?`},
		{`select $$a 'b' $x$ c$$, $t$ $$ $t $t$, $1$2`, `select ?, ?, $1$2`},
		{`select a$$b$$`, `select a$$b$$`}, // a name
		{`select $1$$x$$ y`, `select $1? y`},
		{`do $é$ 'x' $é$ language l`, `do ? language l`},
		{`select $t$ open`, `select ?`},
		{`select 1, 1.5, .5, 1., 1e5, 1.5E-10, 0x1F, 0b1, 1_000, 5.e`, `select ?, ?, ?, ?, ?, ?, ?, ?, ?, ?`},
		{`select 1.$$s$$, 1$$s$$, 1e'a\'b', x`, `select ??, ??, ??`},
		{`select 1_0e'it\' 's3cret'`, `select ??`},
		{`select 1_e'it\' 's3cret'`, `select ??`},
		{`select t1, a.b, t.1, -1, 3-2, 1from t`, `select t1, a.b, t?, -?, ?-?, ? t`},
		{`select 1e'a' from t`, `select ?? from t`},
		{"select a -- 'secret\n, b --\r, c -- x", "select a  \n, b  \r, c  "},
		{`select /* 'x' /* nested */ "y" */ a /* open`, `select   a  `},
		{`select a/*/ b */ c`, `select a  c`},
		{`select "open 'a'`, `select ?`},
		{`select "a""b", 'open`, `select "a""b", ?`},
		{`select E'open\`, `select ?`},
		{`create role r password <REDACTED>`, `create role r password <REDACTED>`},
		{"select 'é日本', é from \xff\xfe 'x'", "select ?, é from \xff\xfe ?"},
		{`select a-- b`, `select a `},
		{`select array[1,2][1], a->>'k', a @> '{"k": 1}'`, `select array[?,?][?], a->>?, a @> ?`},
	} {
		require.Equal(t, c[1], string(AppendRedacted(nil, []byte(c[0]), "?")), c[0])
	}
	require.Equal(t, `xselect , "a"`, string(AppendRedacted([]byte("x"), []byte(`select 'b', "a"`), "")))
}

// Statements put together of anything, with a secret in every literal.
func TestRedactLeavesNothing(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	parts := []func() string{
		func() string { return `'s3cret'` },
		func() string { return `'s3''s3cret''\\'` },
		func() string { return `E's3cret\'s3cret\\'` },
		func() string { return `e'\\s3''s3cret'` },
		func() string { return `U&'s3cret'` },
		func() string { return `$$s3cret'$$` },
		func() string { return `$a$s3cret$$'$b$"$a$` },
		func() string { return `/* s3cret ' /* " */ $$ */` },
		func() string { return "-- s3cret ' \" $$\n" },
		func() string { return `b's3cret'` },
		func() string { return ` select ` },
		func() string { return `, "na'me"` },
		func() string { return `, "na""'--me"` },
		func() string { return ` $1 ` },
		func() string { return ` 5 ` },
		func() string { return ` + ` },
		func() string { return ` a$b ` },
		func() string { return "\n" },
	}
	for range 100000 {
		var b strings.Builder
		for range random.IntN(12) {
			b.WriteString(parts[random.IntN(len(parts))]())
			if random.IntN(3) > 0 {
				b.WriteByte(" ,(\n"[random.IntN(4)])
			}
		}
		sql := b.String()
		out := string(AppendRedacted(nil, []byte(sql), "?"))
		require.NotContains(t, out, "s3cret", sql)
		// Cut anywhere, as logs are.
		cut := random.IntN(len(sql) + 1)
		require.NotContains(t, string(AppendRedacted(nil, []byte(sql[:cut]), "?")), "s3cret", sql[:cut])
	}
}

// What is redacted has no literal left, and nothing is made up.
func FuzzRedact(f *testing.F) {
	for _, sql := range statements {
		if len(sql) < 1000 {
			f.Add([]byte(sql))
		}
	}
	f.Add([]byte(`select 1.$$s$$, 1$$s$$, 1e'a\'b', U&'x' uescape '!', $é$ 'x' $é$ -- a`))
	f.Fuzz(func(t *testing.T, sql []byte) {
		out := AppendRedacted(nil, sql, "?")
		again := AppendRedacted(nil, out, "?")
		if !bytes.Equal(out, again) {
			t.Fatalf("%q\n%q\n%q", sql, out, again)
		}
		for _, c := range out {
			if c == '\'' || c >= '0' && c <= '9' {
				// Only within names and parameters.
				if !bytes.ContainsAny(out, "\"$_abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ") && !hasHigh(out) {
					t.Fatalf("%q\n%q", sql, out)
				}
			}
		}
		if len(out) > len(sql) {
			t.Fatalf("longer: %q\n%q", sql, out)
		}
	})
}

func hasHigh(b []byte) bool {
	for _, c := range b {
		if c >= 0x80 {
			return true
		}
	}
	return false
}
