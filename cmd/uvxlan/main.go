// Uvxlan is the operator's command beside the daemon uvxland.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"

	"golang.org/x/sys/unix"

	"uvxlan/cmd/internal/version"
)

const usage = `uvxlan is the operator's command of uvxlan, a userspace VXLAN router.

usage: uvxlan COMMAND [flags]

  status   how the daemon on this host is
  peers    the other hosts' subnets and the ways to them
  leases   who owns which subnet, from etcd
  config   read, check or write the network configuration in etcd
  cleanup  remove what a daemon left on this host (needs root)
  demo     three hosts on this machine, joined by uvxlan (needs root)
  version  print the version

uvxlan COMMAND -help lists a command's flags.
`

// errUsage ends the command after its usage was printed.
var errUsage = errors.New("usage")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	context.AfterFunc(ctx, stop)
	switch err := run(ctx, os.Args[1:]); {
	case err == nil, errors.Is(err, flag.ErrHelp):
	case errors.Is(err, errUsage):
		os.Exit(2)
	default:
		fmt.Fprintln(os.Stderr, "uvxlan:", strings.ReplaceAll(err.Error(), "\n", "; "))
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	name := ""
	if len(args) > 0 {
		name, args = strings.TrimLeft(args[0], "-"), args[1:]
	}
	switch name {
	case "status":
		return statusCommand(ctx, args)
	case "peers":
		return peersCommand(ctx, args)
	case "leases":
		return leasesCommand(ctx, args)
	case "config":
		return configCommand(ctx, args)
	case "cleanup":
		return cleanupCommand(args)
	case "demo":
		return demoCommand(ctx, args)
	case "version":
		fmt.Println(version.String())
		return nil
	case "help", "h":
		fmt.Print(usage)
		return nil
	}
	fmt.Fprint(os.Stderr, usage)
	return errUsage
}
