package tunnel

import (
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"uvxlan/encap"
	"uvxlan/lease"
	"uvxlan/tunnel/internal/testhost"
	"uvxlan/tunnel/onlink"
)

// sent is how many packets the kernel has sent by an interface.
func (v *vtep) sent(name string) uint64 {
	v.T.Helper()
	return testhost.Inside(v.Host, func() (uint64, error) {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return 0, err
		}
		return l.Attrs().Statistics.TxPackets, nil
	})
}

// vtepLease is a lease of a subnet that p holds.
func vtepLease(subnet netip.Prefix, p Peer) lease.Lease {
	return lease.Lease{Subnet: subnet, Attrs: lease.Attrs{
		PublicIP: p.Underlay, BackendType: lease.TypeVXLAN,
		BackendData: []byte(`{"VNI":7,"VtepMAC":"` + p.MAC.String() + `"}`),
	}}
}

// A lease at our own address is left out, and named: a container's packet into its
// subnet would come back by the loopback interface, and be forwarded into the device
// again until its TTL is spent.
func TestIntegrationLeaseAtOwnAddress(t *testing.T) {
	a, b := &vtep{Host: testhost.New(t), n: 1, anySource: true}, &vtep{Host: testhost.New(t), n: 2}
	set := func(name string) {
		t.Helper()
		testhost.Must(t, a.Do(func() error { return os.WriteFile("/proc/sys/net/"+name, []byte("1"), 0) }))
	}
	set("ipv6/conf/default/disable_ipv6") // then no interface sends by itself
	set("ipv4/ip_forward")
	container := testhost.New(t)
	testhost.Join(a.Host, b.Host, "eth0", "10.66.0")
	testhost.Join(a.Host, container, "pod0", "10.99.1")
	testhost.Must(t, container.RouteAdd(&netlink.Route{Gw: vtepAddress(1).AsSlice(), LinkIndex: container.Index("pod0")}))
	a.start(1, onlink.Off)
	b.start(1, onlink.Off, vtepPeer(1))
	ours, good := vtepLease(vtepPeer(9).Subnet, vtepPeer(1)), vtepLease(vtepPeer(2).Subnet, vtepPeer(2))
	for how, reset := range map[string]bool{"change": false, "snapshot": true} {
		err := a.router.Apply(lease.Update{Reset: reset, Leases: []lease.Lease{ours, good}})
		if err == nil || !strings.Contains(err.Error(), ours.Subnet.String()) || !strings.Contains(err.Error(), "our own address") {
			t.Errorf("%s: the error doesn't say what is wrong: %v", how, err)
		}
		if p := a.router.Peers(); len(p) != 1 || p[0] != vtepPeer(2) {
			t.Errorf("%s: the peers are %v", how, p)
		}
	}
	device, loopback := a.sent("overlay0"), a.sent("lo")
	ping := func(to netip.Addr) net.Conn {
		t.Helper()
		c := testhost.Inside(container, func() (net.Conn, error) { return net.Dial("ip4:icmp", to.String()) })
		t.Cleanup(func() { c.Close() })
		request := []byte{8, 0, 0, 0, 0, 1, 0, 1} // echo (RFC 792), identifier 1, number 1
		sum := encap.Checksum(request, 0)
		request[2], request[3] = byte(sum>>8), byte(sum)
		_, err := c.Write(request)
		testhost.Must(t, err)
		return c
	}
	ping(vtepAddress(9))
	// The worker takes the second after the first.
	answered := ping(vtepAddress(2))
	testhost.Must(t, answered.SetReadDeadline(time.Now().Add(testhost.Patience)))
	_, err := answered.Read(make([]byte, 64))
	testhost.Must(t, err)
	if n := a.sent("overlay0") - device; n != 2 {
		t.Errorf("two pings were %d packets into the device", n)
	}
	if n := a.sent("lo") - loopback; n != 0 {
		t.Errorf("%d packets went by the loopback interface", n)
	}
	waitStats(t, a.router, func(s Stats) bool { return s.TxPackets == 1 && s.RxPackets == 1 && s.Dropped() == 1 })
}
