package cli

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"pgcustody/jobs/agekeys"
	"pgcustody/jobs/keys"
	"pgcustody/jobs/store"
)

// Config is what every command is given. A value comes from its flag, else from
// its environment variable, else from its default; Source tells which.
type Config struct {
	// DatabaseURL is the runner's login; empty means that the PG* variables say
	// all of it.
	DatabaseURL string
	// MigrateURL is the login that owns the database (`migrate` only).
	MigrateURL string
	// Pooler is `none`, or `transaction` behind PgBouncer or its like: no
	// prepared statements, no LISTEN.
	Pooler string
	// Tenant is the tenant that a command works for.
	Tenant string
	// Actor is the external id under which the trail records what is done.
	Actor string
	// Store names the object store, as in s3://bucket.
	Store string
	// StoreAccept names findings about the store in spite of which it is used, and
	// StoreOptions says how objects are put there.
	StoreAccept  []string
	StoreOptions store.Options
	// ArchiveRecipients are public keys of age that the archive is encrypted to, or the
	// name of a file of them. Empty: nothing is archived.
	ArchiveRecipients string
	// Keys names the provider of key-encryption keys, as in awskms:KEY. Empty:
	// whatever needs a key stays locked.
	Keys string
	// Signer is the folder of the key that signs checkpoints of the audit ledger, and
	// Origin the log's name, which the signer knows too.
	Signer, Origin string
	// WebhookKeyFile holds the key that signs erasure notices, in hexadecimal;
	// the variable PGCUSTODY_WEBHOOK_KEY may hold it instead.
	WebhookKeyFile string
	// LogSource is the directory of the server's log, or `server` for the connection;
	// LogName its name in batches. LogLiterals and LogMessages say what is passed on of
	// statements and messages, LogPlausible that statements are believed without a source
	// location.
	LogSource, LogName, LogLiterals string
	LogMessages, LogPlausible       bool
	// LogSinks are where else the lines go; LogSinkCA verifies them, LogSinkTokenFile holds
	// what HTTP ones are given (or PGCUSTODY_LOG_SINK_TOKEN), LogSinkTrail sends them the trail too.
	LogSinks                    []string
	LogSinkCA, LogSinkTokenFile string
	LogSinkTrail                bool
	// AlertWebhook is posted every alert of detection that is opened; empty for none.
	AlertWebhook string
	// LogFormat is `text` or `json`; LogLevel debug, info, warn or error.
	LogFormat, LogLevel string
	// JSON asks for one JSON document on standard output.
	JSON bool

	// Command is the words of the running command, as in `retention run`.
	Command string

	provider   keys.Provider // that of Keys, or nil
	recipients agekeys.Recipients

	getenv  func(string) (string, bool)
	sources map[string]string
}

// ConfigError is a setting that is missing or wrong.
type ConfigError struct {
	Field, Value, Problem string
}

func (e *ConfigError) Error() string {
	if e.Value == "" {
		return e.Field + ": " + e.Problem
	}
	return fmt.Sprintf("%s=%s: %s", e.Field, strconv.Quote(e.Value), e.Problem)
}

const envAnnotation = "pgcustody_env"

// fromEnv lets the environment variable env set the flag name where the command
// line does not.
func fromEnv(flags *pflag.FlagSet, name, env string) {
	flag := flags.Lookup(name)
	flag.Usage += " (" + env + ")"
	if flag.Annotations == nil {
		flag.Annotations = map[string][]string{}
	}
	flag.Annotations[envAnnotation] = []string{env}
}

