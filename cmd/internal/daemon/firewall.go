package daemon

import (
	"fmt"
	"time"

	"uvxlan/cmd/internal/firewall"
	"uvxlan/cmd/internal/host"
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

// rules are the host's firewall rules, for each family that the network has or
// an earlier run's had.
type rules []*firewall.Firewall

// openRules finds out whether the host can have the wanted rules, before there
// is a lease. Only masquerading is worth a refusal to start: without the forward
// rules packets pass as well, unless the host drops what isn't accepted.
func openRules(o Options, c *lease.Config) (all rules, err error) {
	earlier := map[firewall.Family]firewall.Policy{}
	if file, err := subnetfile.Read(o.SubnetFile); err == nil {
		earlier[firewall.IPv4] = firewall.Policy{Network: file.Network, Subnet: file.Subnet}
		earlier[firewall.IPv6] = firewall.Policy{Network: file.NetworkV6, Subnet: file.SubnetV6}
	}
	add := func(p, before firewall.Policy) *firewall.Firewall {
		f := firewall.New(firewall.Config{NFTables: c.EnableNFTables, Policy: p, Before: before, Resync: o.Firewall.Resync})
		all = append(all, f)
		return f
	}
	for _, network := range c.Networks() {
		p := firewall.Policy{
			Network: network, Subnet: network,
			Masquerade: o.Firewall.Masquerade, RandomFully: o.Firewall.RandomFully, Forward: o.Firewall.Forward,
		}
		f := add(p, earlier[firewall.FamilyOf(network)])
		if p.Masquerade {
			if err := f.Probe(); err != nil {
				return nil, fmt.Errorf("-ip-masq: %w", err)
			}
		}
	}
	if gone := earlier[firewall.IPv6]; !c.EnableIPv6 && gone.Network.IsValid() {
		add(firewall.Policy{}, gone)
	}
	return all, nil
}

// parts are the rules for our lease, as parts of the host. devices are the
// interfaces by which the overlay's packets come and go.
func (r rules) parts(own lease.Lease, devices func() []string) (parts []host.Part) {
	for _, f := range r {
		subnet := own.Subnet
		if f.Family() == firewall.IPv6 {
			subnet = own.IPv6Subnet
		}
		parts = append(parts, f.Part(subnet, devices))
	}
	return parts
}
