package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"uvxlan/cmd/internal/demo"
)

// demoCommand shows three hosts on this machine.
func demoCommand(ctx context.Context, args []string) error {
	o := demo.Options{Out: os.Stdout}
	fs := flag.NewFlagSet("uvxlan demo", flag.ContinueOnError)
	fs.BoolVar(&o.Keep, "keep", false, "leave the hosts up and say how to get inside")
	fs.BoolVar(&o.Docker, "docker", false, "let a dockerd on each host run the containers")
	fs.BoolVar(&o.Direct, "direct", true, "let the hosts of one network send without VXLAN")
	cleanup := fs.Bool("cleanup", false, "remove the hosts that -keep left")
	fs.StringVar(&o.Binary, "uvxland", besides("uvxland"), "`path` of the daemon")
	fs.DurationVar(&o.Duration, "t", demo.DefaultDuration, "`duration` of each iperf3 run")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if fs.NArg() > 0 {
		return fmt.Errorf("demo: unexpected argument %q", fs.Arg(0))
	}
	if *cleanup {
		return demo.Cleanup(ctx)
	}
	return demo.Run(ctx, o)
}

// besides is the path of another of our binaries, in this one's directory.
func besides(name string) string {
	self, err := os.Executable()
	if err != nil {
		return name
	}
	return filepath.Join(filepath.Dir(self), name)
}
