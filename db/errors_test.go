package db

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"
)

// The codes of class PC stand in three places: here, in the SQL that raises
// them, and in README's table. Whoever adds one adds it to all three.
func TestCodesAreListedEverywhere(t *testing.T) {
	var here []string
	for code := range codes {
		if strings.HasPrefix(code, "PC") {
			here = append(here, code)
		}
	}
	slices.Sort(here)

	t.Run("sql", func(t *testing.T) {
		quoted := regexp.MustCompile(`'(PC[0-9]{3})'`)
		raised := map[string]bool{}
		require.NoError(t, filepath.WalkDir("../sql", func(path string, entry fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if entry.IsDir() && slices.Contains([]string{"tests", "snapshot"}, entry.Name()) {
				return fs.SkipDir
			}
			if filepath.Ext(path) != ".sql" {
				return nil
			}
			text, err := os.ReadFile(path)
			for _, match := range quoted.FindAllStringSubmatch(string(text), -1) {
				raised[match[1]] = true
			}
			return err
		}))
		require.Equal(t, here, slices.Sorted(maps.Keys(raised)), "codes in errors.go and codes that the SQL raises")
	})

	t.Run("README", func(t *testing.T) {
		text, err := os.ReadFile("../README.md")
		require.NoError(t, err)
		var listed []string
		for _, match := range regexp.MustCompile("(?m)^\\| `?(PC[0-9]{3})`? \\|").FindAllStringSubmatch(string(text), -1) {
			listed = append(listed, match[1])
		}
		require.Equal(t, here, listed, "codes in errors.go and rows `| PC001 | …` of README's table, in order")
	})
}

func TestSentinelsAreDistinct(t *testing.T) {
	seen := map[error]string{}
	for code, kind := range codes {
		if !strings.HasPrefix(code, "PC") {
			continue
		}
		require.Emptyf(t, seen[kind], "%s has the sentinel of %s", code, seen[kind])
		seen[kind] = code
	}
}

func TestFromPg(t *testing.T) {
	refusal := &pgconn.PgError{
		Code: "PC014", Message: "profile is at version 3", Detail: "p_if_version is 2", Hint: "Read it again.",
		SchemaName: "custody_data", TableName: "user_profiles", ColumnName: "version", ConstraintName: "c",
	}
	for name, test := range map[string]struct {
		err  error
		want error
	}{
		"class PC":                 {refusal, ErrStaleVersion},
		"wrapped":                  {fmt.Errorf("put profile: %w", refusal), ErrStaleVersion},
		"permission":               {&pgconn.PgError{Code: "42501"}, ErrPermission},
		"invalid JSON":             {&pgconn.PgError{Code: "22P02"}, ErrInvalidInput},
		"NUL":                      {&pgconn.PgError{Code: "22021"}, ErrInvalidInput},
		"NUL in JSON":              {&pgconn.PgError{Code: "22P05"}, ErrInvalidInput},
		"serialization":            {&pgconn.PgError{Code: "40001"}, ErrConflict},
		"lock timeout":             {&pgconn.PgError{Code: "55P03"}, ErrLockTimeout},
		"statement timeout":        {&pgconn.PgError{Code: "57014"}, ErrCanceled},
		"class 08":                 {&pgconn.PgError{Code: "08006"}, ErrUnreachable},
		"wrong password":           {&pgconn.PgError{Code: "28P01"}, ErrUnreachable},
		"server going down":        {&pgconn.PgError{Code: "57P01"}, ErrUnreachable},
		"function is not there":    {&pgconn.PgError{Code: "42883"}, ErrNotMigrated},
		"connection cannot be had": {&net.OpError{Op: "dial", Err: errors.New("refused")}, ErrUnreachable},
		"connection broke":         {fmt.Errorf("receive: %w", io.ErrUnexpectedEOF), ErrUnreachable},
	} {
		t.Run(name, func(t *testing.T) {
			got := FromPg(test.err)
			require.ErrorIs(t, got, test.want)
			require.ErrorIs(t, got, test.err, "the driver's error is kept")
			require.Same(t, got, FromPg(got), "mapping twice changes nothing")
		})
	}

	var e *Error
	require.ErrorAs(t, Wrap("put profile", refusal), &e)
	require.Equal(t, "PC014", e.Code)
	require.Equal(t, "profile is at version 3", e.Message)
	require.Equal(t, "p_if_version is 2", e.Detail)
	require.Equal(t, "Read it again.", e.Hint)
	require.Equal(t, [4]string{"custody_data", "user_profiles", "version", "c"}, [4]string{e.Schema, e.Table, e.Column, e.Constraint})
	require.EqualError(t, Wrap("put profile", refusal), "put profile: profile is at version 3 (PC014)")

	// A constraint's detail quotes the row: it must not be in the text that is logged.
	require.NotContains(t, FromPg(&pgconn.PgError{Code: "23514", Message: "m", Detail: "Failing row contains (Ada)"}).Error(), "Ada")
	// A code without a sentinel is still an *Error.
	require.ErrorAs(t, FromPg(&pgconn.PgError{Code: "23514"}), &e)

	require.NoError(t, FromPg(nil))
	require.NoError(t, Wrap("x", nil))
	require.Equal(t, context.Canceled, FromPg(context.Canceled))
}

func TestFromPgAtAClosedPort(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	address := listener.Addr().(*net.TCPAddr)
	require.NoError(t, listener.Close())
	_, err = pgconn.Connect(t.Context(), fmt.Sprintf("postgres://u@127.0.0.1:%d/d?sslmode=disable", address.Port))
	require.ErrorIs(t, FromPg(err), ErrUnreachable)
}
