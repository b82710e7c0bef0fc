package firewall

import (
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"

	"github.com/vishvananda/netlink"

	"uvxlan/cmd/internal/firewall/trace"
	"uvxlan/cmd/internal/host"
)

// way is a direction of the overlay's packets.
type way int

const (
	in  way = 1 << iota // to this host's containers
	out                 // from them
)

// obstacles finds the rules of others that drop what the overlay forwards. Each
// chain of a kernel hook has its say, and a single no is enough.
func (k *keeping) obstacles() (faults []host.Fault) {
	var packets []trace.Packet
	for _, device := range k.devices() {
		packets = append(packets, k.packets(device)...)
	}
	if len(packets) == 0 {
		return nil
	}
	drops, err := k.others.Forward(packets...)
	var found []trace.Drop
	ways := map[trace.Drop]way{}
	singles := map[trace.Drop][]trace.Drop{} // by what they have in common
	for i, all := range drops {
		for _, d := range all {
			if d.Only.IsValid() {
				like := d
				like.Only, like.Rule = netip.Addr{}, ""
				singles[like] = append(singles[like], d)
				if d = singles[like][0]; ways[d] != 0 {
					continue
				}
			}
			if ways[d] == 0 {
				found = append(found, d)
			}
			ways[d] |= []way{in, out}[i%2]
		}
	}
	for _, d := range found {
		like := d
		like.Only, like.Rule = netip.Addr{}, ""
		faults = append(faults, k.obstacle(d, ways[d], addressesOf(singles[like])))
	}
	if err != nil {
		faults = append(faults, unknown(err))
	}
	return faults
}

// addressesOf counts the different addresses of drops.
func addressesOf(drops []trace.Drop) int {
	seen := map[netip.Addr]bool{}
	for _, d := range drops {
		seen[d.Only] = true
	}
	return len(seen)
}

func unknown(err error) host.Fault {
	return host.Fault{What: "whether the host's rules let the overlay's packets pass is not known", Remedy: words(err)}
}

// packets returns what the overlay forwards by a device, in and out.
func (k *keeping) packets(device string) []trace.Packet {
	own := trace.Interface{Name: device}
	if i, err := net.InterfaceByName(device); err == nil {
		own.Index = i.Index
	}
	bridge, peers, ours := k.bridge(own), trace.Range{In: k.now.Network, NotIn: k.now.Subnet}, trace.Range{In: k.now.Subnet}
	return []trace.Packet{
		{Src: peers, Dst: ours, In: own, Out: bridge, Each: true},
		{Src: ours, Dst: peers, In: bridge, Out: own},
	}
}

// bridge returns the containers' interface, which has an address of the subnet.
// If there is none, or each container has its own, it may be any interface but
// own.
func (k *keeping) bridge(own trace.Interface) trace.Interface {
	anyOther := trace.Interface{Name: own.Name, Index: own.Index, Not: true}
	addrs, err := netlink.AddrList(nil, k.family.netlink())
	if err != nil {
		return anyOther
	}
	found := anyOther
	for _, a := range addrs {
		ip, _ := netip.AddrFromSlice(a.IP)
		if !k.now.Subnet.Contains(ip.Unmap()) || a.LinkIndex == own.Index {
			continue
		}
		i, err := net.InterfaceByIndex(a.LinkIndex)
		switch {
		case err != nil || i.Flags&net.FlagLoopback != 0 || i.Index == found.Index:
			continue
		case !found.Not:
			return anyOther
		}
		found = trace.Interface{Name: i.Name, Index: i.Index}
	}
	return found
}

func (f Family) netlink() int {
	if f == IPv6 {
		return netlink.FAMILY_V6
	}
	return netlink.FAMILY_V4
}

