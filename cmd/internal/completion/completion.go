// Package completion writes scripts by which shells complete the command lines of a
// program.
package completion

import (
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Program is what the scripts complete: a program with commands, or one whose only
// command has no name.
type Program struct {
	Name     string
	Commands []Command
}

// Command is one of a program's.
type Command struct {
	Name, Summary string
	// Words are what its first word may be.
	Words []string
	// Files tells that its other words name files.
	Files bool
	Flags *flag.FlagSet
	// Choices are the values that flags may have, by name, where they are few.
	Choices map[string][]string
}

// Shells are those that there are scripts for.
func Shells() []string { return []string{"bash", "zsh", "fish"} }

// Write writes the script for one of Shells.
func (p Program) Write(out io.Writer, shell string) error {
	var script string
	switch shell {
	case "bash":
		script = p.bash()
	case "zsh":
		script = p.zsh()
	case "fish":
		script = p.fish()
	default:
		return fmt.Errorf("completion for %q: must be one of %s", shell, strings.Join(Shells(), ", "))
	}
	_, err := io.WriteString(out, script)
	return err
}

// single tells whether there are no commands to be named.
func (p Program) single() bool { return len(p.Commands) == 1 && p.Commands[0].Name == "" }

func (p Program) commandNames() string {
	words := []string{"help"}
	for _, c := range p.Commands {
		words = append(words, c.Name)
	}
	return strings.Join(words, " ")
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
func (c Command) options() []option {
	var all []option
	c.Flags.VisitAll(func(f *flag.Flag) {
		o := option{name: f.Name, choices: c.Choices[f.Name]}
		o.value, o.usage = flag.UnquoteUsage(f)
		all = append(all, o)
	})
	return all
}

// path tells whether the value is completed as a file's name.
func (o option) path() bool { return slices.Contains([]string{"path", "file", "directory"}, o.value) }

// names are the flags as they are typed.
func names(all []option) string {
	var words []string
	for _, o := range all {
		words = append(words, "-"+o.name)
	}
	return strings.Join(words, " ")
}

// bash is a function for complete -F. Words are completed by the flags and words of
// the command, a flag's value by its choices or by files.
func (p Program) bash() string {
	var b strings.Builder
	fmt.Fprintf(&b, "# bash completion for %s\n_%s() {\n", p.Name, p.Name)
	b.WriteString("\tlocal current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]} words= files=\n\tCOMPREPLY=()\n")
	command, first := "${COMP_WORDS[1]}", 2
	if p.single() {
		command, first = "", 1
	} else {
		fmt.Fprintf(&b, "\tif [ \"$COMP_CWORD\" -eq 1 ]; then\n\t\tCOMPREPLY=($(compgen -W %q -- \"$current\"))\n\t\treturn\n\tfi\n", p.commandNames())
	}
	fmt.Fprintf(&b, "\tcase %s:${previous/#--/-} in\n", command)
	for _, c := range p.Commands {
		for _, o := range c.options() {
			switch {
			case o.value == "":
				continue
			case len(o.choices) > 0:
				fmt.Fprintf(&b, "\t%s:-%s) words=%q ;;\n", c.Name, o.name, strings.Join(o.choices, " "))
			case o.path():
				fmt.Fprintf(&b, "\t%s:-%s) files=1 ;;\n", c.Name, o.name)
			default:
				fmt.Fprintf(&b, "\t%s:-%s) return ;;\n", c.Name, o.name)
			}
		}
	}
	fmt.Fprintf(&b, "\t*)\n\t\tcase %s: in\n", command)
	for _, c := range p.Commands {
		fmt.Fprintf(&b, "\t\t%s:)\n\t\t\tcase $current in\n\t\t\t-*) words=%q ;;\n\t\t\t*) ", c.Name, names(c.options()))
		if c.Files {
			fmt.Fprintf(&b, "if [ \"$COMP_CWORD\" -gt %d ]; then files=1; else words=%q; fi ;;\n", first, strings.Join(c.Words, " "))
		} else {
			fmt.Fprintf(&b, "words=%q ;;\n", strings.Join(c.Words, " "))
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
`)
	fmt.Fprintf(&b, "complete -F _%s %s\n", p.Name, p.Name)
	return b.String()
}

// zsh is a function for compdef, with what each thing is for.
func (p Program) zsh() string {
	var b strings.Builder
	fmt.Fprintf(&b, "#compdef %s\n_%s() {\n", p.Name, p.Name)
	if p.single() {
		b.WriteString("\t" + p.Commands[0].arguments() + "\n")
	} else {
		b.WriteString("\tlocal -a commands\n\tcommands=(\n")
		for _, c := range p.Commands {
			fmt.Fprintf(&b, "\t\t%s\n", quote(c.Name+":"+strings.ReplaceAll(c.Summary, ":", `\:`)))
		}
		b.WriteString("\t)\n\tif (( CURRENT == 2 )); then\n\t\t_describe command commands\n\t\treturn\n\tfi\n")
		b.WriteString("\tlocal name=${words[2]}\n\tshift words\n\t(( CURRENT-- ))\n\tcase $name in\n")
		for _, c := range p.Commands {
			fmt.Fprintf(&b, "\t%s)\n\t\t%s ;;\n", c.Name, c.arguments())
		}
		b.WriteString("\tesac\n")
	}
	fmt.Fprintf(&b, "}\ncompdef _%s %s\n", p.Name, p.Name)
	return b.String()
}

// arguments is the call of zsh's _arguments for the command.
func (c Command) arguments() string {
	words := []string{"_arguments"}
	for _, o := range c.options() {
		words = append(words, quote(o.zsh()))
	}
	if len(c.Words) > 0 {
		words = append(words, quote("1:word:("+strings.Join(c.Words, " ")+")"))
	}
	if c.Files {
		words = append(words, quote("2:file:_files"))
	}
	return strings.Join(words, " \\\n\t\t\t")
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

// fish is a line for each command, word and flag.
func (p Program) fish() string {
	var b strings.Builder
	fmt.Fprintf(&b, "complete -c %s -f\n", p.Name)
	for _, c := range p.Commands {
		start := "complete -c " + p.Name
		if !p.single() {
			fmt.Fprintf(&b, "%s -n __fish_use_subcommand -a %s -d %s\n", start, c.Name, quote(c.Summary))
			start += " -n " + quote("__fish_seen_subcommand_from "+c.Name)
		}
		if len(c.Words) > 0 {
			fmt.Fprintf(&b, "%s -a %s\n", start, quote(strings.Join(c.Words, " ")))
		}
		if c.Files {
			fmt.Fprintf(&b, "%s -F\n", start)
		}
		for _, o := range c.options() {
			fmt.Fprintf(&b, "%s -o %s -d %s", start, o.name, quote(o.usage))
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
	return b.String()
}

// quote makes one word of a shell's.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
