package cli

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"pgcustody/db"
	"pgcustody/jobs"
)

func newTokenKeyCmd(app *App) *cobra.Command {
	k := &tokenKeyCommands{App: app}
	cmd := &cobra.Command{
		Use:   "token-key",
		Short: "Register and retire the keys under which applications' tokens are signed",
		Long: `Register and retire the keys under which the applications' auth layer signs the tokens that
custody.begin_context takes. The key is never an argument: it is read from --key-file, or from
PGCUSTODY_TOKEN_KEY, in hexadecimal, as openssl rand -hex 32 makes one.

To rotate: register the next key under a new name, have the auth layer sign with it, and retire the
old one an hour later, when no token under it is in its time. After a restore register it again:
keys are not in dumps. All of it is for a login that is a member of custody_admin: --migrate-url.`,
	}
	adminFlag(app, cmd)
	register := &cobra.Command{
		Use:   "register KID",
		Short: "Make a key known; tokens that name it as their kid are good at once",
		Args:  cobra.ExactArgs(1),
		RunE:  func(cmd *cobra.Command, args []string) error { return k.Register(cmd.Context(), args[0]) },
	}
	register.Flags().StringVar(&k.KeyFile, "key-file", "", "file with the key, 32 to 128 bytes in hexadecimal; or PGCUSTODY_TOKEN_KEY holds it")
	fromEnv(register.Flags(), "key-file", "PGCUSTODY_TOKEN_KEY_FILE")
	register.Flags().StringVar(&k.For, "for", "", "the only tenant for which its tokens speak; default all")
	cmd.AddCommand(register, &cobra.Command{
		Use:   "retire KID",
		Short: "Forget a key: tokens under it are refused from then on",
		Args:  cobra.ExactArgs(1),
		RunE:  func(cmd *cobra.Command, args []string) error { return k.Retire(cmd.Context(), args[0]) },
	})
	return cmd
}

type tokenKeyCommands struct {
	*App
	KeyFile, For string
}

// key reads the key. No error shows any of it.
func (k *tokenKeyCommands) key() ([]byte, error) {
	field := "PGCUSTODY_TOKEN_KEY"
	text, _ := k.getenv(field)
	if k.KeyFile != "" {
		field = k.field("key-file")
		content, err := os.ReadFile(k.KeyFile)
		if err != nil {
			return nil, &ConfigError{field, k.KeyFile, "cannot be read"}
		}
		text = string(content)
	}
	if text == "" && k.KeyFile == "" {
		return nil, &ConfigError{Field: "--key-file", Problem: "required: name the file of the key, or set PGCUSTODY_TOKEN_KEY"}
	}
	key, err := hex.DecodeString(strings.TrimSpace(text))
	if err != nil || len(key) < 32 || len(key) > 128 {
		return nil, &ConfigError{Field: field, Problem: "must hold 32 to 128 bytes in hexadecimal"}
	}
	return key, nil
}

func (k *tokenKeyCommands) Register(ctx context.Context, kid string) error {
	key, err := k.key()
	if err != nil {
		return err
	}
	var registered string
	if err := k.asAdmin(ctx, "register", jobs.SystemTenant, func(tx pgx.Tx) (err error) {
		registered, err = db.New().RegisterTokenKey(ctx, tx, db.RegisterTokenKeyParams{Kid: kid, Key: key, Tenant: textOrNil(k.For)})
		return err
	}); err != nil {
		return err
	}
	if registered == "" {
		return &Failure{Code: ExitPermission, What: "the key was not taken: log_parameter_max_length_on_error would have written it to the server's log", Object: "token key " + kid,
			Do: "set it to 0, and make another key"}
	}
	return k.Print(map[string]string{"kid": kid, "tenant": k.For}, func(out io.Writer) { fmt.Fprintf(out, "tokens under key %s are good\n", kid) })
}

func (k *tokenKeyCommands) Retire(ctx context.Context, kid string) error {
	if err := k.asAdmin(ctx, "retire", jobs.SystemTenant, func(tx pgx.Tx) error { return db.New().RetireTokenKey(ctx, tx, kid) }); err != nil {
		return err
	}
	return k.Print(map[string]string{"kid": kid}, func(out io.Writer) { fmt.Fprintf(out, "key %s is forgotten\n", kid) })
}