// obstacle returns the fault of a rule or policy that drops. Drops of single
// addresses that are alike make one fault; addresses counts them.
func (k *keeping) obstacle(d trace.Drop, w way, addresses int) host.Fault {
	what := map[way]string{
		in: "what comes to the containers by the overlay", out: "what the containers send into the overlay", in | out: "what the overlay forwards",
	}[w]
	if d.Only.IsValid() {
		what = fmt.Sprintf("what comes to %s by the overlay", d.Only)
		if addresses > 1 {
			what = fmt.Sprintf("what comes to %s and %d more of the containers' addresses by the overlay", d.Only, addresses-1)
		}
	}
	does := "dropped"
	if strings.Contains(strings.ToLower(d.Rule), "reject") {
		does = "rejected"
	}
	by := "by the policy of"
	if d.Rule != "" {
		by = fmt.Sprintf("by the rule %q in", d.Rule)
	}
	if d.Some {
		does += ", unless an earlier rule accepts it by its port or protocol,"
	}
	return host.Fault{
		What:   fmt.Sprintf("%s is %s %s %s", what, does, by, placeOf(d)),
		Remedy: k.remedy(d),
		Stops:  !d.Some && !d.Only.IsValid(),
	}
}

func placeOf(d trace.Drop) string {
	chain := "chain " + d.Chain
	if d.Chain != d.Base {
		chain += ", to which " + d.Base + " leads,"
	}
	switch {
	case d.Legacy:
		return fmt.Sprintf("%s of iptables-legacy's table %s", chain, d.Table)
	case isIPTables(d):
		return fmt.Sprintf("%s of iptables' table %s", chain, d.Table)
	}
	return fmt.Sprintf("%s of nftables' table %s %s", chain, d.Family, d.Table)
}

// isIPTables tells whether the table is one of iptables' nftables variant.
func isIPTables(d trace.Drop) bool {
	return !d.Legacy && (d.Family == "ip" || d.Family == "ip6") && strings.ToUpper(d.Base) == d.Base
}

// remedy returns what lets the overlay's packets pass. All of them have a
// source in its network.
func (k *keeping) remedy(d trace.Drop) string {
	network := k.now.Network
	switch {
	case k.waiting != nil && k.now.Forward && d.Rule == "" && d.Base == "FORWARD":
		return words(k.waiting) + "; as soon as that passes, the forward rules accept it"
	case d.Table == "firewalld":
		return fmt.Sprintf("firewall-cmd --permanent --zone=trusted --add-source=%s && firewall-cmd --reload", network)
	case strings.HasPrefix(d.Chain, "ufw"):
		return fmt.Sprintf("ufw route allow from %s", network)
	case !d.Legacy && !isIPTables(d):
		family := "ip"
		if k.family == IPv6 {
			family = "ip6"
		}
		return fmt.Sprintf("nft insert rule %s %s %s %s saddr %s accept", d.Family, d.Table, d.Base, family, network)
	}
	chain, table, otherwise := d.Base, "", ""
	if strings.HasPrefix(d.Chain, "DOCKER") {
		chain = "DOCKER-USER"
	}
	if d.Table != "filter" {
		table = " -t " + d.Table
	}
	if d.Rule == "" && d.Table == "filter" {
		otherwise = k.withOurRules(d)
	}
	if d.Table == "raw" && d.Only.IsValid() {
		otherwise = "; if it is Docker's, start dockerd with --allow-direct-routing (28.2 or later) instead"
	}
	return fmt.Sprintf("%s%s -I %s -s %s -j ACCEPT%s", k.command(d.Legacy), table, chain, network, otherwise)
}

// withOurRules says how our forward rules would accept what an iptables policy
// drops. They can do so only in the chain that has the policy.
func (k *keeping) withOurRules(d trace.Drop) string {
	switch {
	case d.Legacy != k.legacy():
		return ""
	case k.nft:
		return `, or leave EnableNFTables out of the network config`
	case !k.now.Forward:
		return ", or leave -iptables-forward-rules=false away"
	}
	return ""
}

// command returns the name of an iptables variant's command on this host.
func (k *keeping) command(legacy bool) string { return k.family.command(legacy) }

func (f Family) command(legacy bool) string {
	name := (&xtables{family: f}).name()
	switch {
	case f.legacy() == legacy:
		return name
	case legacy:
		return name + "-legacy"
	}
	return name + "-nft"
}

// legacy tells whether the host's iptables command is the legacy variant.
func (k *keeping) legacy() bool { return k.family.legacy() }

func (f Family) legacy() bool {
	version, err := exec.Command((&xtables{family: f}).name(), "--version").Output()
	return err == nil && !strings.Contains(string(version), "nf_tables")
}
