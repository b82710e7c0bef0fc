package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"uvxlan/cmd/internal/extiface"
	"uvxlan/cmd/internal/host"
)

// uplink follows the interface and the addresses that lead to the other hosts.
type uplink struct {
	log    *slog.Logger
	wanted extiface.Wanted
	ipv6   bool
	// moved has the daemon go on with another interface or address.
	moved func(ext extiface.Interface) error

	mu   sync.Mutex // guards the rest
	now  extiface.Interface
	lost bool // now can't be used, and there is no other
}

// name is the interface's at the moment.
func (u *uplink) name() string { return u.current().Name }

func (u *uplink) current() extiface.Interface {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.now
}

func (u *uplink) part() host.Part {
	return host.Part{Name: "underlay", Check: u.check, Repair: u.repair, Wakes: u.concerns, Interval: 10 * time.Second}
}

// concerns ignores other interfaces unless one of them may be chosen or have the
// public address: those of containers come and go all the time.
func (u *uplink) concerns(e host.Event) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	switch e.Kind {
	case host.Link:
		return u.lost || e.Index == u.now.Index
	case host.Address:
		return u.lost || e.Index == u.now.Index || u.wanted.PublicIP.IsValid() || u.wanted.PublicIPv6.IsValid()
	case host.Route:
		return u.lost
	}
	return false
}

func (u *uplink) check(context.Context) []host.Fault {
	now := u.current()
	next, err := extiface.Follow(u.wanted, now, u.ipv6)
	u.mu.Lock()
	u.lost = err != nil
	u.mu.Unlock()
	switch {
	case err != nil:
		lost := now.Address
		if errors.Is(err, extiface.ErrNoIPv6) {
			lost = now.AddressV6
		}
		return []host.Fault{{
			What:   fmt.Sprintf("%s has lost the address %s, by which the other hosts reach this one, and has no other", now.Name, lost),
			Remedy: "give it an address (ip addr add): it is taken at once", Stops: true,
		}}
	case next != now:
		from, fromV6 := now.Sockets()
		to, toV6 := next.Sockets()
		return []host.Fault{{What: now.Changes(next), Stops: from != to || fromV6 != toV6}}
	}
	return nil
}

// repair takes over what has changed.
func (u *uplink) repair(context.Context) error {
	now := u.current()
	next, err := extiface.Follow(u.wanted, now, u.ipv6)
	if err != nil || next == now {
		return nil // the check has said it
	}
	u.log.Info("the underlay has changed", "name", next.Name, "address", next.Address, "public_ip", next.PublicIP, "mtu", int(next.MTU))
	if err := u.moved(next); err != nil {
		return fmt.Errorf("follow the underlay to %s on %s: %w", next.Address, next.Name, err)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.now = next
	return nil
}
