package fastpath

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"

	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"uvxlan/tunnel"
	"uvxlan/tunnel/internal/dump"
	"uvxlan/tunnel/internal/family"
)

// host is what is asked about the host, in one network namespace.
type host struct {
	netlink *netlink.Handle // of routing, tc and IPsec
	ethtool *ethtool.Ethtool
	xfrm    *nl.NetlinkSocket // nil in a kernel without IPsec
	events  []int             // sockets that poll readable when something may have changed
	ns      *os.File
}

// openHost opens the sockets in the calling thread's network namespace.
func openHost() (h *host, err error) {
	h = &host{}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("follow the host: %w", err), h.close())
			h = nil
		}
	}()
	if h.ns, err = os.Open(ownNamespace); err != nil {
		return h, err
	}
	if h.netlink, err = netlink.NewHandle(unix.NETLINK_ROUTE, unix.NETLINK_XFRM); err != nil {
		// A kernel without IPsec has no policies either.
		if h.netlink, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
			return h, err
		}
	} else if h.xfrm, err = nl.Subscribe(unix.NETLINK_XFRM); err != nil {
		return h, err
	}
	if h.ethtool, err = ethtool.NewEthtool(); err != nil {
		return h, err
	}
	const xfrmPolicyGroup = 4 // XFRMNLGRP_POLICY of linux/xfrm.h
	const policies = 1 << (xfrmPolicyGroup - 1)
	const routing = 1<<(unix.RTNLGRP_LINK-1) | 1<<(unix.RTNLGRP_TC-1) | 1<<(unix.RTNLGRP_IPV4_RULE-1) | 1<<(unix.RTNLGRP_IPV4_IFADDR-1) |
		1<<(unix.RTNLGRP_IPV6_RULE-1) | 1<<(unix.RTNLGRP_IPV6_IFADDR-1)
	if err := h.subscribe(unix.NETLINK_ROUTE, routing); err != nil {
		return h, err
	}
	if err := h.subscribe(unix.NETLINK_XFRM, policies); err != nil && !errors.Is(err, unix.EPROTONOSUPPORT) {
		return h, err
	}
	return h, nil
}

func (h *host) subscribe(protocol int, groups uint32) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return fmt.Errorf("open netlink socket: %w", err)
	}
	h.events = append(h.events, fd)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		return fmt.Errorf("subscribe to the kernel's events: %w", err)
	}
	return nil
}

