// Command devstack runs the private stack: a PostgreSQL cluster and an S3
// server for the demonstration, the tests and the benchmarks.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"pgcustody/cmd/devstack/stack"
)

func main() {
	// The first signal asks the command to end and clean up; the next one kills.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	err := rootCommand().ExecuteContext(ctx)
	if exit := new(exec.ExitError); errors.As(err, &exit) && exit.Exited() {
		os.Exit(exit.ExitCode()) // it has said why
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "devstack:", err)
		os.Exit(1)
	}
}

// settings are what all commands share.
type settings struct {
	dir string
	log *slog.Logger
}

func rootCommand() *cobra.Command {
	cfg := &settings{log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	root := &cobra.Command{
		Use:           "devstack",
		Short:         "A private PostgreSQL cluster and S3 server for demonstration, tests and benchmarks",
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	dir := os.Getenv("DEVSTACK_DIR")
	if dir == "" {
		dir = ".devstack"
	}
	root.PersistentFlags().StringVar(&cfg.dir, "dir", dir, "folder of the stack (DEVSTACK_DIR)")
	root.AddCommand(
		upCommand(cfg),
		downCommand(cfg),
		envCommand(cfg),
		statusCommand(cfg),
		migratorCommand(cfg),
		loginsCommand(cfg),
		withCommand(cfg),
	)
	root.AddCommand(extraCommands(cfg)...)
	return root
}

func upCommand(cfg *settings) *cobra.Command {
	var noFsync bool
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Start the stack, or what of it does not run",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := stack.Start(cmd.Context(), stack.Options{Dir: cfg.dir, NoFsync: noFsync, Log: cfg.log})
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "postgres   localhost:%d, database %s\ns3         %s, bucket %s\nsettings   source %s\n",
				s.PGPort, stack.Database, s.Endpoint(), s.Bucket, s.EnvFile())
			return nil
		},
	}
	cmd.Flags().BoolVar(&noFsync, "no-fsync", false, "a new cluster trades durability for speed")
	return cmd
}

func downCommand(cfg *settings) *cobra.Command {
	var wipe bool
	cmd := &cobra.Command{
		Use:   "down",
		Short: "Stop the stack's own processes",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := stack.Open(cfg.dir)
			if errors.Is(err, stack.ErrNoStack) {
				return nil // as wanted
			} else if err != nil {
				return err
			}
			if wipe {
				return s.Destroy(cmd.Context())
			}
			return s.Stop(cmd.Context())
		},
	}
	cmd.Flags().BoolVar(&wipe, "wipe", false, "remove the data too")
	return cmd
}

func envCommand(cfg *settings) *cobra.Command {
	return &cobra.Command{
		Use:   "env",
		Short: "Print the settings as shell commands",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := stack.Open(cfg.dir)
			if err != nil {
				return err
			}
			text, err := os.ReadFile(s.EnvFile())
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(text)
			return err
		},
	}
}

func statusCommand(cfg *settings) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Tell what runs and where; exit status 1 unless all of it does",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := stack.Open(cfg.dir)
			if err != nil {
				return err
			}
			postgres, gateway := s.Running()
			word := map[bool]string{true: "running", false: "stopped"}
			fmt.Fprintf(cmd.OutOrStdout(), "postgres   %s   pid %d   localhost:%d   logs in %s\ns3         %s   pid %d   %s\n",
				word[postgres], s.Postgres.PID, s.PGPort, s.LogDir(), word[gateway], s.Gateway.PID, s.Endpoint())
			if !postgres || !gateway {
				return fmt.Errorf("%s: not all of the stack runs", s.Dir)
			}
			return nil
		},
	}
}

func migratorCommand(cfg *settings) *cobra.Command {
	return &cobra.Command{
		Use:       "migrator open|close",
		Short:     "Let the migrator's login connect, or lock it out again",
		Args:      cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		ValidArgs: []string{"open", "close"},
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := stack.Open(cfg.dir)
			if err != nil {
				return err
			}
			if args[0] == "open" {
				return s.OpenMigrator(cmd.Context())
			}
			return s.CloseMigrator(cmd.Context())
		},
	}
}

func loginsCommand(cfg *settings) *cobra.Command {
	return &cobra.Command{
		Use:   "logins",
		Short: "Make the logins of applications and people, once the database is migrated",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := stack.Open(cfg.dir)
			if err != nil {
				return err
			}
			return s.PutLogins(cmd.Context(), stack.Database)
		},
	}
}

func withCommand(cfg *settings) *cobra.Command {
	var noFsync bool
	cmd := &cobra.Command{
		Use:   "with [--no-fsync] -- COMMAND [ARGUMENT...]",
		Short: "Run a command on a new stack, named by DEVSTACK_DIR and DEVSTACK_TEST_DIR, and remove the stack afterwards",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir, err := stack.TempDir()
			if err != nil {
				return err
			}
			s, err := stack.Start(cmd.Context(), stack.Options{Dir: dir, NoFsync: noFsync, Ephemeral: true, Log: cfg.log})
			if err != nil {
				return err
			}
			child := exec.CommandContext(cmd.Context(), args[0], args[1:]...)
			child.Stdin, child.Stdout, child.Stderr = os.Stdin, os.Stdout, os.Stderr
			child.Env = append(os.Environ(), "DEVSTACK_DIR="+dir, "DEVSTACK_TEST_DIR="+dir)
			child.Cancel = func() error { return child.Process.Signal(os.Interrupt) }
			child.WaitDelay = time.Minute
			return errors.Join(child.Run(), s.Destroy(context.WithoutCancel(cmd.Context())))
		},
	}
	cmd.Flags().BoolVar(&noFsync, "no-fsync", false, "the new cluster trades durability for speed")
	return cmd
}
