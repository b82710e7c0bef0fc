package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"uvxlan/cmd/internal/completion"
	"uvxlan/cmd/internal/control"
	"uvxlan/cmd/internal/flagenv"
	"uvxlan/cmd/internal/version"
	"uvxlan/internal/cli"
)

// action runs a command once its flags are parsed, with the words beside them.
type action func(ctx context.Context, words []string) error

// command is one of the program's. Its help and the shells' completions are
// made of it.
type command struct {
	name, summary string
	// usage comes before the list of flags, if the command line isn't flags alone.
	usage string
	// words are what its first word may be; free takes any.
	words []string
	free  bool
	// files tells that its other words name files.
	files bool
	// define adds its flags.
	define func(fs *flag.FlagSet) action
	// plain commands take no values from the environment.
	plain bool
}

// commands are all there are, in the order of the help.
func commands() []command {
	return []command{
		{name: "status", summary: "how the daemon on this host is; exits 1 if it isn't ready", define: defineStatus},
		{name: "peers", summary: "the other hosts' subnets and the ways to them", define: definePeers},
		{
			name: "doctor", summary: "what is wrong with this host and its peers, and what mends it (needs root)", define: defineDoctor,
			usage: doctorUsage, free: true,
		},
		{name: "top", summary: "the traffic with each of them, again and again", define: defineTop},
		{
			name: "leases", summary: "who owns which subnet, and until when; release or reserve one", define: defineLeases,
			usage: leasesUsage, words: []string{control.ReleaseLease, control.ReserveLease},
		},
		{
			name: "config", summary: "read, check or write the network configuration in etcd", define: defineConfig,
			usage: configUsage, words: []string{"get", "set", "check"}, files: true,
		},
		{
			name: "docker-opts", summary: "write dockerd's options, made from the subnet file", define: defineDockerOpts,
			usage: dockerOptsUsage, plain: true,
		},
		{name: "cleanup", summary: "remove what a daemon left on this host (needs root)", define: defineCleanup},
		{
			name: "completion", summary: "print a script that completes command lines", define: defineCompletion,
			usage: completionUsage, words: completion.Shells(), plain: true,
		},
		{name: "man", summary: "print the manual page", define: defineMan, plain: true},
		{name: "version", summary: "print the version", define: defineVersion, plain: true},
	}
}

// usage is the program's help.
func usage() string {
	var b strings.Builder
	b.WriteString("uvxlan is the operator's command of uvxlan, a userspace VXLAN router.\n\nusage: uvxlan COMMAND [flags]\n\n")
	for _, c := range commands() {
		fmt.Fprintf(&b, "  %-11s  %s\n", c.name, c.summary)
	}
	b.WriteString("\nuvxlan COMMAND -help lists a command's flags.\n")
	return b.String()
}

// flags makes the command's flags and what it does with them.
func (c command) flags() (*flag.FlagSet, action) {
	fs := flag.NewFlagSet("uvxlan "+c.name, flag.ContinueOnError)
	return fs, c.define(fs)
}

// help prints how the command is used.
func (c command) help(out io.Writer) {
	fs, _ := c.flags()
	if c.usage == "" {
		fmt.Fprintf(out, "usage: uvxlan %s [flags]   %s\n\n", c.name, c.summary)
	} else {
		fmt.Fprint(out, c.usage)
	}
	fs.SetOutput(out)
	fs.PrintDefaults()
}

// run parses a command line and does what it says.
func (c command) run(ctx context.Context, args []string) error {
	fs, act := c.flags()
	words, err := parseMixed(fs, args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		c.help(os.Stdout)
		return err
	case err != nil:
		return fmt.Errorf("%s: %w", c.name, err)
	}
	if err := c.check(words); err != nil {
		return err
	}
	if !c.plain {
		if err := flagenv.Fill(fs, "FLANNELD_"); err != nil {
			return err
		}
	}
	return act(ctx, words)
}

// check checks the first word, which chooses what the command does, and that there
// is none where none is known.
func (c command) check(words []string) error {
	switch {
	case len(words) == 0 || c.free:
		return nil
	case c.words == nil:
		return cli.Usagef("%s: unexpected argument %q", c.name, words[0])
	case !slices.Contains(c.words, words[0]):
		return cli.Usagef("%s %q: must be %s", c.name, words[0], strings.Join(c.words, ", "))
	}
	return nil
}

// parseMixed parses flags that may stand before, between and after words.
func parseMixed(fs *flag.FlagSet, args []string) (words []string, err error) {
	for len(args) > 0 {
		if err := cli.Parse(fs, args); err != nil {
			return nil, err
		}
		args = fs.Args()
		if len(args) > 0 {
			words, args = append(words, args[0]), args[1:]
		}
	}
	return words, nil
}

func defineVersion(fs *flag.FlagSet) action {
	output := outputFlag(fs, os.Stdout)
	return func(context.Context, []string) error {
		p, err := output()
		if err != nil {
			return err
		}
		if p.json {
			return p.writeJSON(map[string]string{"version": version.String()})
		}
		fmt.Fprintln(p.out, version.String())
		return nil
	}
}
