package lease

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// ErrReassigned means that the registry has given this host another subnet:
// stop using the one that it had, and start again.
var ErrReassigned = errors.New("another subnet is assigned to this host")

// Assigner is a [Registry] that gives each host its subnets itself and knows the
// hosts by name, as Kubernetes does with Nodes. With one, a [Manager] chooses
// nothing. A host's subnets may have any length and lie anywhere in the network.
//
// Its Create and Update write what this host's entry says, whatever it said
// before, and return ErrConflict if the entry's subnets aren't the lease's. Leases
// don't end, so they are Permanent. Those of this host are Own, and no other lease
// that is reported has one of its subnets.
type Assigner interface {
	Registry

	// Assigned returns this host's lease as it is, without a look at the others'.
	// Its Revision is zero, and its Attrs are the zero Attrs, if the host has only
	// its subnets so far: then Create is due. The error wraps ErrUnassigned if the
	// registry has no subnets for this host, with what is to be done about it.
	Assigned(ctx context.Context) (Lease, error)

	// Hold tells the registry which lease this host holds, whoever wrote it: an
	// earlier process may have. It doesn't wait. [Manager.Run] begins with it.
	Hold(own Lease)

	// Conflict says in words that another host has one of this host's subnets, ""
	// if none has.
	Conflict() string
}

// assigner is the registry if that assigns subnets, else nil.
func (m *Manager) assigner() Assigner {
	a, _ := m.reg.(Assigner)
	return a
}

// parse reads a configuration. Where subnets are assigned, bounds within the
// network count for nothing.
func (m *Manager) parse(data []byte) (*Config, error) {
	c, err := ParseConfig(data)
	if err == nil && m.assigner() != nil {
		c.unbound()
	}
	return c, err
}

// unbound makes all of the network allocatable.
func (c *Config) unbound() {
	c.SubnetMin, c.SubnetMax = c.Network.Addr(), netip.PrefixFrom(lastAddr(c.Network), c.SubnetLen).Masked().Addr()
	if c.EnableIPv6 {
		c.IPv6SubnetMin, c.IPv6SubnetMax = c.IPv6Network.Addr(), netip.PrefixFrom(lastAddr(c.IPv6Network), c.IPv6SubnetLen).Masked().Addr()
	}
}

// compatible tells whether the registry can have given out the lease's subnets.
func (m *Manager) compatible(c *Config, l Lease) bool {
	if m.assigner() != nil {
		return c.misfit(l) == ""
	}
	return c.Compatible(l)
}

// misfit says in words what is wrong with assigned subnets, "" if nothing is.
func (c *Config) misfit(l Lease) string {
	switch {
	case !within(l.Subnet, c.Network):
		return fmt.Sprintf("%s doesn't lie in the Network %s", l.Subnet, c.Network)
	case c.EnableIPv6 && !l.IPv6Subnet.IsValid():
		return fmt.Sprintf("%s has no IPv6 subnet beside it, although the network has EnableIPv6", l.Subnet)
	case c.EnableIPv6 && !within(l.IPv6Subnet, c.IPv6Network):
		return fmt.Sprintf("%s doesn't lie in the IPv6Network %s", l.IPv6Subnet, c.IPv6Network)
	case !c.EnableIPv6 && l.IPv6Subnet.IsValid():
		return fmt.Sprintf("there is an IPv6 subnet %s, although the network has no IPv6", l.IPv6Subnet)
	}
	return ""
}

func within(n, network netip.Prefix) bool {
	return n.IsValid() && n == n.Masked() && n.Bits() >= network.Bits() && network.Contains(n.Addr())
}

// take takes the subnets that the registry has assigned.
func (a *acquisition) take(ctx context.Context, r Assigner) (Lease, error) {
	l, err := r.Assigned(ctx)
	if err != nil {
		a.listed = a.listed || errors.Is(err, ErrUnassigned)
		return Lease{}, err
	}
	a.listed = true
	if words := a.cfg.misfit(l); words != "" {
		return Lease{}, a.misassigned(ctx, words)
	}
	a.compareEarlier(l)
	there := l.Revision != 0
	if there {
		if err := a.recall(&l); err != nil {
			return Lease{}, err
		}
	}
	switch {
	case !there:
		l.Attrs = a.own
		return r.Create(ctx, l, a.opts.TTL)
	case l.Attrs.Equal(a.own):
		return r.Renew(ctx, l, a.opts.TTL)
	}
	l.Attrs = a.own
	return r.Update(ctx, l, a.opts.TTL)
}

// misassigned is the error of subnets that the configuration doesn't have. It passes
// if the configuration is put right, which only the next start reads.
func (a *acquisition) misassigned(ctx context.Context, words string) error {
	data, err := a.reg.Config(ctx)
	if err == nil {
		if c, err := a.parse(data); err == nil && *c != *a.cfg {
			return fmt.Errorf("the network configuration has changed, since %s: start again", words)
		}
	}
	return fmt.Errorf("%w: %s: put the network configuration right", ErrUnassigned, words)
}

// compareEarlier warns of containers that have addresses of another subnet.
func (a *acquisition) compareEarlier(l Lease) {
	before := Lease{Subnet: a.opts.Previous, IPv6Subnet: a.opts.PreviousV6}
	if a.record != nil {
		before = *a.record
	}
	if before.Subnet.IsValid() && before.Subnet != l.Subnet || before.IPv6Subnet.IsValid() && l.IPv6Subnet.IsValid() && before.IPv6Subnet != l.IPv6Subnet {
		a.log.Warn("this host has other subnets than in the earlier run: containers that have addresses of those are cut off until they are started again",
			"subnets", before.words(), "now", l.words())
	}
}

// words are the lease's subnets.
func (l Lease) words() string {
	all := make([]string, 0, 2)
	for _, n := range subnetsIn(l) {
		all = append(all, n.String())
	}
	return strings.Join(all, " and ")
}

// look finds this host's entry where subnets are assigned.
func (k *keeper) look(ctx context.Context, r Assigner) (Lease, error) {
	now, err := r.Assigned(ctx)
	if errors.Is(err, ErrUnassigned) {
		k.outage.answered()
		k.unassign(err.Error())
		return now, err
	}
	if err != nil {
		return now, err
	}
	k.unassign("")
	if subnetsOf(now) != subnetsOf(k.own) {
		return now, fmt.Errorf("%w: %s, and no longer %s: containers that have addresses of that are cut off until they are started again",
			ErrReassigned, now.words(), k.own.words())
	}
	return now, nil
}

// unassign notes that this host's subnets are gone, and why, or with "" that they
// are there.
func (m *Manager) unassign(why string) {
	before := m.unassigned.Swap(&why)
	switch was := before != nil && *before != ""; {
	case why != "" && !was:
		m.log.Warn("the other hosts don't send here any longer", "error", why)
	case why == "" && was:
		m.log.Info("this host has its subnets again")
	}
}
