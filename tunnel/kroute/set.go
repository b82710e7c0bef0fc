package kroute

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"
)

// Config says whose routes a [Set] keeps.
type Config struct {
	// Protocol marks our routes, from 5 to 255. Whatever else on the host uses it
	// must do so for other networks, see [Set.Limit].
	Protocol int
	// Logger defaults to one that discards.
	Logger *slog.Logger
}

// Set is a set of routes that are wanted, and kept, in the kernel. Its methods
// may be called from any goroutine.
type Set struct {
	// immutable
	kernel kernel
	log    *slog.Logger

	mu       sync.Mutex // guards the rest
	closed   bool
	networks []netip.Prefix // that our routes lead into; empty means any
	wanted   map[netip.Prefix]Route
	// placed are those of wanted that were last seen in the kernel.
	placed map[netip.Prefix]placement
}

// placement is how a wanted route is in the kernel: as ours, or by somebody
// else's that goes the same way.
type placement struct {
	Route
	foreign bool
}

// entry is what the kernel makes of a route of ours.
func (p placement) entry() entry {
	e := entry{Route: p.Route}
	if e.family() == netlink.FAMILY_V6 {
		e.priority = PriorityV6
	}
	return e
}

// Open returns an empty set for the network namespace of the calling thread. It
// changes no route. The caller closes the set.
func Open(c Config) (*Set, error) {
	k, err := openKernel(c.Protocol)
	if err != nil {
		return nil, err
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return &Set{
		kernel: k, log: c.Logger,
		wanted: map[netip.Prefix]Route{}, placed: map[netip.Prefix]placement{},
	}, nil
}

// SetLogger has l told of what happens, in place of Config.Logger, before the set
// is used.
func (s *Set) SetLogger(l *slog.Logger) { s.log = l }

// Limit makes only routes into the networks ours, beside those that are wanted;
// without any, and before, all of the protocol are.
func (s *Set) Limit(networks ...netip.Prefix) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.networks = slices.Clone(networks)
}

// Replace makes want all that there is: it adds what is missing, changes what
// differs, and removes what is ours and isn't wanted, an earlier run's routes
// included. A route that can't be there is an [Error] and doesn't hinder the
// others. Of several routes to a subnet the last counts.
func (s *Set) Replace(want []Route) error {
	return s.do(func() error {
		wanted, invalid := normal(want)
		s.wanted = wanted
		p := &pass{set: s}
		if err := p.look(0, netlink.FAMILY_V4, netlink.FAMILY_V6); err != nil {
			return errors.Join(invalid, err)
		}
		return errors.Join(invalid, p.removeUnwanted(), p.putAll(sorted(s.wanted)))
	})
}

// Update makes the routes of add wanted and those to the subnets of remove no
// longer so; a subnet in both is changed. It is like [Set.Replace] but looks at
// nothing else in the kernel.
func (s *Set) Update(add []Route, remove []netip.Prefix) error {
	return s.do(func() error {
		wanted, err := normal(add)
		errs := []error{err}
		for _, subnet := range remove {
			if _, ok := wanted[subnet.Masked()]; !ok {
				errs = append(errs, s.drop(subnet.Masked()))
			}
		}
		maps.Copy(s.wanted, wanted)
		missing := slices.DeleteFunc(sorted(wanted), s.isPlaced)
		errs = append(errs, (&pass{set: s}).putAll(missing))
		return errors.Join(errs...)
	})
}

// Restore compares what is wanted with the kernel's routes and puts back what
// is missing or was altered. It returns how many routes that were, and why the
// others still can't be there. With nothing missing it costs one listing of our
// routes.
func (s *Set) Restore() (restored int, err error) {
	err = s.do(func() error {
		p := &pass{set: s}
		if err := p.look(s.listed(), s.families()...); err != nil {
			return err
		}
		err := p.putAll(sorted(s.wanted))
		restored = p.changed
		return err
	})
	return restored, err
}

// Clear removes every route of the set.
func (s *Set) Clear() error {
	return s.do(func() error {
		var errs []error
		for subnet := range s.wanted {
			errs = append(errs, s.drop(subnet))
		}
		return errors.Join(errs...)
	})
}

// Routes returns the routes that are wanted and were last seen in the kernel, in
// order of their subnets.
func (s *Set) Routes() []Route {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.DeleteFunc(sorted(s.wanted), func(r Route) bool { return !s.isPlaced(r) })
}

// Close leaves the routes as they are. What is called later returns
// [os.ErrClosed].
func (s *Set) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.closed = true
		s.kernel.handle.Close()
	}
	return nil
}

func (s *Set) do(f func() error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return fmt.Errorf("kernel routes: %w", os.ErrClosed)
	}
	return f()
}

// drop ends that a subnet's route is wanted. One that wasn't seen is removed
// too, since it may be hidden in a route of several ways.
func (s *Set) drop(subnet netip.Prefix) error {
	if r, ok := s.wanted[subnet]; ok && !s.isPlaced(r) {
		if err := s.kernel.remove(placement{Route: r}.entry()); err != nil {
			return err
		}
	}
	if err := s.displace(subnet); err != nil {
		return err
	}
	delete(s.wanted, subnet)
	return nil
}

// displace removes a subnet's route of ours. An old one mustn't stay when the
// wanted one can't be there: it leads where the subnet no longer is.
func (s *Set) displace(subnet netip.Prefix) error {
	if there, ok := s.placed[subnet]; ok && !there.foreign {
		if err := s.kernel.remove(there.entry()); err != nil {
			return err
		}
	}
	delete(s.placed, subnet)
	return nil
}

// isPlaced tells whether a route was last seen in the kernel.
func (s *Set) isPlaced(r Route) bool {
	there, ok := s.placed[r.Subnet]
	return ok && (there.Route == r || there.foreign && there.sameWay(r))
}

// families are those of the wanted routes.
func (s *Set) families() (families []int) {
	for _, r := range s.wanted {
		if !slices.Contains(families, r.family()) {
			families = append(families, r.family())
		}
	}
	return families
}

// listed is the protocol whose routes Restore has to see, 0 for all.
func (s *Set) listed() int {
	for _, p := range s.placed {
		if p.foreign {
			return 0
		}
	}
	return s.kernel.protocol
}

// normal returns the valid ones of routes by subnet.
func normal(routes []Route) (map[netip.Prefix]Route, error) {
	var errs []error
	valid := make(map[netip.Prefix]Route, len(routes))
	for _, r := range routes {
		r, err := r.normal()
		if err != nil {
			errs = append(errs, err)
			continue
		}
		valid[r.Subnet] = r
	}
	return valid, errors.Join(errs...)
}

// sorted are the routes in order of their subnets.
func sorted(routes map[netip.Prefix]Route) []Route {
	return slices.SortedFunc(maps.Values(routes), func(a, b Route) int { return a.Subnet.Compare(b.Subnet) })
}
