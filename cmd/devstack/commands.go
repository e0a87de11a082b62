package main

import "github.com/spf13/cobra"

// extraCommands is where the commands that use the stack are listed: the demonstration,
// which the Makefile calls by its name.
func extraCommands(cfg *settings) []*cobra.Command {
	return []*cobra.Command{demoCommand(cfg)}
}
