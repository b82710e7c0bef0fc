package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"uvxlan/cmd/internal/flagenv"
	"uvxlan/lease"
	"uvxlan/lease/etcd"
)

const configUsage = `usage: uvxlan config get                  print the configuration in etcd
       uvxlan config set JSON|FILE|-     check a configuration and write it
       uvxlan config check [JSON|FILE|-] check one, by default the one in etcd

`

// configCommand reads, checks or writes <prefix>/config.
func configCommand(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("uvxlan config", flag.ContinueOnError)
	fs.Usage = func() {
		fmt.Fprint(fs.Output(), configUsage)
		fs.PrintDefaults()
	}
	options := etcdFlags(fs)
	words, err := parseMixed(fs, args)
	if err != nil {
		return err
	}
	if err := flagenv.Fill(fs, "FLANNELD_"); err != nil {
		return err
	}
	return runConfig(ctx, options(), words)
}

// parseMixed parses flags that may stand before, between and after words.
func parseMixed(fs *flag.FlagSet, args []string) (words []string, err error) {
	for len(args) > 0 {
		if err := fs.Parse(args); err != nil {
			return nil, err
		}
		args = fs.Args()
		if len(args) > 0 {
			words, args = append(words, args[0]), args[1:]
		}
	}
	return words, nil
}

func runConfig(ctx context.Context, o etcd.Options, words []string) error {
	switch {
	case slices.Equal(words, []string{"get"}):
		text, err := stored(ctx, o)
		if err == nil {
			fmt.Println(strings.TrimSpace(text))
		}
		return err
	case slices.Equal(words, []string{"check"}):
		text, err := stored(ctx, o)
		if err != nil {
			return err
		}
		return check(text)
	case len(words) == 2 && words[0] == "check":
		text, err := readConfig(words[1], os.Stdin)
		if err != nil {
			return err
		}
		return check(text)
	case len(words) == 2 && words[0] == "set":
		return set(ctx, o, words[1])
	}
	fmt.Fprint(os.Stderr, configUsage)
	return errUsage
}

func check(text string) error {
	if _, err := lease.ParseConfig([]byte(text)); err != nil {
		return err
	}
	fmt.Println("the configuration is valid")
	return nil
}

// stored is the configuration in etcd.
func stored(ctx context.Context, o etcd.Options) (string, error) {
	registry, err := etcd.Open(o)
	if err != nil {
		return "", err
	}
	defer registry.Close()
	text, err := registry.Config(ctx)
	return string(text), err
}

// set writes a configuration that is valid, and no other.
func set(ctx context.Context, o etcd.Options, arg string) error {
	text, err := readConfig(arg, os.Stdin)
	if err != nil {
		return err
	}
	if _, err := lease.ParseConfig([]byte(text)); err != nil {
		return err
	}
	registry, err := etcd.Open(o)
	if err != nil {
		return err
	}
	defer registry.Close()
	return registry.SetConfig(ctx, []byte(text))
}

// readConfig takes JSON as it stands, "-" for what comes from in, and anything
// else as a file's name.
func readConfig(arg string, in io.Reader) (string, error) {
	if strings.HasPrefix(strings.TrimSpace(arg), "{") {
		return arg, nil
	}
	var text []byte
	var err error
	if arg == "-" {
		text, err = io.ReadAll(in)
	} else {
		text, err = os.ReadFile(arg)
	}
	if err != nil {
		return "", fmt.Errorf("read configuration: %w", err)
	}
	return string(text), nil
}
