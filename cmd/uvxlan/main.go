// Uvxlan is the operator's command beside the daemon uvxland.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"uvxlan/internal/cli"
)

// errSilent ends the command with exit code 1 where what it printed has said why, or
// wrapped in another error with that one's.
var errSilent = errors.New("as printed")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	context.AfterFunc(ctx, stop)
	err := asRoot(run(ctx, os.Args[1:]), os.Geteuid())
	if err != nil && !errors.Is(err, flag.ErrHelp) && !errors.Is(err, errSilent) {
		fmt.Fprintln(os.Stderr, "uvxlan:", strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	os.Exit(cli.ExitCode(err))
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		fmt.Fprint(os.Stderr, usage())
		return cli.Usagef("a command is missing")
	}
	name := strings.TrimLeft(args[0], "-")
	for _, c := range commands() {
		if c.name == name {
			return c.run(ctx, args[1:])
		}
	}
	switch {
	case name == "help" && len(args) > 1:
		return run(ctx, []string{args[1], "-help"})
	case name == "help" || name == "h":
		fmt.Print(usage())
		return nil
	}
	for _, c := range commands() {
		if slices.Contains(c.words, name) {
			return cli.Usagef("unknown command %q: did you mean %s %s?", args[0], c.name, name)
		}
	}
	return cli.Unknown("command", args[0], commandNames(), "uvxlan help lists the commands")
}

// asRoot adds what helps to an error of permissions that user uid has met.
func asRoot(err error, uid int) error {
	if uid == 0 || !errors.Is(err, fs.ErrPermission) {
		return err
	}
	return fmt.Errorf("%w: run it as root", err)
}
