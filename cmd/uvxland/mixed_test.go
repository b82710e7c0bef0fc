package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"

	clientv3 "go.etcd.io/etcd/client/v3"

	"uvxlan/bench/cluster"
	"uvxlan/bench/iperf"
	"uvxlan/bench/lab"
	"uvxlan/lease/etcd"
)

// mixedConfig is what a cluster with flannel's hosts has: they take the kernel's
// port unless they are told another.
const mixedConfig = `{"Network":"172.7.0.0/16","Backend":{"Type":"vxlan","Port":8472}}`

// subnetsKey is where flannel's leases are.
const subnetsKey = etcd.DefaultPrefix + "/subnets"

// client is etcd's own, as other programs of the cluster use it.
func (w *world) client() *clientv3.Client {
	w.t.Helper()
	dial := func(ctx context.Context, address string) (conn net.Conn, err error) {
		err = w.cluster.Etcd.Do(func() (err error) {
			conn, err = new(net.Dialer).DialContext(ctx, "tcp", address)
			return err
		})
		return conn, err
	}
	c, err := clientv3.New(clientv3.Config{
		Endpoints: []string{w.cluster.Endpoint}, Logger: zap.NewNop(), DialOptions: []grpc.DialOption{grpc.WithContextDialer(dial)},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = c.Close() })
	return c
}

// flannelHost is a host on which the commands are given by hand that flanneld's
// vxlan backend gives.
type flannelHost struct {
	*lab.Host
	w     *world
	etcd  *clientv3.Client
	mac   string
	grant clientv3.LeaseID
}

// newFlannelHost makes the device and takes the lease.
func (w *world) newFlannelHost(name, mac string) *flannelHost {
	w.t.Helper()
	f := &flannelHost{Host: w.Host(name), w: w, etcd: w.client(), mac: mac}
	f.do("ip link add flannel.1 mtu 1450 address %s type vxlan id 1 dev eth0 local %s dstport 8472 nolearning", mac, f.Address)
	f.do("ip address add %s/32 dev flannel.1", f.Subnet.Addr())
	f.do("ip link set flannel.1 up")
	f.newGrant()
	put := clientv3.OpPut(f.key(), f.value(), clientv3.WithLease(f.grant))
	resp, err := f.etcd.Txn(w.context()).If(clientv3.Compare(clientv3.Version(f.key()), "=", 0)).Then(put).Commit()
	if err != nil || !resp.Succeeded {
		w.t.Fatalf("%s takes its lease: %+v, %v", name, resp, err)
	}
	return f
}

func (f *flannelHost) do(format string, args ...any) {
	f.w.t.Helper()
	command(f.w.t, f.Node, fmt.Sprintf(format, args...))
}

func (f *flannelHost) key() string {
	return fmt.Sprintf("%s/%s-%d", subnetsKey, f.Subnet.Addr(), f.Subnet.Bits())
}

func (f *flannelHost) value() string { return flannelValue(f.Address, f.mac) }

// flannelValue is a vxlan lease, byte for byte.
func flannelValue(publicIP netip.Addr, mac string) string {
	return fmt.Sprintf(`{"PublicIP":"%s","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"%s"}}`, publicIP, mac)
}

func (f *flannelHost) newGrant() {
	f.w.t.Helper()
	g, err := f.etcd.Grant(f.w.context(), 86400)
	if err != nil {
		f.w.t.Fatal(err)
	}
	f.grant = g.ID
}

// renew is another etcd lease and a put, whatever is there. The old etcd lease
// lapses.
func (f *flannelHost) renew() {
	f.w.t.Helper()
	old := f.grant
	f.newGrant()
	f.put()
	if _, err := f.etcd.Revoke(f.w.context(), old); err != nil {
		f.w.t.Fatal(err)
	}
}

func (f *flannelHost) put() {
	f.w.t.Helper()
	if _, err := f.etcd.Put(f.w.context(), f.key(), f.value(), clientv3.WithLease(f.grant)); err != nil {
		f.w.t.Fatal(err)
	}
}

// flannelLease is a lease as flannel reads it.
type flannelLease struct {
	subnet   netip.Prefix
	publicIP netip.Addr
	mac      string
}

// flannelKey is how flannel reads a key: the end of it must fit.
var flannelKey = regexp.MustCompile(`(\d+\.\d+\.\d+\.\d+)-(\d+)(?:&([a-f\d:]+)-(\d+))?$`)

// flannelLeases reads all that flannel reads. What it can't read would make it
// forget every peer.
func (w *world) flannelLeases(c *clientv3.Client) (all []flannelLease) {
	w.t.Helper()
	resp, err := c.Get(w.context(), subnetsKey, clientv3.WithPrefix())
	if err != nil {
		w.t.Fatal(err)
	}
	for _, kv := range resp.Kvs {
		l, err := readAsFlannel(string(kv.Key), kv.Value)
		if err != nil {
			w.t.Errorf("flannel can't read %s: %s: %v", kv.Key, kv.Value, err)
			continue
		}
		all = append(all, l)
	}
	return all
}

