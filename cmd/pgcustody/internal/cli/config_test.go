package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/spf13/cobra"
	"github.com/stretchr/testify/require"

	"pgcustody/jobs"
	"pgcustody/jobs/keys"
	"pgcustody/jobs/store"
	"pgcustody/sql"
)

// resolved reads a command line and an environment into a configuration.
func resolved(t *testing.T, env map[string]string, args ...string) (*Config, error) {
	t.Helper()
	app := &App{Streams: Streams{Out: io.Discard, Err: io.Discard, Getenv: func(name string) (string, bool) {
		value, ok := env[name]
		return value, ok
	}}}
	root := newRoot(app)
	root.AddCommand(&cobra.Command{Use: "probe", RunE: func(*cobra.Command, []string) error { return nil }})
	root.SetArgs(append([]string{"probe"}, args...))
	err := root.ExecuteContext(t.Context())
	return &app.Config, err
}

func TestConfigSources(t *testing.T) {
	env := map[string]string{"PGCUSTODY_TENANT": "from-env", "PGCUSTODY_ACTOR": ""}
	c, err := resolved(t, env, "--store", "s3://from-flag")
	require.NoError(t, err)
	require.Equal(t, "from-env", c.Tenant)
	require.Equal(t, "environment PGCUSTODY_TENANT", c.Source("tenant"))
	require.Equal(t, "s3://from-flag", c.Store)
	require.Equal(t, "flag --store", c.Source("store"))
	require.Equal(t, "pgcustody", c.Actor, "an empty variable is none")
	require.Equal(t, "default", c.Source("actor"))
	require.Equal(t, "probe", c.Command)

	c, err = resolved(t, env, "--tenant", "from-flag")
	require.NoError(t, err)
	require.Equal(t, "from-flag", c.Tenant, "the flag goes before the variable")
}

func TestConfigErrorsNameFieldAndValue(t *testing.T) {
	for _, test := range []struct {
		env  map[string]string
		args []string
		want string
	}{
		{nil, []string{"--pooler", "statement"}, `--pooler="statement": must be one of none, transaction`},
		{map[string]string{"PGCUSTODY_POOLER": "x"}, nil, `PGCUSTODY_POOLER="x": must be one of none, transaction`},
		{nil, []string{"--log-format", "xml"}, `--log-format="xml": must be one of text, json`},
		{map[string]string{"PGCUSTODY_LOG_LEVEL": "loud"}, nil, `PGCUSTODY_LOG_LEVEL="loud": must be one of debug, info, warn, error`},
		{nil, []string{"--keys", "0123456789abcdef"}, "--keys: open key provider …:: name is not valid: write it as file:/directory, env: or awskms:KEY-ID-OR-ALIAS"},
		{map[string]string{"PGCUSTODY_KEYS": "file:keys"}, nil, "PGCUSTODY_KEYS: open key provider file:: name is not valid: give the directory as an absolute path: file:/directory"},
		{nil, []string{"--nonsense"}, "unknown flag: --nonsense"},
		{nil, []string{"--json=perhaps"}, `invalid argument "perhaps" for "--json" flag: strconv.ParseBool: parsing "perhaps": invalid syntax`},
	} {
		_, err := resolved(t, test.env, test.args...)
		code, line := explain(err)
		require.Equal(t, ExitUsage, code, test.want)
		require.Equal(t, test.want, line)
	}
}

func TestWebhookKey(t *testing.T) {
	good := strings.Repeat("ab", 32)
	file := filepath.Join(t.TempDir(), "key")
	require.NoError(t, os.WriteFile(file, []byte(good+"\n"), 0o600))
	for name, test := range map[string]struct {
		env    map[string]string
		args   []string
		length int
		want   string
	}{
		"none":     {nil, nil, 0, ""},
		"variable": {map[string]string{"PGCUSTODY_WEBHOOK_KEY": good}, nil, 32, ""},
		"file":     {map[string]string{"PGCUSTODY_WEBHOOK_KEY_FILE": file}, nil, 32, ""},
		"short":    {map[string]string{"PGCUSTODY_WEBHOOK_KEY": "abcd"}, nil, 0, "PGCUSTODY_WEBHOOK_KEY: must hold 32 bytes or more in hexadecimal"},
		"no hex":   {map[string]string{"PGCUSTODY_WEBHOOK_KEY": "secret " + good}, nil, 0, "PGCUSTODY_WEBHOOK_KEY: must hold 32 bytes or more in hexadecimal"},
		"no file":  {nil, []string{"--webhook-key-file", "/nowhere/key"}, 0, `--webhook-key-file="/nowhere/key": cannot be read`},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := resolved(t, test.env, test.args...)
			require.NoError(t, err)
			key, err := c.WebhookKey()
			if test.want != "" {
				require.EqualError(t, err, test.want, "the key itself is never shown")
				return
			}
			require.NoError(t, err)
			require.Len(t, key, test.length)
		})
	}
}

