package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// quiet is what every namespace gets. IPv4's per-interface settings are
// inherited from the machine, where distributions set rp_filter; IPv6 stays
// usable, without the delays and the chatter of its start.
var quiet = []sysctl{
	{"ipv4/conf/all/rp_filter", "0"},
	{"ipv4/conf/default/rp_filter", "0"},
	{"ipv6/conf/all/accept_dad", "0"},
	{"ipv6/conf/default/accept_dad", "0"},
	{"ipv6/conf/default/router_solicitations", "0"},
}

type sysctl struct{ name, value string }

// quietNamespace sets up the calling thread's namespace.
func quietNamespace() error {
	for _, s := range quiet {
		err := s.set()
		if strings.HasPrefix(s.name, "ipv6/") && errors.Is(err, fs.ErrNotExist) {
			continue // a kernel without IPv6
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// set writes the value in the calling thread's namespace.
func (s sysctl) set() error {
	path := filepath.Join("/proc/sys/net", s.name)
	if err := os.WriteFile(path, []byte(s.value), 0); err != nil {
		return fmt.Errorf("set sysctl: %w", err)
	}
	return nil
}

// Sysctl sets a variable below /proc/sys/net inside the namespace, for example
// "ipv4/conf/eth0/rp_filter".
func (n *Node) Sysctl(name, value string) error {
	return n.Do(sysctl{name, value}.set)
}

// quietBridges keeps the node's bridges from showing each frame to the firewall,
// as they do where the kernel has br_netfilter: they are the hosts' switch.
func (n *Node) quietBridges() error {
	for _, name := range []string{"bridge/bridge-nf-call-iptables", "bridge/bridge-nf-call-ip6tables", "bridge/bridge-nf-call-arptables"} {
		if err := n.Sysctl(name, "0"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