func readAsFlannel(key string, value []byte) (l flannelLease, err error) {
	parts := flannelKey.FindStringSubmatch(key)
	if parts == nil {
		return l, errors.New("the key doesn't fit")
	}
	if l.subnet, err = netip.ParsePrefix(parts[1] + "/" + parts[2]); err != nil {
		return l, err
	}
	var attrs struct {
		PublicIP    netip.Addr
		PublicIPv6  *netip.Addr
		BackendType string
		BackendData struct {
			VNI     uint32
			VtepMAC string
		}
	}
	if err := json.Unmarshal(value, &attrs); err != nil {
		return l, err
	}
	if _, err := net.ParseMAC(attrs.BackendData.VtepMAC); err != nil || attrs.BackendType != "vxlan" || !attrs.PublicIP.Is4() {
		return l, fmt.Errorf("not a vxlan lease: %w", err)
	}
	l.publicIP, l.mac = attrs.PublicIP, attrs.BackendData.VtepMAC
	return l, nil
}

// learn does for each other lease what flannel does when it sees one.
func (f *flannelHost) learn() {
	f.w.t.Helper()
	for _, l := range f.w.flannelLeases(f.etcd) {
		if l.subnet == f.Subnet {
			continue
		}
		f.do("ip neigh replace %s lladdr %s dev flannel.1 nud permanent", l.subnet.Addr(), l.mac)
		f.do("bridge fdb replace %s dev flannel.1 dst %s self permanent", l.mac, l.publicIP)
		f.do("ip route replace %s via %s dev flannel.1 onlink", l.subnet, l.subnet.Addr())
	}
}

// One host with uvxlan among hosts on which flannel's commands are given: what
// these do to their leases is followed, and what the daemon writes is byte for
// byte flannel's.
func TestIntegrationMixedCluster(t *testing.T) {
	w := newWorld(t)
	w.configure(mixedConfig)
	d := w.start("kb21")[0]
	same, far := w.newFlannelHost("kb22", "0e:11:22:33:44:22"), w.newFlannelHost("kb31", "0e:11:22:33:44:31")
	w.sameBytes(w.client())
	for _, f := range []*flannelHost{same, far} {
		f.learn()
	}
	w.mesh("kb21", "kb22", "kb31")
	for _, f := range []*flannelHost{same, far} {
		w.bothWays(f.Container)
	}

	// Another MAC, as after a reboot.
	same.mac = "0e:aa:bb:cc:dd:ee"
	same.do("ip link set flannel.1 address %s", same.mac)
	same.put()
	for _, f := range []*flannelHost{same, far} {
		f.learn() // the kernel has forgotten the device's neighbours
	}
	w.mesh("kb21", "kb22", "kb31")
	transfer(t, w.container("kb21").Node, same.Container, 16<<20)

	// Renewals disturb nothing.
	for range 10 {
		for _, f := range []*flannelHost{same, far} {
			f.renew()
			for range 5 {
				if _, err := w.container("kb21").Ping(w.context(), f.Container.Address, lab.DefaultContainerMTU); err != nil {
					t.Fatalf("after a renewal: %v", err)
				}
			}
		}
	}

	// One goes and comes back.
	if _, err := far.etcd.Revoke(w.context(), far.grant); err != nil {
		t.Fatal(err)
	}
	unreachable(t, w, w.container("kb21"), far.Container)
	w.mesh("kb21", "kb22")
	far.newGrant()
	far.put()
	w.mesh("kb21", "kb31")

	// With flannel's DirectRouting a host of the same network sends plainly.
	same.do("ip route replace %s via %s", d.Host.Subnet, d.Host.Address)
	same.do("ip neigh del %s dev flannel.1", d.Host.Subnet.Addr())
	w.mesh("kb21", "kb22")
	transfer(t, same.Container.Node, w.container("kb21"), 16<<20)
	transfer(t, w.container("kb21").Node, same.Container, 16<<20)

	if err := d.Stop(w.context()); err != nil {
		t.Error(err)
	}
	w.sameBytes(same.etcd)
	if got := w.flannelLeases(same.etcd); len(got) != 3 {
		t.Errorf("flannel reads %v", got)
	}
	if log := logOf(t, d); strings.Contains(log, "level=WARN") || strings.Contains(log, "level=ERROR") {
		t.Errorf("the daemon says\n%s", log)
	}
}

// sameBytes expects the daemon's lease, and its time to live, to be what
// flannel's would be.
func (w *world) sameBytes(c *clientv3.Client) {
	w.t.Helper()
	h := w.Host("kb21")
	resp, err := c.Get(w.context(), fmt.Sprintf("%s/%s-%d", subnetsKey, h.Subnet.Addr(), h.Subnet.Bits()))
	if err != nil || len(resp.Kvs) != 1 {
		w.t.Fatalf("the daemon's key: %v, %v", resp, err)
	}
	kv := resp.Kvs[0]
	l, err := readAsFlannel(string(kv.Key), kv.Value)
	if err != nil || string(kv.Value) != flannelValue(h.Address, l.mac) {
		w.t.Errorf("the daemon's lease is %s, %v", kv.Value, err)
	}
	ttl, err := c.TimeToLive(w.context(), clientv3.LeaseID(kv.Lease))
	if err != nil || ttl.GrantedTTL != 86400 {
		w.t.Errorf("its time to live: %+v, %v", ttl, err)
	}
}

