// Command pgcustody is the runner and command line of pgcustody.
package main

import (
	"os"

	"pgcustody/cmd/pgcustody/internal/cli"
)

func main() { os.Exit(cli.Main(os.Args[1:], cli.Standard())) }
