// Demo shows uvxlan at work on one machine: three hosts in network namespaces,
// their leases in etcd, and traffic between their containers. It needs root.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"uvxlan/internal/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	context.AfterFunc(ctx, stop) // the second signal ends the process
	err := run(ctx, os.Args[1:])
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "demo:", strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	os.Exit(cli.ExitCode(err))
}

func run(ctx context.Context, args []string) error {
	o, out := options{}, os.Stdout
	fs := flag.NewFlagSet("demo", flag.ContinueOnError)
	fs.BoolVar(&o.keep, "keep", false, "leave the hosts up and say how to get inside")
	fs.BoolVar(&o.docker, "docker", false, "let a dockerd on each host run the containers")
	fs.BoolVar(&o.direct, "direct", true, "let the hosts of one network send without VXLAN")
	clean := fs.Bool("cleanup", false, "remove the hosts that -keep left")
	fs.StringVar(&o.binary, "uvxland", "", "`path` of the daemon (default: built from the source)")
	fs.DurationVar(&o.duration, "t", 5*time.Second, "`duration` of each iperf3 run")
	form := fs.String("o", "table", "output `form`: table or json")
	if err := cli.Parse(fs, args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			fmt.Print("usage: demo [flags]   three hosts on this machine, joined by uvxlan (needs root)\n\n")
			fs.SetOutput(os.Stdout)
			fs.PrintDefaults()
		}
		return err
	}
	switch {
	case fs.NArg() > 0:
		return cli.Usagef("unexpected argument %q", fs.Arg(0))
	case *form != "table" && *form != "json":
		return cli.Usagef("-o %q: must be table or json", *form)
	case o.duration <= 0:
		return cli.Usagef("-t %s: must be more than 0", o.duration)
	case *clean:
		return cleanup(ctx)
	case *form == "json": // the result, and the story apart from it
		out = os.Stderr
	}
	o.out, o.colour = out, cli.Colours(out)
	r, err := show(ctx, o)
	if err != nil || *form != "json" {
		return err
	}
	e := json.NewEncoder(os.Stdout)
	e.SetIndent("", "  ")
	return e.Encode(r)
}