// bothWays sends checked data and runs iperf3 between kb21's container and
// another, each way.
func (w *world) bothWays(far *lab.Container) {
	w.t.Helper()
	near := w.container("kb21")
	for _, ends := range [][2]*lab.Container{{near, far}, {far, near}} {
		from, to := ends[0], ends[1]
		transfer(w.t, from.Node, to, 64<<20)
		tcp := iperfRun(w.t, iperf.Test{Server: to.Node, Client: from.Node, To: to.Address, Duration: time.Second})
		w.t.Logf("%s -> %s: %.2f Gbit/s", from.Name, to.Name, tcp.BitsPerSecond/1e9)
		if tcp.Bytes == 0 {
			w.t.Errorf("%s -> %s: %+v", from.Name, to.Name, tcp)
		}
	}
}

// unreachable waits until a container is told that another can't be reached.
func unreachable(t *testing.T, w *world, from, to *lab.Container) {
	t.Helper()
	for ctx := w.context(); ; {
		once, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
		_, err := from.Ping(once, to.Address, 100)
		cancel()
		switch {
		case errors.Is(err, lab.ErrUnreachable):
			return
		case ctx.Err() != nil:
			t.Fatalf("%s to %s: %v", from.Name, to.Name, err)
		}
	}
}

// Ten thousand leases and changes of them reach the table, and the log stays
// readable. How fast is the bench's matter.
func TestIntegrationManyLeases(t *testing.T) {
	const n, changes = 10_000, 1000
	w := newWorld(t, "kb21", "kb22")
	w.configure(`{"Network":"172.0.0.0/8","SubnetLen":24,"Backend":{"Type":"VxLAN","DirectRouting":true}}`)
	c := w.client()
	w.transact(c, n, func(i int) clientv3.Op { return clientv3.OpPut(manyKey(i), manyValue(i)) })
	daemons := w.start("kb21", "kb22")
	w.mesh("kb21", "kb22")
	d := daemons[0]
	awaitPeerCount(t, w, d, n+1)
	for _, i := range []int{0, 4321, n - 1} {
		if mac := peerMAC(t, d, i); mac != manyMAC(i) {
			t.Errorf("lease %d is in the table with %q", i, mac)
		}
	}
	w.transact(c, changes, func(i int) clientv3.Op { return clientv3.OpPut(manyKey(n+i), manyValue(n+i)) })
	awaitPeerCount(t, w, d, n+1+changes)
	w.transact(c, changes, func(i int) clientv3.Op { return clientv3.OpPut(manyKey(i), manyValue(n-i)) })
	w.transact(c, n, func(i int) clientv3.Op { return clientv3.OpDelete(manyKey(changes + i)) })
	awaitPeerCount(t, w, d, changes+1)
	for _, i := range []int{0, changes - 1} {
		if mac := peerMAC(t, d, i); mac != manyMAC(n-i) {
			t.Errorf("changed lease %d is in the table with %q", i, mac)
		}
	}
	w.mesh("kb21", "kb22")
	if lines := strings.Count(logOf(t, d), "\n"); lines > 150 {
		t.Errorf("the log has %d lines", lines)
	}
}

func manyKey(i int) string { return fmt.Sprintf("%s/172.%d.%d.0-24", subnetsKey, 64+i>>8, i&0xff) }

func manyValue(i int) string {
	return flannelValue(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), manyMAC(i))
}

func manyMAC(i int) string { return fmt.Sprintf("0e:00:00:00:%02x:%02x", i>>8, i&0xff) }

// transact makes n requests in as few steps as etcd takes them.
func (w *world) transact(c *clientv3.Client, n int, op func(int) clientv3.Op) {
	w.t.Helper()
	for i := 0; i < n; {
		var ops []clientv3.Op
		for ; i < n && len(ops) < 128; i++ {
			ops = append(ops, op(i))
		}
		if _, err := c.Txn(w.context()).Then(ops...).Commit(); err != nil {
			w.t.Fatal(err)
		}
	}
}

func awaitPeerCount(t *testing.T, w *world, d *cluster.Daemon, n int) {
	t.Helper()
	for ctx := w.context(); ; {
		s := askStatus(t, d)
		if s.Peers == n {
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("the daemon has %d peers, want %d", s.Peers, n)
		}
	}
}

// peerMAC is the MAC of the lease's peer in the daemon's table.
func peerMAC(t *testing.T, d *cluster.Daemon, i int) string {
	t.Helper()
	out := command(t, d.Host.Node, commandBinary+" peers -o json -control-socket "+d.ControlSocket())
	var peers []struct {
		Subnet netip.Prefix
		MAC    string
	}
	if err := json.Unmarshal([]byte(out), &peers); err != nil {
		t.Fatal(err)
	}
	for _, p := range peers {
		if p.Subnet == netip.PrefixFrom(netip.AddrFrom4([4]byte{172, byte(64 + i>>8), byte(i), 0}), 24) {
			return p.MAC
		}
	}
	return ""
}
