package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"

	"uvxlan/internal/cli"
)

const completionUsage = `usage: uvxlan completion bash|zsh|fish   print a script for the shell

  bash: . <(uvxlan completion bash)
  zsh:  . <(uvxlan completion zsh), after compinit
  fish: uvxlan completion fish | source
`

// shells are those that there are scripts for.
func shells() []string { return []string{"bash", "zsh", "fish"} }

func defineCompletion(*flag.FlagSet) action {
	return func(_ context.Context, words []string) error {
		if len(words) == 1 {
			switch words[0] {
			case "bash":
				return writeBash(os.Stdout)
			case "zsh":
				return writeZsh(os.Stdout)
			case "fish":
				return writeFish(os.Stdout)
			}
		}
		return cli.Usagef("completion: name one shell: %s", strings.Join(shells(), ", "))
	}
}

// option is a flag as completions see it.
type option struct {
	name, usage string
	// value is what it takes, empty if nothing need be given.
	value string
	// choices are the values that it may have, if they are few.
	choices []string
}

// options are the command's flags, in order.
func (c command) options() []option {
	fs, _ := c.flags()
	var all []option
	fs.VisitAll(func(f *flag.Flag) {
		o := option{name: f.Name}
		o.value, o.usage = flag.UnquoteUsage(f)
		if f.Name == "o" {
			o.choices = []string{"table", "json"}
		}
		all = append(all, o)
	})
	return all
}

// path tells whether the value is completed as a file's name.
func (o option) path() bool { return o.value == "path" || o.value == "file" || o.value == "directory" }

// names are the flags as they are typed.
func names(all []option) string {
	var words []string
	for _, o := range all {
		words = append(words, "-"+o.name)
	}
	return strings.Join(words, " ")
}

func commandNames() []string {
	words := []string{"help"}
	for _, c := range commands() {
		words = append(words, c.name)
	}
	return words
}

// writeBash writes a function for complete -F. Words are completed by the flags
// and words of the command, a flag's value by its choices or by files.
func writeBash(out io.Writer) error {
	var b strings.Builder
	b.WriteString(`# bash completion for uvxlan
_uvxlan() {
	local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]} words= files=
	COMPREPLY=()
	if [ "$COMP_CWORD" -eq 1 ]; then
		COMPREPLY=($(compgen -W "` + strings.Join(commandNames(), " ") + `" -- "$current"))
		return
	fi
	case ${COMP_WORDS[1]}:${previous/#--/-} in
`)
	for _, c := range commands() {
		for _, o := range c.options() {
			switch {
			case o.value == "":
				continue
			case len(o.choices) > 0:
				fmt.Fprintf(&b, "\t%s:-%s) words=%q ;;\n", c.name, o.name, strings.Join(o.choices, " "))
			case o.path():
				fmt.Fprintf(&b, "\t%s:-%s) files=1 ;;\n", c.name, o.name)
			default:
				fmt.Fprintf(&b, "\t%s:-%s) return ;;\n", c.name, o.name)
			}
		}
	}
	b.WriteString("\t*)\n\t\tcase ${COMP_WORDS[1]} in\n")
	for _, c := range commands() {
		fmt.Fprintf(&b, "\t\t%s)\n\t\t\tcase $current in\n\t\t\t-*) words=%q ;;\n\t\t\t*) ", c.name, names(c.options()))
		if c.files {
			fmt.Fprintf(&b, "if [ \"$COMP_CWORD\" -gt 2 ]; then files=1; else words=%q; fi ;;\n", strings.Join(c.words, " "))
		} else {
			fmt.Fprintf(&b, "words=%q ;;\n", strings.Join(c.words, " "))
		}
		b.WriteString("\t\t\tesac ;;\n")
	}
	b.WriteString(`		esac ;;
	esac
	if [ -n "$files" ]; then
		compopt -o filenames 2>/dev/null
		mapfile -t COMPREPLY < <(compgen -f -- "$current")
	else
		COMPREPLY=($(compgen -W "$words" -- "$current"))
	fi
}
complete -F _uvxlan uvxlan
`)
	_, err := io.WriteString(out, b.String())
	return err
}

// writeZsh writes a function for compdef, with what each thing is for.
func writeZsh(out io.Writer) error {
	var b strings.Builder
	b.WriteString("#compdef uvxlan\n_uvxlan() {\n\tlocal -a commands\n\tcommands=(\n")
	for _, c := range commands() {
		fmt.Fprintf(&b, "\t\t%s\n", quote(c.name+":"+strings.ReplaceAll(c.summary, ":", `\:`)))
	}
	b.WriteString("\t)\n\tif (( CURRENT == 2 )); then\n\t\t_describe command commands\n\t\treturn\n\tfi\n")
	b.WriteString("\tlocal name=${words[2]}\n\tshift words\n\t(( CURRENT-- ))\n\tcase $name in\n")
	for _, c := range commands() {
		fmt.Fprintf(&b, "\t%s)\n\t\t_arguments", c.name)
		for _, o := range c.options() {
			fmt.Fprintf(&b, " \\\n\t\t\t%s", quote(o.zsh()))
		}
		if len(c.words) > 0 {
			fmt.Fprintf(&b, " \\\n\t\t\t%s", quote("1:word:("+strings.Join(c.words, " ")+")"))
		}
		if c.files {
			fmt.Fprintf(&b, " \\\n\t\t\t%s", quote("2:file:_files"))
		}
		b.WriteString(" ;;\n")
	}
	// As a file of fpath this is the function itself, which zsh calls; else it is sourced.
	b.WriteString("\tesac\n}\nif [ \"$funcstack[1]\" = _uvxlan ]; then _uvxlan \"$@\"; else compdef _uvxlan uvxlan; fi\n")
	_, err := io.WriteString(out, b.String())
	return err
}

// zsh is the option in the form of _arguments.
func (o option) zsh() string {
	escape := strings.NewReplacer("[", `\[`, "]", `\]`, ":", `\:`)
	text := "-" + o.name + "[" + escape.Replace(o.usage) + "]"
	if o.value == "" {
		return text
	}
	text += ":" + escape.Replace(o.value) + ":"
	switch {
	case len(o.choices) > 0:
		text += "(" + strings.Join(o.choices, " ") + ")"
	case o.path():
		text += "_files"
	}
	return text
}

// writeFish writes a line for each command, word and flag.
func writeFish(out io.Writer) error {
	var b strings.Builder
	b.WriteString("complete -c uvxlan -f\n")
	for _, c := range commands() {
		fmt.Fprintf(&b, "complete -c uvxlan -n __fish_use_subcommand -a %s -d %s\n", c.name, quote(c.summary))
		when := quote("__fish_seen_subcommand_from " + c.name)
		if len(c.words) > 0 {
			fmt.Fprintf(&b, "complete -c uvxlan -n %s -a %s\n", when, quote(strings.Join(c.words, " ")))
		}
		if c.files {
			fmt.Fprintf(&b, "complete -c uvxlan -n %s -F\n", when)
		}
		for _, o := range c.options() {
			fmt.Fprintf(&b, "complete -c uvxlan -n %s -o %s -d %s", when, o.name, quote(o.usage))
			switch {
			case len(o.choices) > 0:
				fmt.Fprintf(&b, " -x -a %s", quote(strings.Join(o.choices, " ")))
			case o.path():
				b.WriteString(" -r -F")
			case o.value != "":
				b.WriteString(" -x")
			}
			b.WriteString("\n")
		}
	}
	_, err := io.WriteString(out, b.String())
	return err
}

// quote makes one word of a shell's.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
