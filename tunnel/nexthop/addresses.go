package nexthop

import (
	"iter"
	"net/netip"
	"slices"
	"time"
)

// address is one that is tracked, and belongs to Run's goroutine.
type address struct {
	addr    netip.Addr
	gone    bool // no longer tracked
	decided bool // path is the kernel's
	path    Hop  // by route and link alone
	told    bool // hop was reported
	hop     Hop

	marked  bool // is in Watcher.marked
	touched bool // is in Watcher.touched

	used  bool          // packets went to it in the second before the last tick
	asked time.Time     // when the kernel was asked for its MAC last
	ask   time.Time     // when to ask next if it isn't used
	wait  time.Duration // between those two, after failures
}

func (a *address) neighbourKey() neighbourKey { return neighbourKey{a.path.Index, a.addr} }

// addressSet finds addresses by themselves and by prefix.
type addressSet struct {
	byAddr map[netip.Addr]*address
	order  []*address // sorted, or nil if that is yet to be done
}

func newAddressSet() addressSet { return addressSet{byAddr: make(map[netip.Addr]*address)} }

func (s *addressSet) add(addr netip.Addr) *address {
	a := &address{addr: addr}
	s.byAddr[addr], s.order = a, nil
	return a
}

func (s *addressSet) remove(addr netip.Addr) *address {
	a := s.byAddr[addr]
	if a == nil {
		return nil
	}
	a.gone = true
	delete(s.byAddr, addr)
	s.order = nil
	return a
}

// sorted lists all addresses; IPv4 comes before IPv6.
func (s *addressSet) sorted() []*address {
	if s.order == nil {
		s.order = make([]*address, 0, len(s.byAddr))
		for _, a := range s.byAddr {
			s.order = append(s.order, a)
		}
		slices.SortFunc(s.order, func(a, b *address) int { return a.addr.Compare(b.addr) })
	}
	return s.order
}

// within yields the addresses that p contains, in the time that takes rather
// than that of a walk through all.
func (s *addressSet) within(p netip.Prefix) iter.Seq[*address] {
	return func(yield func(*address) bool) {
		all := s.sorted()
		first, _ := slices.BinarySearchFunc(all, p.Masked().Addr(), func(a *address, start netip.Addr) int {
			return a.addr.Compare(start)
		})
		for _, a := range all[first:] {
			if !p.Contains(a.addr) || !yield(a) {
				return
			}
		}
	}
}
