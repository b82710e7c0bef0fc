package main

import (
	"cmp"
	"context"
	"flag"
	"net/netip"
	"os"
	"slices"

	"uvxlan/lease"
)

// leaseRow is a lease in the command's JSON.
type leaseRow struct {
	Subnet     netip.Prefix `json:"subnet"`
	IPv6Subnet netip.Prefix `json:"ipv6_subnet,omitzero"`
	PublicIP   netip.Addr   `json:"public_ip,omitzero"`
	PublicIPv6 netip.Addr   `json:"public_ipv6,omitzero"`
	Backend    string       `json:"backend,omitempty"`
	MAC        string       `json:"mac,omitempty"`
	// MACv6 is that of IPv6 frames.
	MACv6 string `json:"ipv6_mac,omitempty"`
	// Reserved marks one that never expires.
	Reserved bool `json:"reserved"`
	// Damaged marks one whose value can't be read.
	Damaged  bool  `json:"damaged,omitempty"`
	Revision int64 `json:"revision"`
}

// defineLeases lists the leases in etcd.
func defineLeases(fs *flag.FlagSet) action {
	options, output := etcdFlags(fs), outputFlag(fs, os.Stdout)
	return func(ctx context.Context, _ []string) error {
		p, err := output()
		if err != nil {
			return err
		}
		registry, err := openEtcd(options())
		if err != nil {
			return err
		}
		defer registry.Close()
		all, _, err := registry.List(ctx)
		if err != nil {
			return err
		}
		return p.leases(all)
	}
}

func (p *printer) leases(all []lease.Lease) error {
	rows := make([]leaseRow, len(all))
	for i, l := range all {
		rows[i] = newLeaseRow(l)
	}
	slices.SortFunc(rows, func(a, b leaseRow) int {
		return cmp.Or(a.Subnet.Addr().Compare(b.Subnet.Addr()), cmp.Compare(a.Subnet.Bits(), b.Subnet.Bits()))
	})
	if p.json {
		return p.writeJSON(rows)
	}
	table := [][]string{{"SUBNET", "PUBLIC IP", "BACKEND", "VTEP MAC", "KIND"}}
	for _, r := range rows {
		table = append(table, r.cells())
	}
	return p.table(table)
}

func newLeaseRow(l lease.Lease) leaseRow {
	r := leaseRow{
		Subnet: l.Subnet, IPv6Subnet: l.IPv6Subnet, PublicIP: l.Attrs.PublicIP, PublicIPv6: l.Attrs.PublicIPv6,
		Backend: l.Attrs.BackendType, Reserved: l.Permanent && !l.Damaged, Damaged: l.Damaged, Revision: l.Revision,
	}
	if data, err := l.Attrs.VXLAN(); err == nil {
		r.MAC = data.VtepMAC
	}
	if data, err := l.Attrs.VXLANv6(); err == nil {
		r.MACv6 = data.VtepMAC
	}
	return r
}

func (r leaseRow) cells() []string {
	subnet, ip, kind := r.Subnet.String(), "-", "lease"
	if r.IPv6Subnet.IsValid() {
		subnet += " " + r.IPv6Subnet.String()
	}
	if r.PublicIP.IsValid() {
		ip = r.PublicIP.String()
	}
	if r.PublicIPv6.IsValid() {
		ip += " " + r.PublicIPv6.String()
	}
	mac := orDash(r.MAC)
	if r.MACv6 != "" && r.MACv6 != r.MAC {
		mac += " " + r.MACv6
	}
	switch {
	case r.Damaged:
		kind = "damaged"
	case r.Reserved:
		kind = "reservation"
	}
	return []string{subnet, ip, orDash(r.Backend), mac, kind}
}