// drain forgets the events that have come: whatever they say, everything is looked at.
func (h *host) drain(fd int) {
	var buf [8192]byte
	for {
		_, _, err := unix.Recvfrom(fd, buf[:], unix.MSG_TRUNC)
		if err != nil && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// ownNamespace is the network namespace of the thread that opens it.
const ownNamespace = "/proc/thread-self/ns/net"

// inside runs f in the host's network namespace.
func (h *host) inside(f func() error) error {
	runtime.LockOSThread()
	own, err := os.Stat(ownNamespace)
	if err == nil {
		var ours os.FileInfo
		if ours, err = h.ns.Stat(); err == nil && os.SameFile(own, ours) {
			defer runtime.UnlockOSThread()
			return f()
		}
	}
	runtime.UnlockOSThread()
	if err != nil {
		return fmt.Errorf("find the network namespace: %w", err)
	}
	return tunnel.Inside(h.ns, f)
}

func (h *host) close() error {
	var errs []error
	if h.ns != nil {
		errs = append(errs, h.ns.Close())
	}
	if h.xfrm != nil {
		h.xfrm.Close()
	}
	for _, fd := range h.events {
		errs = append(errs, unix.Close(fd))
	}
	if h.netlink != nil {
		h.netlink.Close()
	}
	if h.ethtool != nil {
		h.ethtool.Close()
	}
	return errors.Join(errs...)
}

// underlayLink is the interface that frames leave and arrive by.
type underlayLink struct {
	index int
	name  string
}

// underlay finds the interface that has an address or, if it isn't empty, a name.
// With a name it stays the one that it was before, by whatever name it goes, until
// that one is gone.
func (h *host) underlay(local netip.Addr, name string, before underlayLink) (underlayLink, error) {
	if name == "" {
		return h.linkOf(local)
	}
	if before.index != 0 {
		if l, err := h.netlink.LinkByIndex(before.index); err == nil {
			return underlayLink{before.index, l.Attrs().Name}, nil
		}
	}
	l, err := h.netlink.LinkByName(name)
	if err != nil {
		return underlayLink{}, fmt.Errorf("find %s: %w", name, err)
	}
	return underlayLink{l.Attrs().Index, l.Attrs().Name}, nil
}

// linkOf finds the interface that has an address.
func (h *host) linkOf(local netip.Addr) (underlayLink, error) {
	addresses, err := h.addresses(local)
	if err != nil {
		return underlayLink{}, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addresses {
		if !a.IP.Equal(local.AsSlice()) {
			continue
		}
		l, err := h.netlink.LinkByIndex(a.LinkIndex)
		if err != nil {
			return underlayLink{}, fmt.Errorf("find the interface of %s: %w", local, err)
		}
		return underlayLink{a.LinkIndex, l.Attrs().Name}, nil
	}
	return underlayLink{}, fmt.Errorf("no interface has %s", local)
}

// addresses lists those of the family of an address.
func (h *host) addresses(like netip.Addr) ([]netlink.Addr, error) {
	return dump.List(func() ([]netlink.Addr, error) { return h.netlink.AddrList(nil, familyOf(like)) })
}

// familyOf is an address's family as netlink has it.
func familyOf(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// view is what matters about the host at a moment.
type view struct {
	off          string               // why nothing is carried, empty if that isn't so
	families     [family.Count]string // likewise for peers of each family
	superpackets bool
	virtual      bool  // there may be hosts on this machine beyond the underlay, which send superpackets
	flowLabels   bool  // the kernel's sockets send them
	tolerant     []int // links
	policies     []policy
}

// look looks at the host. A part that can't be looked at is taken for the worst.
func (h *host) look(locals []netip.AddrPort, device int, link underlayLink) (v view) {
	v.families = [family.Count]string{"this host has no IPv4 address on the underlay", "this host has no IPv6 address on the underlay"}
	usable := false
	for _, local := range locals {
		why := h.badFamily(local.Addr(), device)
		v.families[family.Of(local.Addr())] = why
		usable = usable || why == ""
	}
	if !usable {
		v.off = v.families[family.Of(locals[0].Addr())]
	}
	v.off = cmpOr(
		func() string { return v.off },
		func() string { return h.badLinks(device, link, &v) },
		func() string { return h.foreignFilters(device, link) },
		func() string { return h.readPolicies(locals, &v) },
		h.blocks,
	)
	v.flowLabels = h.sendsFlowLabels()
	return v
}

// badFamily is why peers of our address's family can't be carried, empty if they can.
func (h *host) badFamily(local netip.Addr, device int) string {
	return cmpOr(
		func() string { return h.missing(local) },
		func() string { return h.foreignRules(device, familyOf(local)) },
		func() string { return h.notForwarding(device, local) },
	)
}

// notForwarding tells that the kernel won't look routes up for the device, which it does
// only where that forwards.
func (h *host) notForwarding(device int, local netip.Addr) string {
	l, err := h.netlink.LinkByIndex(device)
	if err != nil {
		return "the device is gone"
	}
	kind := "ipv6"
	if local.Is4() {
		kind = "ipv4"
	}
	name := "net/" + kind + "/conf/" + l.Attrs().Name + "/forwarding"
	switch value, err := h.sysctl(name); {
	case err != nil:
		return fmt.Sprintf("can't read %s: %v", name, err)
	case value == "0":
		return fmt.Sprintf("the kernel looks up no routes for %s: %s is 0", l.Attrs().Name, name)
	}
	return ""
}

// sendsFlowLabels tells whether datagrams of the kernel's sockets have a flow label
// without being told to (auto_flowlabels of Documentation/networking/ip-sysctl.rst).
func (h *host) sendsFlowLabels() bool {
	value, err := h.sysctl("net/ipv6/auto_flowlabels")
	return err == nil && value != "0" && value != "2"
}

// sysctl reads a variable in the host's network namespace.
func (h *host) sysctl(name string) (value string, err error) {
	err = h.inside(func() error {
		b, err := os.ReadFile("/proc/sys/" + name)
		value = strings.TrimSpace(string(b))
		return err
	})
	return value, err
}

// cmpOr is the first of what the functions return that isn't empty.
func cmpOr(all ...func() string) string {
	for _, f := range all {
		if s := f(); s != "" {
			return s
		}
	}
	return ""
}

// missing tells that the host hasn't the address that frames leave from.
func (h *host) missing(local netip.Addr) string {
	addresses, err := h.addresses(local)
	switch {
	case err != nil:
		return fmt.Sprintf("can't list addresses: %v", err)
	case !slices.ContainsFunc(addresses, func(a netlink.Addr) bool { return a.IP.Equal(local.AsSlice()) }):
		return fmt.Sprintf("no interface has %s", local)
	}
	return ""
}

// tested are the kinds of underlay that the programs were tried on. "device" is what
// has no kind: a NIC. Of "tuntap" a TAP is an Ethernet interface.
var tested = []string{"device", "veth", "bridge", "macvlan", "tuntap"}

// badLinks looks at the interfaces.
func (h *host) badLinks(device int, link underlayLink, v *view) string {
	all, err := dump.List(h.netlink.LinkList)
	if err != nil {
		return fmt.Sprintf("can't list interfaces: %v", err)
	}
	byIndex := make(map[int]netlink.Link, len(all))
	for _, l := range all {
		byIndex[l.Attrs().Index] = l
		// A bridge has no features for tunnels' superpackets: they would be segmented there
		// in software, which costs more than the workers.
		if slices.Contains([]string{"veth", "tuntap"}, l.Type()) && l.Attrs().Index != device {
			v.tolerant = append(v.tolerant, l.Attrs().Index)
		}
	}
	underlay := byIndex[link.index]
	if underlay == nil {
		return link.name + " is gone"
	}
	if why := linkObjection(byIndex[device], underlay, byIndex); why != "" {
		return why
	}
	v.superpackets = h.passesSuperpackets(underlay, byIndex)
	v.virtual = slices.Contains([]string{"veth", "macvlan", "tuntap"}, underlay.Type())
	return ""
}

// linkObjection is why nothing can be carried between a device, nil if it is gone, and an
// underlay's interface, empty if it can.
func linkObjection(device, underlay netlink.Link, byIndex map[int]netlink.Link) string {
	switch name := underlay.Attrs().Name; {
	case device == nil:
		return "the device is gone"
	case !slices.Contains(tested, underlay.Type()):
		return fmt.Sprintf("%s is a %s interface, which the fast path wasn't tried on", name, underlay.Type())
	case underlay.Attrs().EncapType != "ether":
		return name + " isn't an Ethernet interface"
	}
	for _, l := range []netlink.Link{device, underlay} {
		if master := byIndex[l.Attrs().MasterIndex]; master != nil {
			return fmt.Sprintf("%s belongs to %s (%s)", l.Attrs().Name, master.Attrs().Name, master.Type())
		}
	}
	return ""
}

// foreignRules looks for routing rules that lead the workers' datagrams another way
// than a lookup for what the device forwards: those that match the interface or the
// user.
func (h *host) foreignRules(device, family int) string {
	rules, err := dump.List(func() ([]netlink.Rule, error) { return h.netlink.RuleList(family) })
	if err != nil {
		return fmt.Sprintf("can't list routing rules: %v", err)
	}
	name := ""
	if l, err := h.netlink.LinkByIndex(device); err == nil {
		name = l.Attrs().Name
	}
	for _, r := range rules {
		switch {
		case r.IifName == "lo", r.IifName != "" && r.IifName == name:
			return fmt.Sprintf("routing rule %d tells the host's own packets and the containers' apart (iif %s)", r.Priority, r.IifName)
		case r.OifName != "":
			return fmt.Sprintf("routing rule %d matches the outgoing interface (oif %s)", r.Priority, r.OifName)
		case r.UIDRange != nil:
			return fmt.Sprintf("routing rule %d matches users (uidrange)", r.Priority)
		}
	}
	return ""
}

// foreignFilters looks for classic tc filters: programs on tcx links go before them, so
// that they would not see our packets. Other programs on tcx links go before ours.
func (h *host) foreignFilters(device int, link underlayLink) string {
	for _, at := range []struct {
		index  int
		parent uint32
		where  string
	}{
		{device, netlink.HANDLE_MIN_EGRESS, "egress of the device"},
		{link.index, netlink.HANDLE_MIN_INGRESS, "ingress of " + link.name},
	} {
		filters, err := filtersAt(h.netlink, at.index, at.parent)
		if err != nil {
			return fmt.Sprintf("at the %s: can't %v", at.where, err)
		}
		for _, f := range filters {
			if !isOurs(f) {
				return fmt.Sprintf("there is a tc filter (%s, priority %d) at the %s", f.Type(), f.Attrs().Priority, at.where)
			}
		}
	}
	return ""
}

// readPolicies reads the IPsec policies of the families of our addresses.
func (h *host) readPolicies(locals []netip.AddrPort, v *view) string {
	for _, local := range locals {
		all, err := dump.List(func() ([]netlink.XfrmPolicy, error) { return h.netlink.XfrmPolicyList(familyOf(local.Addr())) })
		switch {
		case errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS):
			return "" // no IPsec in this kernel
		case err != nil:
			return fmt.Sprintf("can't list IPsec policies: %v", err)
		}
		for _, p := range all {
			v.policies = append(v.policies, policyOf(p, local.Addr()))
		}
	}
	return ""
}

// policyOf is a policy of an address's family.
func policyOf(p netlink.XfrmPolicy, like netip.Addr) policy {
	return policy{selector(p.Src, like), selector(p.Dst, like), int(p.Proto), p.String()}
}

// selector is a part of a policy of an address's family. Package netlink takes an IPv6
// prefix whose bytes behind the first four are zero for an IPv4 address, and its
// length is lost if it is more than 32: then it is taken for the 32 bits that hold it.
func selector(n *net.IPNet, like netip.Addr) netip.Prefix {
	if n == nil {
		return netip.PrefixFrom(like, 0).Masked()
	}
	a, _ := netip.AddrFromSlice(n.IP)
	a = a.Unmap()
	bits, _ := n.Mask.Size()
	if a.Is4() && like.Is6() {
		if len(n.Mask) == 0 {
			bits = 32
		}
		first := a.As4()
		a = netip.AddrFrom16([16]byte(append(first[:], make([]byte, 12)...)))
	}
	return netip.PrefixFrom(a, bits).Masked()
}

// blocks tells whether IPsec's default policy (Linux 5.14) blocks datagrams that no
// policy is for.
func (h *host) blocks() string {
	if h.xfrm == nil {
		return ""
	}
	const getDefault = 0x28 // XFRM_MSG_GETDEFAULT of linux/xfrm.h
	const block = 1         // XFRM_USERPOLICY_BLOCK
	r := nl.NewNetlinkRequest(getDefault, 0)
	r.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_XFRM: {Socket: h.xfrm}}
	r.AddRawData([]byte{0, 0, 0}) // struct xfrm_userpolicy_default: in, fwd, out
	answers, err := r.Execute(unix.NETLINK_XFRM, getDefault)
	switch {
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP):
		return "" // the kernel has no such thing
	case err != nil:
		return fmt.Sprintf("can't read IPsec's default policy: %v", err)
	case len(answers) != 1 || len(answers[0]) < 3:
		return "can't read IPsec's default policy"
	}
	if in, out := answers[0][0], answers[0][2]; in == block || out == block {
		return "IPsec's default policy blocks what no policy allows"
	}
	return ""
}

// passesSuperpackets tells whether an interface and those below it take TCP
// superpackets in a UDP tunnel unsplit. Without one of the features the kernel splits
// them before, which costs more than the workers.
func (h *host) passesSuperpackets(l netlink.Link, byIndex map[int]netlink.Link) bool {
	for l != nil && l.Type() != "bridge" { // which has no features for what is in a tunnel (hw_enc_features)
		features, err := h.ethtool.Features(l.Attrs().Name)
		switch {
		case err != nil || !features["tx-udp_tnl-segmentation"] || !features["tx-tcp-segmentation"]:
			return false
		case l.Type() != "macvlan":
			return true
		case l.Attrs().NetNsID >= 0:
			return false // the one below is in another network namespace
		}
		l = byIndex[l.Attrs().ParentIndex] // a macvlan always has the features itself
	}
	return false
}

// objection is why the programs can't have a peer, empty if they can.
func (v *view) objection(locals []netip.AddrPort, p tunnel.FastPeer) string {
	if why := v.families[family.Of(p.Underlay)]; why != "" {
		return why
	}
	for _, local := range locals {
		for _, policy := range v.policies {
			if policy.mayCover(local.Addr(), p.Underlay) {
				return fmt.Sprintf("an IPsec policy covers it (%s to %s)", policy.src, policy.dst)
			}
		}
	}
	return ""
}

// policy is one of IPsec's.
type policy struct {
	src, dst netip.Prefix
	proto    int    // 0 for any
	text     string // all of it
}

// mayCover tells whether a policy can be for datagrams between two addresses, in
// whatever direction it is for.
func (p policy) mayCover(local, peer netip.Addr) bool {
	if p.proto != 0 && p.proto != unix.IPPROTO_UDP {
		return false
	}
	return p.src.Contains(local) && p.dst.Contains(peer) || p.src.Contains(peer) && p.dst.Contains(local)
}
