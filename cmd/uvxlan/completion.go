package main

import (
	"context"
	"flag"
	"os"
	"strings"

	"uvxlan/cmd/internal/completion"
	"uvxlan/internal/cli"
)

const completionUsage = `usage: uvxlan completion bash|zsh|fish   print a script for the shell

  bash: . <(uvxlan completion bash)
  zsh:  . <(uvxlan completion zsh), after compinit
  fish: uvxlan completion fish | source

uvxland completion does the same for the daemon.
`

func defineCompletion(*flag.FlagSet) action {
	return func(_ context.Context, words []string) error {
		if len(words) != 1 {
			return cli.Usagef("completion: name one shell: %s", strings.Join(completion.Shells(), ", "))
		}
		return program().Write(os.Stdout, words[0])
	}
}

// program is this one as completions see it.
func program() completion.Program {
	p := completion.Program{Name: "uvxlan"}
	for _, c := range commands() {
		fs, _ := c.flags()
		p.Commands = append(p.Commands, completion.Command{
			Name: c.name, Summary: c.summary, Words: c.words, Files: c.files, Flags: fs,
			Choices: map[string][]string{"o": {"table", "json"}},
		})
	}
	return p
}

func commandNames() []string {
	words := []string{"help"}
	for _, c := range commands() {
		words = append(words, c.name)
	}
	return words
}
