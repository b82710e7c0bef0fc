package firewall

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"

	"github.com/coreos/go-iptables/iptables"
)

// xtables writes rules by the iptables command, or ip6tables.
type xtables struct {
	family  Family
	command *iptables.IPTables
	restore string // the command that carries out many changes at once
	save    string // the legacy variant's, which lists a table; "" for nftables'
	random  bool   // it knows --random-fully
	wait    int    // how long the next change waits for the lock, in seconds
}

// The lock of iptables is waited for, in seconds: a start isn't delayed for long,
// and what comes after it stands in the queue with the others who want the lock.
const (
	firstWait = 1
	lockWait  = 5
)

// place is where a chain lies in iptables, by flannel's names.
type place struct{ table, hook, chain, comment string }

func (p purpose) iptables() place {
	if p == masquerading {
		return place{"nat", "POSTROUTING", "FLANNEL-POSTRTG", "flanneld masq"}
	}
	return place{"filter", "FORWARD", "FLANNEL-FWD", "flanneld forward"}
}

// jump leads from the kernel's chain into ours. It is appended, as flannel's is:
// a policy of DROP acts after it, and whatever an administrator or Docker denies
// before it stays denied.
func (p place) jump() string {
	return fmt.Sprintf("-A %s -m comment --comment %q -j %s", p.hook, p.comment, p.chain)
}

func openIPTables(f Family) (*xtables, error) {
	protocol := iptables.ProtocolIPv4
	if f == IPv6 {
		protocol = iptables.ProtocolIPv6
	}
	x := &xtables{family: f, wait: lockWait}
	var err error
	if x.command, err = iptables.New(iptables.IPFamily(protocol), iptables.Timeout(lockWait)); err == nil {
		x.restore, err = exec.LookPath(x.name() + "-restore")
	}
	if err == nil {
		err = x.openSave()
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoIPTables, err)
	}
	x.random = x.command.HasRandomFully()
	return x, nil
}

// openSave finds the command by which the legacy variant's tables are read
// without its lock. Of nftables' variant, which has none, a chain is read alone.
func (x *xtables) openSave() (err error) {
	version, err := exec.Command(x.name(), "--version").Output()
	if err != nil || bytes.Contains(version, []byte("nf_tables")) {
		return err
	}
	x.save, err = exec.LookPath(x.name() + "-save")
	return err
}

// probe finds out whether the kernel has the tables.
func (x *xtables) probe(chains []chain) error {
	for _, c := range chains {
		if len(c.want) == 0 {
			continue
		}
		p := c.purpose.iptables()
		l, err := x.read(p)
		if err != nil {
			return err
		}
		if _, err := l.hook(p); err != nil {
			return err
		}
	}
	return nil
}

func (x *xtables) differing(chains []chain) (all []purpose, err error) {
	for _, c := range chains {
		lines, err := x.changes(c)
		if err != nil {
			return nil, err
		}
		if len(lines) > 0 {
			all = append(all, c.purpose)
		}
	}
	return all, nil
}

func (x *xtables) apply(ctx context.Context, chains []chain) error {
	var script bytes.Buffer
	for _, c := range chains {
		lines, err := x.changes(c)
		if err != nil {
			return err
		}
		if len(lines) > 0 {
			fmt.Fprintf(&script, "*%s\n%s\nCOMMIT\n", c.purpose.iptables().table, strings.Join(lines, "\n"))
		}
	}
	return x.run(ctx, &script)
}

// changes returns the lines for iptables-restore that make a chain as wanted.
func (x *xtables) changes(c chain) ([]string, error) {
	p := c.purpose.iptables()
	l, err := x.read(p)
	if err != nil {
		return nil, err
	}
	hook, err := l.hook(p)
	if err != nil {
		return nil, err
	}
	listed, there, err := l.chain(p.chain)
	if err != nil {
		return nil, err
	}
	have := canonicalAll(listed)
	remove, add := c.plan(have, x.key)
	if c.idle(have, x.key) {
		if !there {
			return nil, nil
		}
		return removal(p, hook), nil
	}
	var lines []string
	if !there {
		lines = append(lines, fmt.Sprintf(":%s - [0:0]", p.chain))
	}
	for _, at := range remove {
		lines = append(lines, "-D"+strings.TrimPrefix(listed[at], "-A"))
	}
	for _, r := range add {
		lines = append(lines, x.line(r))
	}
	if len(c.want) > 0 && !slices.Contains(canonicalAll(hook), canonical(p.jump())) {
		lines = append(lines, p.jump())
	}
	return lines, nil
}

