// Package leaseadmin does by hand what hosts do with their leases by themselves: it
// lists them with their ends, releases one and reserves one. It refuses what would
// take a subnet from a host that uses it.
package leaseadmin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"uvxlan/cmd/internal/control"
	"uvxlan/lease"
)

// ErrRefused says that a change was not made, since it would harm a host or can't be
// meant.
var ErrRefused = errors.New("refused")

// Registry is where the leases are.
type Registry interface {
	lease.Registry
	// Lifetimes sets Expires and Renewed of the leases that have a time to live,
	// as far as it can before ctx ends.
	Lifetimes(ctx context.Context, all []lease.Lease) error
}

const (
	// lifetimes bounds the search for the leases' ends, which takes a call for each.
	lifetimes = 4 * time.Second
	// tries is how often a change is repeated where the lease was changed meanwhile.
	tries = 3
)

// List returns all leases, in order.
func List(ctx context.Context, r Registry) ([]control.LeaseRow, error) {
	all, _, err := r.List(ctx)
	if err != nil {
		return nil, err
	}
	// Without their ends, the leases are worth showing all the same.
	limited, cancel := context.WithTimeout(ctx, lifetimes)
	defer cancel()
	_ = r.Lifetimes(limited, all)
	_, assigned := r.(lease.Assigner)
	rows := make([]control.LeaseRow, len(all))
	for i, l := range all {
		rows[i] = row(l)
		rows[i].Assigned, rows[i].Reserved = assigned, rows[i].Reserved && !assigned
	}
	slices.SortFunc(rows, func(a, b control.LeaseRow) int {
		return cmp.Or(a.Subnet.Addr().Compare(b.Subnet.Addr()), cmp.Compare(a.Subnet.Bits(), b.Subnet.Bits()))
	})
	return rows, nil
}

func row(l lease.Lease) control.LeaseRow {
	r := control.LeaseRow{
		Subnet: l.Subnet, IPv6Subnet: l.IPv6Subnet, PublicIP: l.Attrs.PublicIP, PublicIPv6: l.Attrs.PublicIPv6,
		Backend: l.Attrs.BackendType, Reserved: l.Permanent && !l.Damaged, Damaged: l.Damaged, Expires: l.Expires, Revision: l.Revision,
	}
	if data, err := l.Attrs.VXLAN(); err == nil {
		r.MAC, r.VNI = data.VtepMAC, data.VNI
	}
	if data, err := l.Attrs.VXLANv6(); err == nil {
		r.MACv6 = data.VtepMAC
	}
	return r
}

// Change does what the operator asks for, by [Release] or [Reserve].
func Change(ctx context.Context, r Registry, c control.LeaseChange) (words string, err error) {
	if _, ok := r.(lease.Assigner); ok {
		return "", fmt.Errorf("%s %s: %w: subnets are the nodes' podCIDRs, which Kubernetes gives and takes; to take one back, delete the node (kubectl delete node)",
			c.Do, c.Subnet, ErrRefused)
	}
	switch c.Do {
	case control.ReleaseLease:
		return Release(ctx, r, c.Subnet, c.Force)
	case control.ReserveLease:
		return Reserve(ctx, r, lease.Lease{Subnet: c.Subnet, IPv6Subnet: c.IPv6Subnet}, c.PublicIP)
	}
	return "", fmt.Errorf("change %s: unknown change %q", c.Subnet, c.Do)
}

// Release removes the lease of a subnet, or its reservation, and says in words what
// that means. Without force it is refused where a host may use the subnet.
func Release(ctx context.Context, r Registry, subnet netip.Prefix, force bool) (words string, err error) {
	err = again(func() error {
		l, err := find(ctx, r, subnet)
		if err != nil {
			return err
		}
		if why := inUse(l); why != "" && !force {
			return fmt.Errorf("%w: %s", ErrRefused, why)
		}
		words = released(l)
		return r.Delete(ctx, l)
	})
	if err != nil {
		return "", fmt.Errorf("release %s: %w", subnet, err)
	}
	return words, nil
}

// inUse says why a host may use the lease, "" if none does.
func inUse(l lease.Lease) string {
	const gone = "; if that host is gone for good, -force releases it"
	switch {
	case l.Permanent && (l.Damaged || l.Attrs.BackendType == "" && l.Attrs.BackendData == nil):
		return "" // no host has written it
	case l.Damaged:
		return "its value can't be read, and the host that holds it may run" + gone
	case l.Permanent:
		return fmt.Sprintf("%s uses this reservation, or has used it%s", owner(l), gone)
	case l.Renewed.IsZero():
		return fmt.Sprintf("%s holds it%s", owner(l), gone)
	}
	return fmt.Sprintf("%s holds it, renewed %s ago, expires in %s%s", owner(l),
		control.Round(time.Since(l.Renewed)), control.Round(time.Until(l.Expires)), gone)
}