// addFlags declares the settings that every command knows.
func (c *Config) addFlags(flags *pflag.FlagSet) {
	flags.StringVar(&c.DatabaseURL, "database-url", "", "database as the runner's login; without it, PG* variables")
	fromEnv(flags, "database-url", "PGCUSTODY_DATABASE_URL")
	flags.StringVar(&c.Pooler, "pooler", "none", "what stands before the database: none or transaction")
	fromEnv(flags, "pooler", "PGCUSTODY_POOLER")
	flags.StringVar(&c.Tenant, "tenant", "", "tenant to work for")
	fromEnv(flags, "tenant", "PGCUSTODY_TENANT")
	flags.StringVar(&c.Actor, "actor", "pgcustody", "id under which the trail records what is done")
	fromEnv(flags, "actor", "PGCUSTODY_ACTOR")
	flags.StringVar(&c.Store, "store", "", "object store, as in s3://bucket")
	fromEnv(flags, "store", "PGCUSTODY_STORE")
	flags.StringSliceVar(&c.StoreAccept, "accept", nil, "findings of `store check` in spite of which the store is used, as in no-lock")
	fromEnv(flags, "accept", "PGCUSTODY_STORE_ACCEPT")
	flags.StringVar(&c.StoreOptions.StorageClass, "storage-class", "", "storage class of larger locked objects, as in STANDARD_IA")
	fromEnv(flags, "storage-class", "PGCUSTODY_STORAGE_CLASS")
	flags.StringVar(&c.StoreOptions.SSE, "s3-sse", "", "encryption to ask S3 for: AES256 or aws:kms")
	fromEnv(flags, "s3-sse", "PGCUSTODY_S3_SSE")
	flags.StringVar(&c.StoreOptions.SSEKMSKey, "s3-sse-kms-key", "", "KMS key of that encryption")
	fromEnv(flags, "s3-sse-kms-key", "PGCUSTODY_S3_SSE_KMS_KEY")
	flags.StringVar(&c.StoreOptions.PathStyle, "s3-path-style", "", "true or false: S3 bucket behind the host or in its name; default by endpoint")
	fromEnv(flags, "s3-path-style", "PGCUSTODY_S3_PATH_STYLE")
	flags.StringVar(&c.ArchiveRecipients, "archive-recipients", "", "public keys of age to encrypt the archive to, age1…,age1…, or a file of them")
	fromEnv(flags, "archive-recipients", "PGCUSTODY_ARCHIVE_RECIPIENTS")
	flags.StringVar(&c.Keys, "keys", "", "provider of key-encryption keys: file:/directory, env: or awskms:KEY")
	fromEnv(flags, "keys", "PGCUSTODY_KEYS")
	flags.StringVar(&c.Signer, "signer", "", "folder of the key that signs checkpoints of the audit ledger")
	fromEnv(flags, "signer", "PGCUSTODY_SIGNER")
	flags.StringVar(&c.Origin, "origin", "", "name of the audit ledger's log, as in example.com/custody")
	fromEnv(flags, "origin", "PGCUSTODY_ORIGIN")
	flags.StringVar(&c.WebhookKeyFile, "webhook-key-file", "", "file with the key that signs erasure notices and alerts, in hexadecimal; or PGCUSTODY_WEBHOOK_KEY holds it")
	fromEnv(flags, "webhook-key-file", "PGCUSTODY_WEBHOOK_KEY_FILE")
	flags.StringVar(&c.LogSource, "log-source", "", "directory of the server's log, or server: through the connection")
	fromEnv(flags, "log-source", "PGCUSTODY_LOG_SOURCE")
	flags.StringVar(&c.LogName, "log-name", "server", "name of the server whose log it is")
	fromEnv(flags, "log-name", "PGCUSTODY_LOG_NAME")
	flags.StringVar(&c.LogLiterals, "log-literals", "replace", "what becomes of literals in statements of the log: replace, drop or keep")
	fromEnv(flags, "log-literals", "PGCUSTODY_LOG_LITERALS")
	flags.BoolVar(&c.LogMessages, "log-messages", false, "ship messages, details and contexts too, in which the server quotes values")
	fromEnv(flags, "log-messages", "PGCUSTODY_LOG_MESSAGES")
	flags.BoolVar(&c.LogPlausible, "log-plausible", false, "believe statements in a log without source locations (log_error_verbosity)")
	fromEnv(flags, "log-plausible", "PGCUSTODY_LOG_PLAUSIBLE")
	flags.StringSliceVar(&c.LogSinks, "log-sinks", nil, "where else the log goes: syslog+tls://host:port, https://host/path")
	fromEnv(flags, "log-sinks", "PGCUSTODY_LOG_SINKS")
	flags.StringVar(&c.LogSinkCA, "log-sink-ca", "", "file of the authorities that sinks are verified by; default the system's")
	fromEnv(flags, "log-sink-ca", "PGCUSTODY_LOG_SINK_CA")
	flags.StringVar(&c.LogSinkTokenFile, "log-sink-token-file", "", "file with the bearer's token of HTTP sinks; or PGCUSTODY_LOG_SINK_TOKEN holds it")
	fromEnv(flags, "log-sink-token-file", "PGCUSTODY_LOG_SINK_TOKEN_FILE")
	flags.BoolVar(&c.LogSinkTrail, "log-sink-trail", false, "send sinks the sealed events of the audit trail too")
	fromEnv(flags, "log-sink-trail", "PGCUSTODY_LOG_SINK_TRAIL")
	flags.StringVar(&c.AlertWebhook, "alert-webhook", "", "URL that alerts of detection are posted to, signed with the webhook key")
	fromEnv(flags, "alert-webhook", "PGCUSTODY_ALERT_WEBHOOK")
	flags.StringVar(&c.LogFormat, "log-format", "text", "text or json")
	fromEnv(flags, "log-format", "PGCUSTODY_LOG_FORMAT")
	flags.StringVar(&c.LogLevel, "log-level", "", "debug, info, warn or error; default info for work, warn for the others")
	fromEnv(flags, "log-level", "PGCUSTODY_LOG_LEVEL")
	flags.BoolVar(&c.JSON, "json", false, "print one JSON document")
}

