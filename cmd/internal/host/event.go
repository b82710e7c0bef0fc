package host

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Kind is what an event is about.
type Kind int

// The kinds.
const (
	// Lost says that events may have been missed: it asks for a look at
	// everything.
	Lost Kind = iota
	// Link: an interface has come, gone or changed.
	Link
	// Address: an interface's address has.
	Address
	// Route: a route has. Its Prefix is where it leads.
	Route
	// Rule: a rule of policy routing has.
	Rule
	// Setting: a setting of an interface, or of all, has: forwarding or the
	// reverse-path filter, among others.
	Setting
	// Firewall: nftables' rules have. Iptables-legacy reports nothing.
	Firewall
)

// Event is news of the host's network. Only the kind's own fields are set.
type Event struct {
	Kind Kind
	// Index is the interface's, with Link and Address.
	Index int
	// Prefix is a route's destination, and Protocol whose it is (rtnetlink(7),
	// rtm_protocol), with Route.
	Prefix   netip.Prefix
	Protocol int
	// Family and Table are those of the changed nftables rules or objects, with
	// Firewall.
	Family byte
	Table  string
}

// Is returns a Wakes that wants all events of some kinds.
func Is(kinds ...Kind) func(Event) bool {
	var mask uint
	for _, k := range kinds {
		mask |= 1 << k
	}
	return func(e Event) bool { return mask&(1<<e.Kind) != 0 }
}

// routeGroups are the multicast groups of NETLINK_ROUTE that report the kinds
// (linux/rtnetlink.h, enum rtnetlink_groups).
var routeGroups = []uint{
	unix.RTNLGRP_LINK,
	unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
	unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
	unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE,
	unix.RTNLGRP_IPV4_NETCONF, unix.RTNLGRP_IPV6_NETCONF,
}

const (
	// readBuffer holds the longest report; the kernel's are below 32 KiB.
	readBuffer = 64 << 10
	// receiveBuffer is asked of the kernel, in bytes: a burst of changes that
	// overflows it costs no more than a look at everything.
	receiveBuffer = 1 << 20
)

// subscription is a netlink socket that reports events.
type subscription struct {
	file   *os.File
	decode func(syscall.NetlinkMessage) (Event, bool)
}

// subscribe joins the groups of a netlink protocol, in the calling thread's
// network namespace.
func subscribe(protocol int, groups []uint, decode func(syscall.NetlinkMessage) (Event, bool)) (*subscription, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	s := &subscription{os.NewFile(uintptr(fd), "netlink"), decode}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) // the default serves too
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, errors.Join(fmt.Errorf("bind netlink socket: %w", err), s.file.Close())
	}
	for _, g := range groups {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, int(g)); err != nil {
			return nil, errors.Join(fmt.Errorf("subscribe to the kernel's events: %w", err), s.file.Close())
		}
	}
	return s, nil
}

// run reports events until ctx ends, which is no error.
func (s *subscription) run(ctx context.Context, report func(Event)) error {
	stop := context.AfterFunc(ctx, func() { s.file.Close() })
	defer stop()
	buf := make([]byte, readBuffer)
	for {
		n, err := s.file.Read(buf)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS): // more than the socket holds
			report(Event{Kind: Lost})
			continue
		case err != nil:
			return fmt.Errorf("receive the kernel's events: %w", err)
		}
		messages, err := syscall.ParseNetlinkMessage(buf[:n])
		if err != nil {
			report(Event{Kind: Lost})
			continue
		}
		for _, m := range messages {
			if e, ok := s.decode(m); ok {
				report(e)
			}
		}
	}
}

// decodeRoute reads a message of NETLINK_ROUTE (rtnetlink(7)).
func decodeRoute(m syscall.NetlinkMessage) (Event, bool) {
	switch m.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		return indexed(Link, m.Data, 4)
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		return indexed(Address, m.Data, 4)
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		return routeEvent(m.Data)
	case unix.RTM_NEWRULE, unix.RTM_DELRULE:
		return Event{Kind: Rule}, true
	case unix.RTM_NEWNETCONF, unix.RTM_DELNETCONF:
		return Event{Kind: Setting}, true
	}
	return Event{}, false
}

// indexed reads the interface's index at an offset of the message.
func indexed(k Kind, data []byte, offset int) (Event, bool) {
	if len(data) < offset+4 {
		return Event{}, false
	}
	return Event{Kind: k, Index: int(int32(binary.NativeEndian.Uint32(data[offset:])))}, true
}

// routeEvent reads a struct rtmsg and the destination behind it. A default route
// has none.
func routeEvent(data []byte) (Event, bool) {
	if len(data) < unix.SizeofRtMsg {
		return Event{}, false
	}
	addr := netip.IPv4Unspecified()
	if data[0] == unix.AF_INET6 {
		addr = netip.IPv6Unspecified()
	}
	if dst := attribute(data[unix.SizeofRtMsg:], unix.RTA_DST); dst != nil {
		if a, ok := netip.AddrFromSlice(dst); ok {
			addr = a
		}
	}
	return Event{Kind: Route, Prefix: netip.PrefixFrom(addr, int(data[1])), Protocol: int(data[5])}, true
}

// generic is the length of the header that nfnetlink puts before the attributes
// (linux/netfilter/nfnetlink.h, struct nfgenmsg).
const generic = 4

// decodeNFTables reads a message of NETLINK_NETFILTER. A table's name has the same
// number in what is reported of tables, chains and rules.
func decodeNFTables(m syscall.NetlinkMessage) (Event, bool) {
	if m.Header.Type>>8 != unix.NFNL_SUBSYS_NFTABLES || len(m.Data) < generic {
		return Event{}, false
	}
	return Event{Kind: Firewall, Family: m.Data[0],
		Table: unix.ByteSliceToString(attribute(m.Data[generic:], unix.NFTA_TABLE_NAME))}, true
}

// typeMask is an attribute's type without its flags (linux/netlink.h,
// NLA_TYPE_MASK).
const typeMask = 1<<14 - 1

// attribute finds the value of a netlink attribute, nil if there is none.
func attribute(attributes []byte, kind uint16) []byte {
	for len(attributes) >= unix.SizeofNlAttr {
		length := int(binary.NativeEndian.Uint16(attributes))
		if length < unix.SizeofNlAttr || length > len(attributes) {
			return nil
		}
		if binary.NativeEndian.Uint16(attributes[2:])&typeMask == kind {
			return attributes[unix.SizeofNlAttr:length]
		}
		attributes = attributes[min((length+3)&^3, len(attributes)):]
	}
	return nil
}
