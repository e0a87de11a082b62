package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"pgcustody/jobs/store"
)

func newStoreCmd(app *App) *cobra.Command {
	cmd := &cobra.Command{Use: "store", Short: "Look at the object store"}
	s := &storeCommand{App: app}
	principals := map[string]*[]string{}
	policy := &cobra.Command{
		Use:   "policy",
		Short: "Print the bucket's policy for S3, with the least rights of each part that is named",
		Long: `Print the policy of the bucket for S3 in JSON, with the least rights of each part that is
named: the worker writes, locks and reads, and deletes nothing; the remover deletes
exports, and objects whose lock has run out; the reader reads; the administrator
lengthens locks and holds, and reads no content. No part may bypass a lock. The daemon
needs the worker's rights, and the remover's where it carries out erasures or ends
retention. Nothing is asked of the store.`,
		RunE: func(*cobra.Command, []string) error { return s.Policy(principals) },
	}
	for _, part := range store.PolicyParts {
		principals[part] = policy.Flags().StringSlice(part, nil, "principals of the "+part+", as in arn:aws:iam::123456789012:role/"+part)
	}
	cmd.AddCommand(policy, &cobra.Command{
		Use:   "check",
		Short: "Prove that the store keeps what is put under its lock",
		Long: `Prove that the store keeps what is put under its lock, rather than believe its settings:
a small object is locked for 20 minutes, and the store must refuse to delete it, to write
over it and to shorten its lock, to these credentials and to anybody. What is found has a
name; --accept takes names of findings that are known and accepted, here as for the jobs
that write. Exit status 4 where something is found that is neither accepted nor a warning.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return s.Check(cmd.Context()) },
	})
	return cmd
}

type storeCommand struct{ *App }

func (s *storeCommand) Policy(of map[string]*[]string) error {
	address, err := s.NeedStore()
	if err != nil {
		return err
	}
	principals, named := map[string][]string{}, false
	for part, names := range of {
		principals[part] = *names
		named = named || len(*names) > 0
	}
	if !named {
		return usagef("name the principals of a part, as in --worker arn:aws:iam::123456789012:role/worker")
	}
	policy, err := store.Policy(address, principals)
	if wrong := new(store.Error); errors.As(err, &wrong) {
		return s.wrong("store", wrong.Object, wrong.Hint)
	}
	if err == nil {
		fmt.Fprintln(s.Out, string(policy))
	}
	return err
}

type storeFinding struct {
	Name     string `json:"name"`
	Level    string `json:"level"` // error, accepted or warning
	Object   string `json:"object"`
	What     string `json:"what"`
	WhatToDo string `json:"what_to_do"`
}

func (s *storeCommand) Check(ctx context.Context) error {
	opened, err := s.namedStore(ctx)
	if err != nil {
		return err
	}
	found, err := opened.Check(ctx)
	if err != nil {
		return err
	}
	findings := []storeFinding{}
	for _, f := range found {
		level := "error"
		switch {
		case f.Warning:
			level = "warning"
		case slices.Contains(s.StoreAccept, f.Name):
			level = "accepted"
		}
		findings = append(findings, storeFinding{f.Name, level, f.Object, f.What, f.Do})
	}
	refused := store.Accept(found, s.StoreAccept)
	err = s.Print(map[string]any{"store": opened.URL(), "fit": refused == nil, "findings": findings}, func(out io.Writer) {
		if store.Accept(found, nil) == nil {
			fmt.Fprintf(out, "%s holds: versions, Object Lock, and a canary in %s mode that it refused to delete, to shorten and to write over\n",
				opened.URL(), store.ModeCompliance)
		}
		if len(findings) == 0 {
			return
		}
		table := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
		fmt.Fprintln(table, "LEVEL\tFINDING\tOBJECT\tWHAT WAS SEEN\tWHAT TO DO")
		for _, f := range findings {
			fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", f.Level, f.Name, f.Object, f.What, f.WhatToDo)
		}
		_ = table.Flush()
	})
	if unfit := new(store.Error); err == nil && errors.As(refused, &unfit) {
		return &Failure{Code: ExitCheck, What: unfit.Kind.Error() + ": " + unfit.Err.Error(), Object: unfit.Object, Do: unfit.Hint}
	}
	return err
}
