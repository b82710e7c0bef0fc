package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"golang.org/x/sync/errgroup"

	"uvxlan/cmd/internal/firewall"
	"uvxlan/cmd/internal/subnetfile"
	"uvxlan/lease"
)

// FirewallOptions say which rules the host is to have.
type FirewallOptions struct {
	// Masquerade, RandomFully and Forward are those of [firewall.Policy].
	Masquerade, RandomFully, Forward bool
	// Resync is the time after which the rules are looked at again.
	Resync time.Duration
}

// rules are the host's firewall rules, for each family that the network has.
type rules struct {
	families []*firewall.Firewall
	wanted   []firewall.Policy // of each family
	before   []firewall.Policy // of an earlier run, of each family
	gone     firewall.Policy   // of an earlier run, of a family that is no more
	log      *slog.Logger
}

// openRules finds out whether the host can have the wanted rules, before there
// is a lease. Only masquerading is worth a refusal to start: without the forward
// rules packets pass as well, unless the host drops what isn't accepted.
func openRules(o Options, c *lease.Config) (*rules, error) {
	r := &rules{log: o.Logger}
	earlier := map[firewall.Family]firewall.Policy{}
	if file, err := subnetfile.Read(o.SubnetFile); err == nil {
		earlier[firewall.IPv4] = firewall.Policy{Network: file.Network, Subnet: file.Subnet}
		earlier[firewall.IPv6] = firewall.Policy{Network: file.NetworkV6, Subnet: file.SubnetV6}
	}
	if !c.EnableIPv6 {
		r.gone = earlier[firewall.IPv6]
	}
	for _, network := range []netip.Prefix{c.Network, c.IPv6Network} {
		if !network.IsValid() {
			continue
		}
		p := firewall.Policy{
			Network: network, Subnet: network,
			Masquerade: o.Firewall.Masquerade, RandomFully: o.Firewall.RandomFully, Forward: o.Firewall.Forward,
		}
		f, err := firewall.Open(firewall.Config{
			NFTables: c.EnableNFTables, Policy: p, Resync: o.Firewall.Resync, Logger: o.Logger,
		})
		switch {
		case err == nil:
			r.families, r.wanted = append(r.families, f), append(r.wanted, p)
			r.before = append(r.before, earlier[firewall.FamilyOf(network)])
		case p.Masquerade:
			return nil, fmt.Errorf("-ip-masq: %w", err)
		case p.Forward:
			o.Logger.Warn("no rules to let the overlay's packets through, which matters only where forwarding is denied otherwise; -iptables-forward-rules=false says that none are wanted",
				"network", network, "error", err)
		}
	}
	return r, nil
}

// apply puts the rules for our lease.
func (r *rules) apply(own lease.Lease) error {
	r.removeGone()
	for i, f := range r.families {
		p := r.wanted[i]
		p.Subnet = own.Subnet
		if firewall.FamilyOf(p.Network) == firewall.IPv6 {
			p.Subnet = own.IPv6Subnet
		}
		if _, err := f.Apply(p, r.before[i]); err != nil {
			return err
		}
	}
	return nil
}

// removeGone removes the rules of a family that the network has no longer, which
// do no harm if they stay.
func (r *rules) removeGone() {
	if !r.gone.Network.IsValid() {
		return
	}
	found, err := firewall.Remove(r.gone)
	for _, what := range found {
		r.log.Info("removed an earlier run's rules", "what", what)
	}
	if err != nil {
		r.log.Warn("an earlier run's rules may be left", "error", err)
	}
}

// run keeps the rules until ctx ends, and leaves them.
func (r *rules) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, f := range r.families {
		group.Go(func() error { return f.Run(ctx) })
	}
	return group.Wait()
}