// removal returns the lines that remove a chain and what leads into it.
func removal(p place, hook []string) []string {
	var lines []string
	for _, line := range hook {
		if strings.HasSuffix(line, " -j "+p.chain) {
			lines = append(lines, "-D"+strings.TrimPrefix(line, "-A"))
		}
	}
	return append(lines, "-F "+p.chain, "-X "+p.chain)
}

// leftover tells of our chains, and removes them unless it is only to tell.
func (x *xtables) leftover(ctx context.Context, remove bool) (found []string, err error) {
	var script bytes.Buffer
	for _, purpose := range []purpose{masquerading, forwarding} {
		p := purpose.iptables()
		l, err := x.read(p)
		if err != nil {
			return nil, err
		}
		_, there, err := l.chain(p.chain)
		if err != nil {
			return nil, err
		}
		if !there {
			continue
		}
		hook, err := l.hook(p)
		if err != nil {
			return nil, err
		}
		found = append(found, fmt.Sprintf("%s chain %s of table %s", x.name(), p.chain, p.table))
		fmt.Fprintf(&script, "*%s\n%s\nCOMMIT\n", p.table, strings.Join(removal(p, hook), "\n"))
	}
	if !remove {
		return found, nil
	}
	return found, x.run(ctx, &script)
}

func (x *xtables) forget(ctx context.Context, chains []chain, remove bool) (found []string, err error) {
	var script bytes.Buffer
	for _, c := range chains {
		lines, err := x.changes(c)
		if err != nil {
			return nil, err
		}
		if len(lines) == 0 {
			continue
		}
		p := c.purpose.iptables()
		what := fmt.Sprintf("%s chain %s of table %s", x.name(), p.chain, p.table)
		if lines[len(lines)-1] != "-X "+p.chain {
			what = fmt.Sprintf("%d rules in %s", len(lines), what)
		}
		found = append(found, what)
		fmt.Fprintf(&script, "*%s\n%s\nCOMMIT\n", p.table, strings.Join(lines, "\n"))
	}
	if !remove {
		return found, nil
	}
	return found, x.run(ctx, &script)
}

func (x *xtables) name() string {
	if x.family == IPv6 {
		return "ip6tables"
	}
	return "iptables"
}

// key is a rule as canonical writes it.
func (x *xtables) key(r rule) string { return canonical(x.line(r)) }

// line is a rule as flannel's are written, and as iptables -S lists them.
func (x *xtables) line(r rule) string {
	p := masquerading.iptables()
	if r.then == accepts {
		p = forwarding.iptables()
	}
	var b strings.Builder
	fmt.Fprintf(&b, "-A %s ", p.chain)
	match := func(not bool, flag string, p netip.Prefix) {
		if !p.IsValid() {
			return
		}
		if not {
			b.WriteString("! ")
		}
		fmt.Fprintf(&b, "%s %s ", flag, p)
	}
	match(r.notSrc, "-s", r.src)
	match(r.notDst, "-d", r.dst)
	if r.marked {
		fmt.Fprintf(&b, "-m mark --mark %#x/%#x ", mark, mark)
	}
	fmt.Fprintf(&b, "-m comment --comment %q -j ", p.comment)
	switch r.then {
	case accepts:
		b.WriteString("ACCEPT")
	case returns:
		b.WriteString("RETURN")
	case masquerades:
		b.WriteString("MASQUERADE")
	case masqueradesRandomly:
		b.WriteString("MASQUERADE")
		if x.random {
			b.WriteString(" --random-fully")
		}
	}
	return b.String()
}

// canonical is a rule of a listing without its chain and with its options in
// alphabetical order, since iptables' versions list them in different ones.
func canonical(line string) string {
	words := split(line)
	var options []string
	for i, w := range words[min(2, len(words)):] {
		begins := w == "!" || strings.HasPrefix(w, "-") && (i == 0 || words[i+1] != "!")
		if begins || len(options) == 0 {
			options = append(options, w)
		} else {
			options[len(options)-1] += " " + w
		}
	}
	slices.Sort(options)
	return strings.Join(options, "  ")
}

func canonicalAll(lines []string) []string {
	all := make([]string, len(lines))
	for i, line := range lines {
		all[i] = canonical(line)
	}
	return all
}

// split cuts a line at its spaces, but for those in quotes.
func split(line string) (words []string) {
	for i, part := range strings.Split(line, `"`) {
		if i%2 == 1 {
			words = append(words, part)
		} else {
			words = append(words, strings.Fields(part)...)
		}
	}
	return words
}
