package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"uvxlan/lease"
	"uvxlan/lease/etcd"
)

const configUsage = `usage: uvxlan config get                  print the configuration in etcd
       uvxlan config set JSON|FILE|-     check a configuration and write it
       uvxlan config check [JSON|FILE|-] check one, by default the one in etcd

`

// defineConfig reads, checks or writes <prefix>/config.
func defineConfig(fs *flag.FlagSet) action {
	options, output := etcdFlags(fs), outputFlag(fs, os.Stdout)
	return func(ctx context.Context, words []string) error {
		p, err := output()
		if err != nil {
			return err
		}
		return p.config(ctx, options(), words)
	}
}

func (p *printer) config(ctx context.Context, o etcd.Options, words []string) error {
	switch {
	case slices.Equal(words, []string{"get"}):
		text, err := stored(ctx, o)
		if err == nil {
			fmt.Fprintln(p.out, strings.TrimSpace(text)) // it is JSON already
		}
		return err
	case slices.Equal(words, []string{"check"}):
		text, err := stored(ctx, o)
		if err != nil {
			return err
		}
		return p.check(text)
	case len(words) == 2 && words[0] == "check":
		text, err := readConfig(words[1], os.Stdin)
		if err != nil {
			return err
		}
		return p.check(text)
	case len(words) == 2 && words[0] == "set":
		return set(ctx, o, words[1])
	}
	fmt.Fprint(os.Stderr, configUsage)
	return errUsage
}

func (p *printer) check(text string) error {
	if _, err := lease.ParseConfig([]byte(text)); err != nil {
		return err
	}
	if p.json {
		return p.writeJSON(map[string]bool{"valid": true})
	}
	fmt.Fprintln(p.out, "the configuration is valid")
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