func TestExplain(t *testing.T) {
	pg := func(code string) error {
		return fmt.Errorf("do it: %w", &pgconn.PgError{Severity: "ERROR", Code: code, Message: "it happened", Detail: "Failing row contains (secret).", Hint: "Do better."})
	}
	for _, test := range []struct {
		err  error
		code int
		line string
	}{
		{nil, ExitOK, ""},
		{errors.New("boom"), ExitInternal, "boom"},
		{context.Canceled, ExitInternal, "interrupted: run the command again to go on"},
		{usagef("no"), ExitUsage, "no"},
		{&ConfigError{"--x", "1", "bad"}, ExitUsage, `--x="1": bad`},
		{pg("PC011"), ExitRefused, "it happened: Failing row contains (secret): Do better (PC011)"},
		{pg("22P02"), ExitRefused, "it happened (22P02)"},
		{pg("23514"), ExitInternal, "it happened (23514)"},
		{pg("PC019"), ExitCheck, "it happened: Failing row contains (secret): Do better (PC019)"},
		{pg("PC029"), ExitCheck, "it happened: Failing row contains (secret): Do better (PC029)"},
		{pg("PC015"), ExitPermission, "it happened: Failing row contains (secret): Do better (PC015)"},
		{pg("42501"), ExitPermission, "it happened (42501)"},
		{pg("PC031"), ExitDatabase, "it happened: Failing row contains (secret): Do better (PC031)"},
		{pg("57P01"), ExitDatabase, "database unreachable: it happened (57P01)"},
		{pg("55P03"), ExitInternal, "it happened (55P03)"},
		{&jobs.Failure{Step: "get key", Err: &keys.Error{Op: "get", Object: "KEK 1", Kind: keys.ErrUnavailable}}, ExitKeys, "get KEK 1: key provider cannot be reached"},
		{&keys.Error{Op: "get", Object: "KEK 1", Kind: keys.ErrRefused, Hint: "allow it"}, ExitPermission, "get KEK 1: key provider refused: allow it"},
		{fmt.Errorf("%w: acme", jobs.ErrNoKey), ExitRefused, "tenant has no key-encryption key: acme"},
		{&jobs.Failure{Step: "erase subject", Code: "PC016", Err: pg("PC016")}, ExitRefused, "it happened: Failing row contains (secret): Do better (PC016)"},
		{&jobs.Failure{Step: "send notice", Code: "status 503"}, ExitInternal, "send notice: status 503"},
		{&sql.StateError{Relation: sql.TooNew, Problem: "it has version 99"}, ExitDatabase, "database too new: it has version 99: use a newer pgcustody"},
		{&store.Error{Op: "put", Object: "s3://b/k", Kind: store.ErrNoObjectLock, Hint: "make another"}, ExitObjectStore, "put s3://b/k: bucket has no Object Lock: make another"},
		{&Failure{Code: ExitCheck, What: "held", Object: "request 1", Do: "wait"}, ExitCheck, "held: request 1: wait"},
	} {
		code, line := explain(test.err)
		require.Equal(t, test.code, code, "%v", test.err)
		require.Equal(t, test.line, line)
	}
}

func TestRedact(t *testing.T) {
	for address, want := range map[string]string{
		"postgres://u:secret@h/db?sslpassword=secret": "postgres://u:xxxxx@h/db",
		"host=h password=secret":                      "…",
		"::":                                          "…",
	} {
		require.Equal(t, want, redact(address))
	}
}

func TestProgressIsDrawnOnATerminalOnly(t *testing.T) {
	var out bytes.Buffer
	app := &App{Streams: Streams{Err: &out}}
	require.Nil(t, app.newProgress())
	app.newProgress().Show(jobs.Progress{Job: "retention", Unit: "rows", Done: 1, Total: 2})
	require.Empty(t, out.String())
	app.Terminal, app.JSON = true, true
	require.Nil(t, app.newProgress())
	app.JSON = false
	bar := app.newProgress()
	bar.Show(jobs.Progress{Job: "retention", Unit: "rows", Done: 1, Total: 2})
	require.Equal(t, "\rretention [############............] 1/2 rows", out.String())
	bar.Show(jobs.Progress{Job: "retention", Unit: "rows", Done: 1, Total: 2})
	require.Equal(t, 1, strings.Count(out.String(), "\r"), "not more than ten times a second")
	bar.Show(jobs.Progress{Job: "retention", Unit: "rows", Done: 2, Total: 2})
	require.Equal(t, 2, strings.Count(out.String(), "\r"), "but the last")
	bar.Done()
	require.True(t, strings.HasSuffix(out.String(), "\r"))
}
