package firewall

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"uvxlan/cmd/internal/firewall/trace"
	"uvxlan/cmd/internal/host"
)

// Part returns the rules as a part of the host, for the host's subnet. The part
// puts rules that are missing and removes those that an earlier run has left.
// It also tells of rules of others that drop what the overlay forwards. For
// that, devices returns the names of the interfaces by which the overlay's
// packets come and go at the moment.
func (f *Firewall) Part(subnet netip.Prefix, devices func() []string) host.Part {
	k := &keeping{nft: f.config.NFTables, family: f.Family(), now: f.config.Policy, before: f.config.Before, resync: f.config.Resync, devices: devices}
	if k.resync <= 0 {
		k.resync = host.DefaultInterval
	}
	k.now.Subnet = subnet
	return host.Part{
		Name: k.family.part(), Check: k.check, Repair: k.repair, Wakes: k.concerns, Interval: k.resync,
	}
}

// part returns the name of the family's rules as a part of the host.
func (f Family) part() string {
	if f == IPv6 {
		return "firewall-v6"
	}
	return "firewall"
}

// concerns tells whether an event is about a table that may have rules of ours,
// or rules of others that drop what ours accept. Events about nftables also
// cover the tables of iptables' nftables variant.
func (f Family) concerns(e host.Event) bool {
	if e.Kind != host.Firewall {
		return false
	}
	return e.Family == unix.NFPROTO_INET || e.Family == f.protocol()
}

func (f Family) protocol() byte {
	if f == IPv6 {
		return unix.NFPROTO_IPV6
	}
	return unix.NFPROTO_IPV4
}

// keeping is the rules that a part keeps. Only one goroutine at a time may use
// it, except for concerns.
type keeping struct {
	nft         bool
	family      Family
	now, before Policy
	resync      time.Duration
	devices     func() []string

	touched  atomic.Bool // a table of ours has changed since it was compared
	compared time.Time   // when all was as wanted, zero if it isn't

	others  trace.Rules
	backend backend // nil until it could be opened
	other   bool    // the other way of writing rules has none of ours
	begun   bool    // the rules have been put once
	waiting error   // why the last repair failed
}

// concerns also notes whether a table of ours has changed. Others may change
// all the time, and a comparison takes several commands.
func (k *keeping) concerns(e host.Event) bool {
	if !k.family.concerns(e) {
		return false
	}
	if k.mayHaveOurs(e.Table) {
		k.touched.Store(true)
	}
	return true
}

// mayHaveOurs tells whether a table of the kernel's nftables may have our
// rules.
func (k *keeping) mayHaveOurs(table string) bool {
	if k.nft {
		return strings.HasPrefix(table, "flannel-")
	}
	return table == masquerading.iptables().table || table == forwarding.iptables().table
}

// check compares the host's rules with the policy, and looks for rules of
// others that work against it. It looks for those only once our rules are put,
// since ours accept what others leave open.
func (k *keeping) check(ctx context.Context) []host.Fault {
	faults, pending := k.rules(ctx)
	if !pending && k.now.Network.IsValid() {
		faults = append(faults, k.obstacles()...)
	}
	return faults
}

// rules compares the host's rules with the policy. It also tells whether a
// repair may put missing forward rules.
func (k *keeping) rules(ctx context.Context) (faults []host.Fault, pending bool) {
	begin := time.Now()
	if !k.touched.Swap(false) && begin.Before(k.compared.Add(k.resync)) {
		return nil, false
	}
	k.compared = time.Time{}
	if err := k.open(); err != nil {
		return k.unavailable(err), false
	}
	chains := chains(k.now, k.before)
	differing, err := k.backend.differing(chains)
	if err != nil {
		faults = append(faults, host.Fault{What: "the firewall rules can't be read", Remedy: words(err)})
	}
	for _, p := range differing {
		faults = append(faults, k.differs(p))
		pending = pending || p == forwarding && k.now.Forward && k.waiting == nil
	}
	if left := k.otherWay(ctx, false); left != nil {
		faults = append(faults, *left)
	}
	if len(faults) == 0 {
		k.compared = begin
	}
	return faults, pending
}

func (k *keeping) open() (err error) {
	if k.backend == nil {
		k.backend, err = k.openWay(k.nft)
	}
	if err != nil {
		k.backend = nil
	}
	return err
}

// openWay opens a way to write rules. At first that way doesn't wait long.
func (k *keeping) openWay(nft bool) (backend, error) {
	b, err := open(nft, k.family)
	if x, is := b.(*xtables); is && err == nil {
		x.wait = firstWait
	}
	return b, err
}

// unavailable returns the fault of a host that can't have the rules. Packets
// pass without them, unless forwarding is denied otherwise.
func (k *keeping) unavailable(err error) []host.Fault {
	if !k.now.Masquerade && !k.now.Forward {
		return nil
	}
	f := host.Fault{What: "the firewall rules can't be put: " + words(err)}
	switch {
	case errors.Is(err, ErrNoIPTables):
		f.Remedy = `install iptables and ip6tables, or set "EnableNFTables":true in the network config, or say with -iptables-forward-rules=false that no rules are wanted`
	case errors.Is(err, ErrNoNFTables):
		f.Remedy = "load the modules (modprobe -a nf_tables nft_chain_nat nft_masq), or say with -iptables-forward-rules=false that no rules are wanted"
	}
	return []host.Fault{f}
}

// differs returns the fault of a chain that isn't as wanted.
func (k *keeping) differs(p purpose) host.Fault {
	f := host.Fault{What: "rules of an earlier run are there", Starting: !k.begun && k.waiting == nil}
	switch {
	case p == masquerading && k.now.Masquerade:
		f.What = "the masquerading rules are not all there"
	case p == forwarding && k.now.Forward:
		f.What = "the forward rules are not all there"
	}
	if k.waiting != nil {
		f.Remedy = words(k.waiting) + "; they are put as soon as that passes"
	}
	return f
}

// otherWay looks for rules of ours that were written in the other way. Another
// network of the host may have its rules there. It stops looking once there are
// none.
func (k *keeping) otherWay(ctx context.Context, remove bool) *host.Fault {
	if k.other {
		return nil
	}
	other, err := k.openWay(!k.nft)
	var found []string
	if err == nil {
		found, err = other.forget(ctx, chains(Policy{}, k.now, k.before), remove)
	}
	if err != nil && !unavailable(err) {
		return &host.Fault{What: "rules of an earlier run may be left", Remedy: words(err)}
	}
	if k.other = len(found) == 0 || remove; k.other {
		return nil
	}
	return &host.Fault{What: "rules of an earlier run are there: " + strings.Join(found, ", ")}
}

// repair puts what is missing, and removes what an earlier run has left.
func (k *keeping) repair(ctx context.Context) error {
	if k.backend == nil {
		return nil // there is nothing to do it with
	}
	k.waiting = nil
	if err := k.backend.apply(ctx, chains(k.now, k.before)); err != nil {
		k.waiting = err
		return fmt.Errorf("put firewall rules: %w", err)
	}
	k.begun = true
	k.otherWay(ctx, true)
	return nil
}

// words returns an error in one line.
func words(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }
