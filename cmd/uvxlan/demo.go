package main

import (
	"context"
	"flag"
	"os"
	"path/filepath"

	"uvxlan/cmd/internal/demo"
)

// defineDemo shows three hosts on this machine.
func defineDemo(fs *flag.FlagSet) action {
	o := demo.Options{Out: os.Stdout}
	fs.BoolVar(&o.Keep, "keep", false, "leave the hosts up and say how to get inside")
	fs.BoolVar(&o.Docker, "docker", false, "let a dockerd on each host run the containers")
	fs.BoolVar(&o.Direct, "direct", true, "let the hosts of one network send without VXLAN")
	cleanup := fs.Bool("cleanup", false, "remove the hosts that -keep left")
	fs.StringVar(&o.Binary, "uvxland", besides("uvxland"), "`path` of the daemon")
	fs.DurationVar(&o.Duration, "t", demo.DefaultDuration, "`duration` of each iperf3 run")
	output := outputFlag(fs, os.Stdout)
	return func(ctx context.Context, _ []string) error {
		p, err := output()
		switch {
		case err != nil:
			return err
		case *cleanup:
			return demo.Cleanup(ctx)
		case p.json: // its result, and the story apart from it
			o.Out = os.Stderr
		}
		report, err := demo.Run(ctx, o)
		if err == nil && p.json {
			err = p.writeJSON(report)
		}
		return err
	}
}

// besides is the path of another of our binaries, in this one's directory.
func besides(name string) string {
	self, err := os.Executable()
	if err != nil {
		return name
	}
	return filepath.Join(filepath.Dir(self), name)
}
