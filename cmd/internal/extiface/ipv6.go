package extiface

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// confirmation is how long an address may take to be usable: the kernel first
	// asks on the link whether somebody has it (RFC 4862, section 5.4). The next
	// look comes after lookAgain.
	confirmation = 5 * time.Second
	lookAgain    = 50 * time.Millisecond
)

// errTentative says that an address may be usable soon.
var errTentative = errors.New("not confirmed on the link yet")

// AddIPv6 gives the chosen interface an IPv6 address beside its IPv4 one: that of
// w.PublicIPv6 or of w.Names if it has it, else its best. Peers can be told no
// link-local address. The error says what there was to choose from.
func (i Interface) AddIPv6(ctx context.Context, w Wanted) (Interface, error) {
	tick := time.NewTicker(lookAgain)
	defer tick.Stop()
	for end := time.Now().Add(confirmation); ; {
		found, err := i.addIPv6(w)
		if !errors.Is(err, errTentative) || time.Now().After(end) {
			return found, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return Interface{}, ctx.Err()
		}
	}
}

func (i Interface) addIPv6(w Wanted) (Interface, error) {
	all, err := list()
	if err != nil {
		return Interface{}, fmt.Errorf("choose the external IPv6 address: %w", err)
	}
	at := slices.IndexFunc(all, func(c candidate) bool { return c.name == i.Name })
	if at < 0 {
		return Interface{}, fmt.Errorf("choose the external IPv6 address: %s is gone", i.Name)
	}
	i.AddressV6, err = all[at].chooseV6(w.preferredV6())
	if err != nil && !errors.Is(err, errTentative) && all.have(w.PublicIPv6) {
		i.AddressV6, err = w.PublicIPv6, nil // none of its own is needed
	}
	if err != nil {
		return Interface{}, fmt.Errorf("choose the external IPv6 address: %w", err)
	}
	i.PublicIPv6 = i.AddressV6
	if w.PublicIPv6.IsValid() {
		i.PublicIPv6, i.LocalV6 = w.PublicIPv6, all.elsewhere(w.PublicIPv6, i.AddressV6)
	}
	return i, nil
}

// preferredV6 are the addresses to take if the interface has them.
func (w Wanted) preferredV6() (prefer []netip.Addr) {
	if w.PublicIPv6.IsValid() {
		prefer = append(prefer, w.PublicIPv6)
	}
	for _, name := range w.Names {
		if a, err := netip.ParseAddr(name); err == nil && a.Is6() {
			prefer = append(prefer, a)
		}
	}
	return prefer
}

// chooseV6 picks the first of prefer that the interface has, or else its best
// address.
func (c candidate) chooseV6(prefer []netip.Addr) (netip.Addr, error) {
	for _, wanted := range prefer {
		for _, a := range c.addrsV6 {
			if address(a) == wanted {
				return c.judgeV6(a)
			}
		}
	}
	for _, a := range c.addrsV6 {
		if err := faultV6(a); err == nil || errors.Is(err, errTentative) {
			return c.judgeV6(a)
		}
	}
	return netip.Addr{}, fmt.Errorf("%s has no IPv6 address that peers could be told, and the network has IPv6: give it one, or name an interface that has both with -iface (there are: %s)",
		c.name, c.wordsV6())
}

func (c candidate) judgeV6(a netlink.Addr) (netip.Addr, error) {
	if err := faultV6(a); err != nil {
		return netip.Addr{}, fmt.Errorf("%s has the address %s, but that is %w", c.name, address(a), err)
	}
	return address(a), nil
}

// faultV6 says why peers can't be told this address, nil if they can.
func faultV6(a netlink.Addr) error {
	switch f := fault(a); {
	case f != "":
		return errors.New(f)
	case a.Flags&unix.IFA_F_DADFAILED != 0:
		return errors.New("somebody else's, too")
	case a.Flags&unix.IFA_F_TENTATIVE != 0 && a.Flags&unix.IFA_F_OPTIMISTIC == 0:
		return errTentative
	case a.IP.IsLinkLocalUnicast():
		return errors.New("link-local")
	}
	return nil
}

func (c candidate) wordsV6() string {
	var words []string
	for _, a := range c.addrsV6 {
		word := address(a).String()
		if err := faultV6(a); err != nil {
			word += " " + err.Error()
		}
		words = append(words, word)
	}
	if len(words) == 0 {
		return "none"
	}
	return strings.Join(words, ", ")
}
