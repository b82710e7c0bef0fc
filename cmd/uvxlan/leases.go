package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"uvxlan/cmd/internal/control"
	"uvxlan/cmd/internal/leaseadmin"
	"uvxlan/internal/cli"
	"uvxlan/lease"
	"uvxlan/lease/etcd"
)

const leasesUsage = `usage: uvxlan leases                  list who owns which subnet, and until when
       uvxlan leases release SUBNET   remove a lease or a reservation
       uvxlan leases reserve SUBNET   let a lease never expire; with -public-ip,
                                      reserve a free subnet for a host

The daemon on this host does it, in its etcd, unless a flag or a variable says
which etcd. SUBNET is as in 10.5.52.0/24.

`

// leasesCommand is what the command line says.
type leasesCommand struct {
	socket   *string
	options  func() etcd.Options
	byEtcd   bool // an etcd is named
	force    *bool
	publicIP netip.Addr
	printer  *printer
}

// defineLeases lists the leases in etcd, and changes one.
func defineLeases(fs *flag.FlagSet) action {
	c := leasesCommand{
		socket: socketFlag(fs), options: etcdFlags(fs),
		force: fs.Bool("force", false, "release also what a host may use"),
	}
	fs.TextVar(&c.publicIP, "public-ip", netip.Addr{}, "`address` of the host that a free subnet is reserved for")
	output := outputFlag(fs, os.Stdout)
	return func(ctx context.Context, words []string) (err error) {
		if c.printer, err = output(); err != nil {
			return err
		}
		fs.Visit(func(f *flag.Flag) { c.byEtcd = c.byEtcd || strings.HasPrefix(f.Name, "etcd-") })
		if len(words) == 0 {
			return c.list(ctx)
		}
		return c.change(ctx, words)
	}
}

func (c *leasesCommand) list(ctx context.Context) error {
	var rows []control.LeaseRow
	err := c.anyWay(
		func(d *control.Client) (err error) { rows, err = d.Leases(ctx); return err },
		func(r *etcd.Registry) (err error) { rows, err = leaseadmin.List(ctx, r); return err })
	if err != nil {
		return err
	}
	return c.printer.leases(rows, time.Now())
}

func (c *leasesCommand) change(ctx context.Context, args []string) error {
	if len(args) != 2 {
		return cli.Usagef("leases %s: name one subnet, as in 10.5.52.0/24", args[0])
	}
	if *c.force && args[0] != control.ReleaseLease {
		return cli.Usagef("leases %s: -force is for release only", args[0])
	}
	if c.publicIP.IsValid() && args[0] != control.ReserveLease {
		return cli.Usagef("leases %s: -public-ip is for reserve only", args[0])
	}
	subnet, v6, err := parseSubnet(args[1])
	if err != nil {
		return cli.Usagef("leases %s: %w", args[0], err)
	}
	change := control.LeaseChange{Do: args[0], Subnet: subnet, IPv6Subnet: v6, PublicIP: c.publicIP, Force: *c.force}
	var words string
	err = c.anyWay(
		func(d *control.Client) (err error) { words, err = d.ChangeLease(ctx, change); return err },
		func(r *etcd.Registry) (err error) { words, err = leaseadmin.Change(ctx, r, change); return err })
	if err != nil {
		return err
	}
	if c.printer.json {
		return c.printer.writeJSON(map[string]string{"done": words})
	}
	fmt.Fprintln(c.printer.out, words)
	return nil
}

// parseSubnet reads a subnet as people write it, or as etcd's key has it, which may
// have an IPv6 subnet as well.
func parseSubnet(text string) (v4, v6 netip.Prefix, err error) {
	if v4, v6, err = lease.ParseKey(text); err == nil {
		return v4, v6, nil
	}
	v4, err = netip.ParsePrefix(text)
	if err != nil || !v4.Addr().Is4() || v4 != v4.Masked() {
		return v4, v6, fmt.Errorf("%q: must be a subnet, as in 10.5.52.0/24", text)
	}
	return v4, v6, nil
}

// anyWay asks the daemon, unless an etcd is named; where there is no daemon that
// could tell, it asks the etcd that the flags have by default.
func (c *leasesCommand) anyWay(daemon func(*control.Client) error, registry func(*etcd.Registry) error) error {
	var noDaemon error
	if !c.byEtcd {
		noDaemon = daemon(control.NewClient(*c.socket))
		if !errors.Is(noDaemon, control.ErrNotRunning) && !errors.Is(noDaemon, control.ErrUnknown) {
			return noDaemon
		}
	}
	r, err := openEtcd(c.options())
	if err != nil {
		return err
	}
	defer r.Close()
	err = registry(r)
	if err != nil && noDaemon != nil && errors.Is(err, lease.ErrUnavailable) {
		return fmt.Errorf("%w, and %w: say which etcd, with -etcd-endpoints", noDaemon, err)
	}
	return err
}

func (p *printer) leases(rows []control.LeaseRow, now time.Time) error {
	if p.json {
		return p.writeJSON(rows)
	}
	table := [][]string{{"SUBNET", "PUBLIC IP", "BACKEND", "VTEP MAC", "EXPIRES", "KIND"}}
	for _, r := range rows {
		table = append(table, cells(r, now))
	}
	return p.table(table)
}

func cells(r control.LeaseRow, now time.Time) []string {
	subnet, kind := r.Subnet.String(), "lease"
	if r.IPv6Subnet.IsValid() {
		subnet += " " + r.IPv6Subnet.String()
	}
	switch {
	case r.Damaged:
		kind = "damaged: not readable"
	case r.Assigned:
		kind = "podCIDR"
	case r.Reserved && r.Backend == "":
		kind = "reservation, not used yet"
	case r.Reserved:
		kind = "reservation"
	}
	var ips []string
	for _, ip := range []netip.Addr{r.PublicIP, r.PublicIPv6} {
		if ip.IsValid() {
			ips = append(ips, ip.String())
		}
	}
	macs := r.MAC
	if r.MACv6 != "" && r.MACv6 != r.MAC {
		macs += " " + r.MACv6
	}
	return []string{subnet, or(strings.Join(ips, " "), "none"), or(r.Backend, "none"), or(macs, "none"), expiry(r, now), kind}
}

func expiry(r control.LeaseRow, now time.Time) string {
	switch {
	case !r.Expires.IsZero():
		return "in " + control.Round(r.Expires.Sub(now))
	case r.Reserved || r.Assigned:
		return "never"
	}
	return "not known"
}
