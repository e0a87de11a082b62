package cli

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"pgcustody/jobs"
)

func newAnchorCmd(app *App) *cobra.Command {
	return &cobra.Command{
		Use:   "anchor",
		Short: "Seal what waits, sign the audit ledger's tree, and put checkpoint and tiles into the store",
		Long: `Seal what waits, sign the audit ledger's tree, and put checkpoint and tiles into the store,
locked, where the tree grew or the last checkpoint is an hour old. The daemon does the same each
minute.

Nothing is signed that does not go on from the newest checkpoint in the store, and from what the
signer signed last: a database that was set back, altered or copied is refused with exit status 4,
one that leaves the log to another copy of it with 3.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return app.anchor(cmd.Context()) },
	}
}

func (a *App) anchor(ctx context.Context) error {
	return a.anchorDeps(ctx, "anchor", func(deps jobs.Deps) error {
		if _, err := jobs.Seal(ctx, deps); err != nil {
			return err
		}
		result, err := jobs.NewAnchor(deps).Run(ctx)
		for _, object := range result.Strange {
			a.Log.Warn("an object of the log is not what its name says, and was passed over", "object", object)
		}
		if err != nil {
			return err
		}
		return a.Print(result, func(out io.Writer) { fmt.Fprintln(out, result.Describe()) })
	})
}