func released(l lease.Lease) string {
	if inUse(l) == "" {
		return fmt.Sprintf("released %s: any host may take it", l.Subnet)
	}
	return fmt.Sprintf("released %s of %s: any host may take it; a uvxland that still runs there takes it again, a flanneld exits", l.Subnet, owner(l))
}

// owner is the host of a lease in words.
func owner(l lease.Lease) string {
	switch {
	case l.Attrs.PublicIP.IsValid():
		return l.Attrs.PublicIP.String()
	case l.Attrs.PublicIPv6.IsValid():
		return l.Attrs.PublicIPv6.String()
	}
	return "a host without an address"
}

// Reserve makes the lease of a subnet one that never expires, as flannel's
// documentation has it: its entry loses its time to live and keeps its value. A
// subnet that nobody has is reserved for the host with the public address, which is
// needed only then. l names the subnets. The result says in words what it means.
func Reserve(ctx context.Context, r Registry, l lease.Lease, public netip.Addr) (words string, err error) {
	err = again(func() error {
		words, err = reserve(ctx, r, l, public)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("reserve %s: %w", l.Subnet, err)
	}
	return words, nil
}

func reserve(ctx context.Context, r Registry, wanted lease.Lease, public netip.Addr) (string, error) {
	l, err := find(ctx, r, wanted.Subnet)
	if errors.Is(err, errNone) {
		return create(ctx, r, wanted, public)
	}
	switch {
	case err != nil:
		return "", err
	case l.Damaged:
		return "", fmt.Errorf("%w: its value can't be read; release it first", ErrRefused)
	case public.IsValid() && public != l.Attrs.PublicIP && public != l.Attrs.PublicIPv6:
		return "", fmt.Errorf("%w: it is that of %s, not of %s; release it first", ErrRefused, owner(l), public)
	case l.Permanent:
		return fmt.Sprintf("%s is reserved for %s already", l.Subnet, owner(l)), nil
	}
	l.Permanent = true
	if _, err := r.Update(ctx, l, lease.DefaultTTL); err != nil {
		return "", err
	}
	return fmt.Sprintf("reserved %s for %s: it no longer expires, until it is released (a flanneld that runs there gives it an end again)", l.Subnet, owner(l)), nil
}

// create reserves a subnet that nobody has.
func create(ctx context.Context, r Registry, l lease.Lease, public netip.Addr) (string, error) {
	if !public.IsValid() {
		return "", fmt.Errorf("%w: nobody has it; say for which host, with -public-ip", ErrRefused)
	}
	text, err := r.Config(ctx)
	if err != nil {
		return "", err
	}
	c, err := lease.ParseConfig(text)
	if err != nil {
		return "", err
	}
	if !c.Compatible(l) {
		return "", fmt.Errorf("%w: %s", ErrRefused, unfit(c))
	}
	all, _, err := r.List(ctx)
	if err != nil {
		return "", err
	}
	l.Permanent, l.Attrs = true, lease.Attrs{PublicIP: public}
	var instead []string
	for _, other := range all {
		if other.Overlaps(l) {
			return "", fmt.Errorf("%w: %s of %s overlaps it", ErrRefused, other.Subnet, owner(other))
		}
		if other.Attrs.PublicIP == public {
			instead = append(instead, " instead of "+other.Subnet.String())
		}
	}
	_, err = r.Create(ctx, l, lease.DefaultTTL)
	if errors.Is(err, lease.ErrExists) {
		err = fmt.Errorf("%w: %w", lease.ErrConflict, err) // look who has it
	}
	return fmt.Sprintf("reserved %s for %s, which takes it at its next start%s", l.Subnet, public, strings.Join(instead, "")), err
}

// unfit says what subnets the configuration has.
func unfit(c *lease.Config) string {
	words := fmt.Sprintf("the network has subnets of /%d from %s to %s", c.SubnetLen, c.SubnetMin, c.SubnetMax)
	if c.EnableIPv6 {
		words += fmt.Sprintf(", each with an IPv6 one of /%d from %s to %s, as in 10.5.52.0-24&2001:cafe:42:1::-64",
			c.IPv6SubnetLen, c.IPv6SubnetMin, c.IPv6SubnetMax)
	}
	return words
}

var errNone = errors.New("there is no such lease")

// find reads the lease of a subnet, with its end.
func find(ctx context.Context, r Registry, subnet netip.Prefix) (lease.Lease, error) {
	all, _, err := r.List(ctx)
	if err != nil {
		return lease.Lease{}, err
	}
	i := slices.IndexFunc(all, func(l lease.Lease) bool { return l.Subnet == subnet })
	if i < 0 {
		return lease.Lease{}, errNone
	}
	limited, cancel := context.WithTimeout(ctx, lifetimes)
	defer cancel()
	_ = r.Lifetimes(limited, all[i:i+1]) // without it, the words say less
	return all[i], nil
}

// again repeats a change while others change the same.
func again(change func() error) (err error) {
	for range tries {
		if err = change(); !errors.Is(err, lease.ErrConflict) {
			break
		}
	}
	return err
}
