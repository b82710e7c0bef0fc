// Picture draws what a program has written on a terminal: it reads that from the
// standard input, colours included, and writes an SVG image.
//
//	script -qec 'ls --color' /dev/null | picture -prompt 'ls --color' >ls.svg
package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"

	"uvxlan/internal/cli"
)

func main() {
	err := run(os.Args[1:], os.Stdin, os.Stdout)
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "picture:", err)
	}
	os.Exit(cli.ExitCode(err))
}

func run(args []string, in io.Reader, out io.Writer) error {
	fs := flag.NewFlagSet("picture", flag.ContinueOnError)
	prompt := fs.String("prompt", "", "`command` to show before the output")
	if err := cli.Parse(fs, args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			fmt.Fprint(out, "usage: picture [flags] <output >image.svg\n\n")
			fs.SetOutput(out)
			fs.PrintDefaults()
		}
		return err
	}
	if fs.NArg() > 0 {
		return cli.Usagef("unexpected argument %q", fs.Arg(0))
	}
	text, err := io.ReadAll(in)
	if err != nil {
		return fmt.Errorf("read the output: %w", err)
	}
	lines, err := parse(string(text))
	if err != nil {
		return err
	}
	if *prompt != "" {
		lines = append([]line{{{"$ ", dim}, {*prompt, bold}}}, lines...)
	}
	w := bufio.NewWriter(out)
	draw(w, lines)
	if err := w.Flush(); err != nil {
		return fmt.Errorf("write the image: %w", err)
	}
	return nil
}
