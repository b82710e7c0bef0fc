package daemon

import (
	"cmp"
	"errors"
	"io/fs"
	"os"
	"path"
	"strings"

	"uvxlan/cmd/internal/leasefile"
	"uvxlan/cmd/internal/subnetfile"
	"uvxlan/lease"
	"uvxlan/lease/etcd"
	"uvxlan/tunnel/kroute"
)

// storeOf is where the leases are for a start without the registry.
func storeOf(o Options) leasefile.Store {
	network := strings.TrimRight(cmp.Or(o.Etcd.Prefix, etcd.DefaultPrefix), "/")
	if o.Kube != nil {
		network = path.Join("kubernetes", o.Kube.AnnotationPrefix, o.Kube.Node)
	}
	return leasefile.Store{Dir: o.StateDir, Prefix: network, Machine: leasefile.MachineID()}
}

// withdraw takes back what other daemons leave when they end, since another host
// has our subnet: the subnet file, by which containers would go on getting its
// addresses, and host-gw's routes, by which they would go on sending.
func withdraw(o Options, c *lease.Config, own lease.Lease) {
	f, err := subnetfile.Read(o.SubnetFile)
	if err == nil && f.Subnet == own.Subnet {
		err = os.Remove(o.SubnetFile)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		o.Logger.Warn("the subnet file may be left, with a subnet that is lost", "error", err)
	}
	if c.Backend.Type != lease.TypeHostGW {
		return
	}
	if _, err := kroute.RemoveLeftover(kroute.Protocol, c.Networks()...); err != nil {
		o.Logger.Warn("routes to peers may be left", "error", err)
	}
}