// resolve fills in from the environment what the command line left open, and
// checks what every command shares.
func (c *Config) resolve(cmd *cobra.Command) error {
	c.sources = map[string]string{}
	c.Command = strings.TrimPrefix(cmd.CommandPath(), cmd.Root().Name()+" ")

	var failed error
	cmd.Flags().VisitAll(func(flag *pflag.Flag) {
		c.sources[flag.Name] = "default"
		if flag.Changed {
			c.sources[flag.Name] = "flag --" + flag.Name
			return
		}
		env := flag.Annotations[envAnnotation]
		if len(env) == 0 {
			return
		}
		value, ok := c.getenv(env[0])
		if !ok || value == "" {
			return
		}
		if err := flag.Value.Set(value); err != nil && failed == nil {
			failed = &ConfigError{env[0], value, "not a " + flag.Value.Type()}
		}
		c.sources[flag.Name] = "environment " + env[0]
	})
	if failed != nil {
		return failed
	}

	for _, check := range []struct {
		flag, value string
		known       []string
	}{
		{"pooler", c.Pooler, []string{"none", "transaction"}},
		{"log-format", c.LogFormat, []string{"text", "json"}},
		{"log-level", c.LogLevel, []string{"", "debug", "info", "warn", "error"}},
	} {
		if !slices.Contains(check.known, check.value) {
			return c.wrong(check.flag, check.value, "must be one of "+strings.TrimPrefix(strings.Join(check.known, ", "), ", "))
		}
	}
	if err := store.CheckNames(c.StoreAccept); err != nil {
		return c.wrong("accept", strings.Join(c.StoreAccept, ","), err.Error())
	}
	var option *store.OptionError
	if errors.As(c.StoreOptions.Check(), &option) {
		return c.wrong(storeOptions[option.Name], option.Value, option.Problem)
	}
	if c.ArchiveRecipients != "" {
		var err error
		if c.recipients, err = agekeys.ParseSetting(c.field("archive-recipients"), c.ArchiveRecipients); err != nil {
			var wrong *agekeys.Error
			errors.As(err, &wrong)
			// The value is not shown: it may be an identity that was set by mistake.
			return &ConfigError{Field: wrong.Place, Problem: wrong.What}
		}
	}
	if c.Keys != "" {
		var err error
		if c.provider, err = keys.Parse(cmd.Context(), c.Keys, false); err != nil {
			// The value is not shown: it may be a key that was set by mistake.
			return &ConfigError{Field: c.field("keys"), Problem: err.Error()}
		}
	}
	return nil
}

