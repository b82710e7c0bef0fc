package kroute

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// maxListings bounds how often one pass lists all routes because there was one
// that the listing before didn't have.
const maxListings = 3

// pass is one comparison of a set with the kernel. The set is locked meanwhile.
type pass struct {
	set *Set
	// there are the kernel's routes by subnet, as far as they were listed.
	there map[netip.Prefix][]entry
	// complete tells that there has everybody's and not ours alone.
	complete bool
	listings int
	// changed counts the routes that were put into the kernel.
	changed int
}

// look lists the routes of a protocol, 0 for all.
func (p *pass) look(protocol int, families ...int) error {
	entries, err := p.set.kernel.dump(protocol, families...)
	if err != nil {
		return err
	}
	p.complete = protocol == 0
	p.listings++
	p.there = make(map[netip.Prefix][]entry, len(entries))
	for _, e := range entries {
		p.there[e.Subnet] = append(p.there[e.Subnet], e)
	}
	return nil
}

// removeUnwanted removes what is ours and can't become a wanted route.
func (p *pass) removeUnwanted() error {
	s := p.set
	clear(s.placed)
	removed, errs := 0, []error(nil)
	for subnet, entries := range p.there {
		_, wanted := s.wanted[subnet]
		for _, e := range entries {
			if !s.kernel.ours(e) || !wanted && !into(s.networks, e.Subnet) || wanted && e.competes() {
				continue
			}
			errs = append(errs, s.kernel.remove(e))
			removed++
		}
	}
	if removed > 0 {
		s.log.Info("removed kernel routes that are not wanted", "count", removed)
	}
	return errors.Join(errs...)
}

// putAll puts routes into the kernel. One that can't be there doesn't hinder
// the others; an error that isn't about one route ends it.
func (p *pass) putAll(routes []Route) error {
	var errs []error
	for _, r := range routes {
		err := p.put(r)
		if err == nil {
			continue
		}
		errs = append(errs, err)
		if !errors.As(err, new(*Error)) {
			break
		}
		errs = append(errs, p.set.displace(r.Subnet))
	}
	return errors.Join(errs...)
}

// put puts one route into the kernel. It trusts the listing for our own routes
// only, and lists them all when somebody else's is in the way.
func (p *pass) put(r Route) error {
	for {
		there := p.competing(r.Subnet)
		switch {
		case len(there) > 0 && there[0].Route == r && p.set.kernel.ours(there[0]):
			return p.record(r, false)
		case len(there) > 0 && p.complete:
			return p.resolve(r, there)
		case len(there) == 0:
			err := p.set.kernel.add(r)
			if err == nil {
				p.changed++
				return p.record(r, false)
			}
			if !errors.Is(err, unix.EEXIST) || p.listings >= maxListings {
				return p.fail(r, p.set.kernel.refused(r, err))
			}
		}
		if err := p.look(0, netlink.FAMILY_V4, netlink.FAMILY_V6); err != nil {
			return err
		}
	}
}

// competing are the listed routes that are where one of ours to the subnet
// would be.
func (p *pass) competing(subnet netip.Prefix) (competing []entry) {
	for _, e := range p.there[subnet] {
		if e.competes() {
			competing = append(competing, e)
		}
	}
	return competing
}

// resolve deals with routes that are in r's place. The kernel takes the first,
// and replaces the first, so that one's owner decides.
func (p *pass) resolve(r Route, there []entry) error {
	k, first := p.set.kernel, there[0]
	for _, e := range there[1:] {
		if !k.ours(e) {
			continue
		}
		if err := k.remove(e); err != nil {
			return p.fail(r, err)
		}
	}
	switch {
	case k.ours(first):
		return p.replace(r, first)
	case first.unicast && first.sameWay(r):
		return p.record(r, true)
	}
	command := "ip route"
	if !r.Via.Is4() {
		command = "ip -6 route"
	}
	return p.fail(r, fmt.Errorf("%w: %s: remove it (%s del %s), or stop the program that makes it",
		ErrForeign, k.describe(first), command, r.Subnet))
}

// replace puts r into the place of an old route of ours, which goes even if r
// can't be there.
func (p *pass) replace(r Route, old entry) error {
	err := p.set.kernel.replace(r)
	if err == nil {
		p.changed++
		return p.record(r, false)
	}
	return errors.Join(p.fail(r, p.set.kernel.refused(r, err)), p.set.kernel.remove(old))
}

func (p *pass) record(r Route, foreign bool) error {
	p.set.placed[r.Subnet] = placement{r, foreign}
	return nil
}

// fail makes an error that is about the route alone an [Error].
func (p *pass) fail(r Route, err error) error {
	device := p.set.kernel.device(r.Link)
	if errors.Is(err, ErrUnreachable) || errors.Is(err, ErrForeign) || errors.Is(err, unix.EEXIST) {
		return &Error{Route: r, Reason: err, device: device}
	}
	return fmt.Errorf("set route %s via %s dev %s: %w", r.Subnet, r.Via, device, err)
}
