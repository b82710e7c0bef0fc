package firewall

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strings"

	"github.com/coreos/go-iptables/iptables"
	"golang.org/x/sys/unix"
)

// listing is a table of iptables as it was read.
type listing struct {
	// chain returns a chain's rules as iptables -S writes them, if there is such
	// a chain.
	chain func(name string) (rules []string, there bool, err error)
}

// hook returns the rules of the kernel's chain that leads into ours.
func (l listing) hook(p place) ([]string, error) {
	rules, there, err := l.chain(p.hook)
	if err == nil && !there {
		err = fmt.Errorf("list %s of %s: %w", p.hook, p.table, ErrNoIPTables)
	}
	return rules, err
}

// read returns the table of a place.
func (x *xtables) read(p place) (listing, error) {
	if x.save == "" {
		return listing{func(name string) ([]string, bool, error) { return x.list(p.table, name) }}, nil
	}
	cmd := exec.Command(x.save, "-t", p.table)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return listing{}, fmt.Errorf("list table %s: %w", p.table, refusalText(err, stderr.String()))
	}
	chains := map[string][]string{}
	for line := range strings.Lines(string(out)) {
		line = strings.TrimSpace(line)
		words := strings.Fields(line)
		switch {
		case strings.HasPrefix(line, ":"):
			chains[words[0][1:]] = nil
		case strings.HasPrefix(line, "-A ") && len(words) > 1:
			chains[words[1]] = append(chains[words[1]], line)
		}
	}
	return listing{func(name string) ([]string, bool, error) {
		rules, there := chains[name]
		return rules, there, nil
	}}, nil
}

// list reads a chain by iptables -S.
func (x *xtables) list(table, chain string) (rules []string, there bool, err error) {
	lines, err := x.command.List(table, chain)
	var e *iptables.Error
	switch {
	case err == nil:
		return slices.DeleteFunc(lines, func(s string) bool { return !strings.HasPrefix(s, "-A ") }), true, nil
	case errors.As(err, &e) && e.ExitStatus() == 1 && !tableless.MatchString(err.Error()):
		return nil, false, nil
	}
	return nil, false, fmt.Errorf("list %s of %s: %w", chain, table, refusalText(err, err.Error()))
}

// tableless is what iptables says in a kernel without its tables, by its legacy
// and its nftables variant.
var tableless = regexp.MustCompile(`(can't initialize ip6?tables table|Cannot initialize:|Could not fetch rule set generation id).*(does not exist|Invalid argument|not supported)`)

// refusalText tells by the words of iptables why it did nothing.
func refusalText(err error, text string) error {
	text = strings.Join(strings.Fields(text), " ")
	switch {
	case tableless.MatchString(text):
		return fmt.Errorf("%w: %s", ErrNoIPTables, text)
	case strings.Contains(text, "Permission denied"):
		return fmt.Errorf("%w: %s", unix.EPERM, text)
	case isLocked(text):
		return errLocked(lockFile())
	case text == "":
		return err
	}
	return errors.New(text)
}

// isLocked tells the words of iptables-legacy for a lock that others have.
func isLocked(text string) bool { return strings.Contains(text, "xtables lock") }

// run carries out the script, each table's part whole or not at all.
func (x *xtables) run(ctx context.Context, script *bytes.Buffer) error {
	if script.Len() == 0 {
		return nil
	}
	args := []string{"--noflush"}
	if x.random { // came with 1.6.2, as waiting for the lock did
		args = append(args, fmt.Sprintf("--wait=%d", x.wait))
	}
	x.wait = lockWait
	cmd := exec.CommandContext(ctx, x.restore, args...)
	cmd.Stdin = script
	out, err := cmd.CombinedOutput()
	switch {
	case err == nil:
		return nil
	case isLocked(string(out)):
		return errLocked(lockFile())
	}
	return fmt.Errorf("%s: %w", x.restore, refusalText(err, string(out)))
}