// storeOptions are the flags of the fields of store.Options.
var storeOptions = map[string]string{
	"StorageClass": "storage-class", "SSE": "s3-sse", "SSEKMSKey": "s3-sse-kms-key", "PathStyle": "s3-path-style",
}

// Source tells where the value of a flag came from: the flag, an environment
// variable, or the default.
func (c *Config) Source(flag string) string { return c.sources[flag] }

// field names a setting the way the operator gave it.
func (c *Config) field(flag string) string {
	if env, ok := strings.CutPrefix(c.sources[flag], "environment "); ok {
		return env
	}
	return "--" + flag
}

func (c *Config) wrong(flag, value, problem string) error {
	return &ConfigError{c.field(flag), value, problem}
}

// NeedTenant returns the tenant, or the error that names what is missing.
func (c *Config) NeedTenant() (string, error) {
	if c.Tenant == "" {
		return "", &ConfigError{Field: "--tenant", Problem: "required: name the tenant to work for, or set PGCUSTODY_TENANT"}
	}
	return c.Tenant, nil
}

// NeedStore returns the store's address, or the error that names what is missing.
func (c *Config) NeedStore() (string, error) {
	if c.Store == "" {
		return "", &ConfigError{Field: "--store", Problem: "required: name the object store, as in s3://bucket, or set PGCUSTODY_STORE"}
	}
	return c.Store, nil
}

// NeedKeys returns the key provider, or the error that names what is missing.
func (c *Config) NeedKeys() (keys.Provider, error) {
	if c.provider == nil {
		return nil, &ConfigError{Field: "--keys", Problem: "required: name the key provider, as in file:/directory or awskms:KEY, or set PGCUSTODY_KEYS"}
	}
	return c.provider, nil
}

// WebhookKey reads the key that signs erasure notices: 32 bytes or more, in
// hexadecimal. It is nil where none is configured.
func (c *Config) WebhookKey() ([]byte, error) {
	field := "PGCUSTODY_WEBHOOK_KEY"
	text, _ := c.getenv(field)
	if c.WebhookKeyFile != "" {
		field = c.field("webhook-key-file")
		content, err := os.ReadFile(c.WebhookKeyFile)
		if err != nil {
			return nil, &ConfigError{field, c.WebhookKeyFile, "cannot be read"}
		}
		text = string(content)
	}
	if text == "" && c.WebhookKeyFile == "" {
		return nil, nil
	}
	key, err := hex.DecodeString(strings.TrimSpace(text))
	if err != nil || len(key) < 32 {
		return nil, &ConfigError{Field: field, Problem: "must hold 32 bytes or more in hexadecimal"}
	}
	return key, nil
}

// Pool opens the database as the runner's login. step says what the connection
// is for; application_name shows it as `pgcustody <command>/<step>`.
func (c *Config) Pool(ctx context.Context, step string) (*pgxpool.Pool, error) {
	address := c.DatabaseURL
	config, err := pgxpool.ParseConfig(address)
	if err != nil {
		// The parser's own message may repeat the password.
		if address == "" {
			return nil, &ConfigError{Field: "PG*", Problem: "the PostgreSQL variables do not make an address: check PGPORT, PGSSLMODE, PGSSLROOTCERT"}
		}
		return nil, c.wrong("database-url", redact(address), "not a PostgreSQL address, as in postgres://user@host:port/database")
	}
	config.MaxConns = max(config.MaxConns, minConnections)
	name := "pgcustody " + c.Command + "/" + step
	config.ConnConfig.RuntimeParams["application_name"] = name[:min(len(name), 63)]
	if c.Pooler == "transaction" {
		config.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec
	}
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	if err := pool.Ping(ctx); err != nil {
		pool.Close()
		return nil, fmt.Errorf("open database: %w", err)
	}
	return pool, nil
}

// minConnections is how many the workers of a process may want at once, with
// River's own.
const minConnections = 12

// redact keeps a URL's shape and takes out what may be secret.
func redact(address string) string {
	parsed, err := url.Parse(address)
	if err != nil || parsed.Scheme == "" {
		return "…"
	}
	parsed.RawQuery = ""
	return parsed.Redacted()
}
