package doctor

import (
	"cmp"
	"fmt"
	"net/netip"
	"strings"

	"uvxlan/cmd/internal/control"
)

// judgeLeases says what is wrong with the cluster's leases, whoever holds them. silent
// tells whether a subnet's VTEP was asked and doesn't answer. shared are the subnets of
// leases that share what each should have for itself.
func judgeLeases(rows []control.LeaseRow, silent func(netip.Prefix) bool) (found []Finding, shared map[netip.Prefix]bool) {
	shared = map[netip.Prefix]bool{}
	type claim struct {
		what string
		key  string
	}
	holders := map[claim][]control.LeaseRow{}
	var order []claim
	hold := func(what, key string, r control.LeaseRow) {
		c := claim{what, key}
		if holders[c] == nil {
			order = append(order, c)
		}
		holders[c] = append(holders[c], r)
	}
	for _, r := range rows {
		switch {
		case r.Damaged:
			found = append(found, Finding{
				Severity: Warning, Kind: "damaged-lease", Peers: []Host{{r.Subnet, r.PublicIP}}, What: "its lease can't be read, so no host sends to it",
				Evidence: fmt.Sprintf("the value of %s in etcd is no lease", r.Subnet), Remedy: "uvxlan leases release -force " + r.Subnet.String(),
			})
			continue
		case r.Backend == "":
			continue // a reservation that nobody uses yet
		}
		if r.PublicIP.IsValid() {
			hold("PublicIP", r.PublicIP.String(), r)
		}
		if r.MAC != "" {
			hold("VTEP MAC", r.MAC, r)
		}
	}
	for _, c := range order {
		all := holders[c]
		if len(all) < 2 {
			continue
		}
		found = append(found, duplicate(c.what, c.key, all, silent))
		for _, r := range all {
			shared[r.Subnet] = c.what == "PublicIP" || shared[r.Subnet]
		}
	}
	return found, shared
}

// duplicate is the finding of leases that share what each should have for itself.
func duplicate(what, key string, all []control.LeaseRow, silent func(netip.Prefix) bool) Finding {
	var peers []Host
	var unused []string
	sameIP, sameMAC := true, true
	for _, r := range all {
		peers = append(peers, Host{r.Subnet, r.PublicIP})
		sameIP, sameMAC = sameIP && r.PublicIP == all[0].PublicIP, sameMAC && r.MAC == all[0].MAC
		if silent(r.Subnet) {
			unused = append(unused, r.Subnet.String())
		}
	}
	f := Finding{Severity: Fault, Peers: peers, joint: true, Evidence: fmt.Sprintf("%d leases have the %s %s", len(all), what, key)}
	old := ""
	if n := len(unused); n > 0 && n < len(all) {
		f.Evidence += fmt.Sprintf("; of these, %s doesn't answer", strings.Join(unused, ", "))
		old = fmt.Sprintf("if %s is an old lease: uvxlan leases release -force %s", unused[0], unused[0])
	}
	switch {
	case sameIP && sameMAC:
		f.Severity, f.Kind, f.What = Warning, "two-leases", "one host has several leases, of which it uses one: packets for the others are lost"
		f.Remedy = cmp.Or(old, "release what it doesn't use: uvxlan leases release -force SUBNET")
	case sameIP:
		f.Kind, f.What = "duplicate-public-ip", "several hosts claim one PublicIP: only one of them gets its frames"
		f.Remedy = "give each host an address of its own, with -iface or -public-ip"
		if old != "" {
			f.Remedy += "; " + old
		}
	default:
		f.Kind, f.What = "duplicate-mac", "several hosts claim one VTEP MAC, as a machine and its clone do: hosts with kernel VXLAN send all their frames to one of them"
		f.Remedy = "on the clone: stop uvxland, remove its -state-dir (/var/lib/uvxlan) and its lease (uvxlan leases release -force), start it"
	}
	return f
}
