// Package cli is pgcustody's command line: one file a command, one struct a
// command, everything that a command writes to injected.
package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"pgcustody/jobs"
)

// Streams is the outside world of a command.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
	// Getenv looks an environment variable up.
	Getenv func(string) (string, bool)
	// Terminal says whether Err is one: only there a progress bar is drawn.
	Terminal bool
}

// Standard is the process's own streams.
func Standard() Streams {
	return Streams{
		In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Getenv: os.LookupEnv,
		Terminal: term.IsTerminal(int(os.Stderr.Fd())),
	}
}

// App is what a command is built on.
type App struct {
	Config
	Streams
	Log *slog.Logger

	unlock *jobs.Unlocker // made by unlocker
}

// commands lists every command; each has a file of its own.
func commands() []func(*App) *cobra.Command {
	return []func(*App) *cobra.Command{
		newAccessCmd,
		newAlertsCmd,
		newAnchorCmd,
		newArchiveCmd,
		newBackupCmd,
		newCheckCmd,
		newDetectCmd,
		newEraseCmd,
		newExportCmd,
		newHoldCmd,
		newImportCmd,
		newKeysCmd,
		newLoginCmd,
		newLogsCmd,
		newMigrateCmd,
		newProofCmd,
		newRequestsCmd,
		newRestoreCmd,
		newRetentionCmd,
		newRunCmd,
		newSignerCmd,
		newStatusCmd,
		newStoreCmd,
		newTenantsCmd,
		newTokenKeyCmd,
		newVerifyCmd,
		newWorkCmd,
	}
}

// Main runs one command line and returns its exit code. An interrupt or SIGTERM
// cancels the command's context.
func Main(args []string, streams Streams) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return Run(ctx, args, streams)
}

// Run is Main under a context of the caller's.
func Run(ctx context.Context, args []string, streams Streams) int {
	app := &App{Streams: streams}
	root := newRoot(app)
	root.SetArgs(args)
	code, line := explain(app.explainLocked(root.ExecuteContext(ctx)))
	if line != "" {
		fmt.Fprintln(streams.Err, "pgcustody: "+strings.ReplaceAll(line, "\n", " "))
	}
	return code
}

func newRoot(app *App) *cobra.Command {
	root := &cobra.Command{
		Use:           "pgcustody",
		Short:         "Keep, forget and prove regulated data in Postgres",
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			app.getenv = app.Getenv
			if err := app.resolve(cmd); err != nil {
				return err
			}
			app.Log = app.newLog()
			return nil
		},
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	root.SetIn(app.In)
	root.SetOut(app.Out)
	root.SetErr(app.Err)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &usageError{err} })
	app.addFlags(root.PersistentFlags())
	for _, command := range commands() {
		root.AddCommand(command(app))
	}
	wrapUsage(root)
	return root
}

// wrapUsage makes wrong arguments usage errors, and a group without its command
// an error rather than a help page with status 0.
func wrapUsage(cmd *cobra.Command) {
	args := cmd.Args
	if args == nil {
		args = cobra.NoArgs
	}
	cmd.Args = func(cmd *cobra.Command, given []string) error {
		if cmd.HasSubCommands() && len(given) > 0 {
			return usagef("unknown command %q for %q: see %s --help", given[0], cmd.CommandPath(), cmd.CommandPath())
		}
		if err := args(cmd, given); err != nil {
			return usagef("%s: see %s --help", err, cmd.CommandPath())
		}
		return nil
	}
	if cmd.HasSubCommands() && cmd.HasParent() && cmd.RunE == nil {
		cmd.RunE = func(cmd *cobra.Command, _ []string) error {
			return usagef("%q wants a command: see %s --help", cmd.CommandPath(), cmd.CommandPath())
		}
	}
	for _, child := range cmd.Commands() {
		wrapUsage(child)
	}
}

// newLog logs to standard error: what a daemon does from level info, what a
// command does from warn, unless --log-level says otherwise.
func (a *App) newLog() *slog.Logger {
	level := slog.LevelWarn
	if a.Command == "work" {
		level = slog.LevelInfo
	}
	_ = level.UnmarshalText([]byte(cmp.Or(a.LogLevel, level.String())))
	options := &slog.HandlerOptions{Level: level}
	if a.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(a.Err, options))
	}
	return slog.New(slog.NewTextHandler(a.Err, options))
}

// Print writes a command's result: value as one JSON document with --json, else
// what text writes.
func (a *App) Print(value any, text func(io.Writer)) error {
	if !a.JSON {
		text(a.Out)
		return nil
	}
	encoder := json.NewEncoder(a.Out)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	return encoder.Encode(value)
}
