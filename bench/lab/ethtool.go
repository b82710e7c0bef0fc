package lab

import (
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// attribute strips the flags from a netlink attribute's type.
const attribute = 0x3fff

// SetFeatures turns features of an interface on or off, by the names that
// ethtool -k shows. It returns an error if one of them doesn't change.
func (n *Node) SetFeatures(iface string, wanted map[string]bool) error {
	err := n.ethtool(iface, unix.ETHTOOL_MSG_FEATURES_SET, unix.ETHTOOL_FLAG_OMIT_REPLY, featureBits(wanted), nil)
	if err != nil {
		return fmt.Errorf("set features of %s in %s: %w", iface, n.Name, err)
	}
	active, err := n.Features(iface)
	if err != nil {
		return err
	}
	for name, on := range wanted {
		if active[name] != on {
			return fmt.Errorf("set features of %s in %s: %s can't be changed", iface, n.Name, name)
		}
	}
	return nil
}

// Features returns the names of the features that are active on an interface.
func (n *Node) Features(iface string) (map[string]bool, error) {
	active := make(map[string]bool)
	err := n.ethtool(iface, unix.ETHTOOL_MSG_FEATURES_GET, 0, nil, func(reply []byte) error {
		return parseFeatures(reply, active)
	})
	if err != nil {
		return nil, fmt.Errorf("get features of %s in %s: %w", iface, n.Name, err)
	}
	return active, nil
}

// ethtool sends one request of the ethtool family and hands its reply to parse,
// which may be nil.
func (n *Node) ethtool(iface string, command uint8, flags uint32, body nl.NetlinkRequestData, parse func([]byte) error) error {
	return n.Do(func() error {
		family, err := netlink.GenlFamilyGet("ethtool")
		if err != nil {
			return fmt.Errorf("find ethtool's netlink family: %w", err)
		}
		req := nl.NewNetlinkRequest(int(family.ID), unix.NLM_F_ACK)
		req.AddData(&nl.Genlmsg{Command: command, Version: 1})
		header := nl.NewRtAttr(unix.ETHTOOL_A_FEATURES_HEADER|unix.NLA_F_NESTED, nil)
		header.AddRtAttr(unix.ETHTOOL_A_HEADER_DEV_NAME, nl.ZeroTerminated(iface))
		header.AddRtAttr(unix.ETHTOOL_A_HEADER_FLAGS, nl.Uint32Attr(flags))
		req.AddData(header)
		if body != nil {
			req.AddData(body)
		}
		replies, err := req.Execute(unix.NETLINK_GENERIC, 0)
		if err != nil || parse == nil {
			return err
		}
		for _, reply := range replies {
			if err := parse(reply); err != nil {
				return err
			}
		}
		return nil
	})
}

// featureBits encodes a bit set in the verbose form: a bit that is listed is
// changed, and set if it has a value.
func featureBits(wanted map[string]bool) *nl.RtAttr {
	set := nl.NewRtAttr(unix.ETHTOOL_A_FEATURES_WANTED|unix.NLA_F_NESTED, nil)
	bits := set.AddRtAttr(unix.ETHTOOL_A_BITSET_BITS|unix.NLA_F_NESTED, nil)
	for name, on := range wanted {
		bit := bits.AddRtAttr(unix.ETHTOOL_A_BITSET_BITS_BIT|unix.NLA_F_NESTED, nil)
		bit.AddRtAttr(unix.ETHTOOL_A_BITSET_BIT_NAME, nl.ZeroTerminated(name))
		if on {
			bit.AddRtAttr(unix.ETHTOOL_A_BITSET_BIT_VALUE, nil)
		}
	}
	return set
}

// parseFeatures collects the active bits of a reply, which lists only set ones.
func parseFeatures(reply []byte, active map[string]bool) error {
	const genlHeader = 4
	if len(reply) < genlHeader {
		return fmt.Errorf("reply of %d bytes", len(reply))
	}
	path := []uint16{unix.ETHTOOL_A_FEATURES_ACTIVE, unix.ETHTOOL_A_BITSET_BITS, unix.ETHTOOL_A_BITSET_BITS_BIT, unix.ETHTOOL_A_BITSET_BIT_NAME}
	return eachAttribute(reply[genlHeader:], path, func(value []byte) {
		active[nl.BytesToString(value)] = true
	})
}

// eachAttribute calls f for every attribute at the path of nested types.
func eachAttribute(b []byte, path []uint16, f func(value []byte)) error {
	if len(path) == 0 {
		f(b)
		return nil
	}
	attrs, err := nl.ParseRouteAttr(b)
	if err != nil {
		return err
	}
	for _, a := range attrs {
		if a.Attr.Type&attribute != path[0] {
			continue
		}
		if err := eachAttribute(a.Value, path[1:], f); err != nil {
			return err
		}
	}
	return nil
}
