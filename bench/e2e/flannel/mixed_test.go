package flannel_test

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

	"uvxlan/bench/e2e"

	"go.uber.org/zap"
	"google.golang.org/grpc"

	clientv3 "go.etcd.io/etcd/client/v3"

	"uvxlan/bench/cluster"
	"uvxlan/bench/lab"
	"uvxlan/lease/etcd"
)

// mixedConfig is what a cluster with flannel's hosts has: they take the kernel's
// port unless they are told another.
const mixedConfig = `{"Network":"172.7.0.0/16","Backend":{"Type":"vxlan","Port":8472}}`

// subnetsKey is where flannel's leases are.
const subnetsKey = etcd.DefaultPrefix + "/subnets"

// client is etcd's own, as other programs of the cluster use it.
func client(w *e2e.World) *clientv3.Client {
	w.T.Helper()
	dial := func(ctx context.Context, address string) (conn net.Conn, err error) {
		err = w.Cluster.Etcd.Do(func() (err error) {
			conn, err = new(net.Dialer).DialContext(ctx, "tcp", address)
			return err
		})
		return conn, err
	}
	c, err := clientv3.New(clientv3.Config{
		Endpoints: []string{w.Cluster.Endpoint}, Logger: zap.NewNop(), DialOptions: []grpc.DialOption{grpc.WithContextDialer(dial)},
	})
	if err != nil {
		w.T.Fatal(err)
	}
	w.T.Cleanup(func() { _ = c.Close() })
	return c
}

// flannelHost is a host on which the commands are given by hand that flanneld's
// vxlan backend gives.
type flannelHost struct {
	*lab.Host
	w     *e2e.World
	etcd  *clientv3.Client
	mac   string
	grant clientv3.LeaseID
}

// newFlannelHost makes the device and takes the lease.
func newFlannelHost(w *e2e.World, name, mac string) *flannelHost {
	w.T.Helper()
	f := &flannelHost{Host: w.Host(name), w: w, etcd: client(w), mac: mac}
	f.do("ip link add flannel.1 mtu 1450 address %s type vxlan id 1 dev eth0 local %s dstport 8472 nolearning", mac, f.Address)
	f.do("ip address add %s/32 dev flannel.1", f.Subnet.Addr())
	f.do("ip link set flannel.1 up")
	f.newGrant()
	put := clientv3.OpPut(f.key(), f.value(), clientv3.WithLease(f.grant))
	resp, err := f.etcd.Txn(w.Context()).If(clientv3.Compare(clientv3.Version(f.key()), "=", 0)).Then(put).Commit()
	if err != nil || !resp.Succeeded {
		w.T.Fatalf("%s takes its lease: %+v, %v", name, resp, err)
	}
	return f
}

func (f *flannelHost) do(format string, args ...any) {
	f.w.T.Helper()
	e2e.Command(f.w.T, f.Node, fmt.Sprintf(format, args...))
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
	f.w.T.Helper()
	g, err := f.etcd.Grant(f.w.Context(), 86400)
	if err != nil {
		f.w.T.Fatal(err)
	}
	f.grant = g.ID
}

// renew is another etcd lease and a put, whatever is there. The old etcd lease
// lapses.
func (f *flannelHost) renew() {
	f.w.T.Helper()
	old := f.grant
	f.newGrant()
	f.put()
	if _, err := f.etcd.Revoke(f.w.Context(), old); err != nil {
		f.w.T.Fatal(err)
	}
}

func (f *flannelHost) put() {
	f.w.T.Helper()
	if _, err := f.etcd.Put(f.w.Context(), f.key(), f.value(), clientv3.WithLease(f.grant)); err != nil {
		f.w.T.Fatal(err)
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
func flannelLeases(w *e2e.World, c *clientv3.Client) (all []flannelLease) {
	w.T.Helper()
	resp, err := c.Get(w.Context(), subnetsKey, clientv3.WithPrefix())
	if err != nil {
		w.T.Fatal(err)
	}
	for _, kv := range resp.Kvs {
		l, err := readAsFlannel(string(kv.Key), kv.Value)
		if err != nil {
			w.T.Errorf("flannel can't read %s: %s: %v", kv.Key, kv.Value, err)
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
	f.w.T.Helper()
	for _, l := range flannelLeases(f.w, f.etcd) {
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
	w := e2e.NewWorld(t)
	w.Configure(mixedConfig)
	d := w.Start("kb21")[0]
	same, far := newFlannelHost(w, "kb22", "0e:11:22:33:44:22"), newFlannelHost(w, "kb31", "0e:11:22:33:44:31")
	sameBytes(w, client(w))
	for _, f := range []*flannelHost{same, far} {
		f.learn()
	}
	w.Mesh("kb21", "kb22", "kb31")
	for _, f := range []*flannelHost{same, far} {
		bothWays(w, f.Container)
	}

	// Another MAC, as after a reboot.
	same.mac = "0e:aa:bb:cc:dd:ee"
	same.do("ip link set flannel.1 address %s", same.mac)
	same.put()
	for _, f := range []*flannelHost{same, far} {
		f.learn() // the kernel has forgotten the device's neighbours
	}
	w.Mesh("kb21", "kb22", "kb31")
	e2e.Transfer(t, w.Container("kb21").Node, same.Container, 16<<20)

	// Renewals disturb nothing.
	for range 10 {
		for _, f := range []*flannelHost{same, far} {
			f.renew()
			for range 5 {
				if _, err := w.Container("kb21").Ping(w.Context(), f.Container.Address, lab.DefaultContainerMTU); err != nil {
					t.Fatalf("after a renewal: %v", err)
				}
			}
		}
	}

	// One goes and comes back.
	if _, err := far.etcd.Revoke(w.Context(), far.grant); err != nil {
		t.Fatal(err)
	}
	w.AwaitUnreachable(w.Container("kb21"), far.Container)
	w.Mesh("kb21", "kb22")
	far.newGrant()
	far.put()
	w.Mesh("kb21", "kb31")

	// With flannel's DirectRouting a host of the same network sends plainly.
	same.do("ip route replace %s via %s", d.Host.Subnet, d.Host.Address)
	same.do("ip neigh del %s dev flannel.1", d.Host.Subnet.Addr())
	w.Mesh("kb21", "kb22")
	e2e.Transfer(t, same.Container.Node, w.Container("kb21"), 16<<20)
	e2e.Transfer(t, w.Container("kb21").Node, same.Container, 16<<20)

	if err := d.Stop(w.Context()); err != nil {
		t.Error(err)
	}
	sameBytes(w, same.etcd)
	if got := flannelLeases(w, same.etcd); len(got) != 3 {
		t.Errorf("flannel reads %v", got)
	}
	if log := e2e.LogOf(t, d); strings.Contains(log, "level=WARN") || strings.Contains(log, "level=ERROR") {
		t.Errorf("the daemon says\n%s", log)
	}
}

// sameBytes expects the daemon's lease, and its time to live, to be what
// flannel's would be.
func sameBytes(w *e2e.World, c *clientv3.Client) {
	w.T.Helper()
	h := w.Host("kb21")
	resp, err := c.Get(w.Context(), fmt.Sprintf("%s/%s-%d", subnetsKey, h.Subnet.Addr(), h.Subnet.Bits()))
	if err != nil || len(resp.Kvs) != 1 {
		w.T.Fatalf("the daemon's key: %v, %v", resp, err)
	}
	kv := resp.Kvs[0]
	l, err := readAsFlannel(string(kv.Key), kv.Value)
	if err != nil || string(kv.Value) != flannelValue(h.Address, l.mac) {
		w.T.Errorf("the daemon's lease is %s, %v", kv.Value, err)
	}
	ttl, err := c.TimeToLive(w.Context(), clientv3.LeaseID(kv.Lease))
	if err != nil || ttl.GrantedTTL != 86400 {
		w.T.Errorf("its time to live: %+v, %v", ttl, err)
	}
}

// bothWays sends checked data between kb21's container and another, each way.
func bothWays(w *e2e.World, far *lab.Container) {
	w.T.Helper()
	near := w.Container("kb21")
	for _, ends := range [][2]*lab.Container{{near, far}, {far, near}} {
		from, to := ends[0], ends[1]
		e2e.Transfer(w.T, from.Node, to, 64<<20)
		w.SendDatagrams(from.Node, to.Node, to.Address)
	}
}

// Ten thousand leases and changes of them reach the table, and the log stays
// readable. How fast is the bench's matter.
func TestIntegrationManyLeases(t *testing.T) {
	const n, changes = 10_000, 1000
	w := e2e.NewWorld(t, "kb21", "kb22")
	w.Configure(`{"Network":"172.0.0.0/8","SubnetLen":24,"Backend":{"Type":"VxLAN","DirectRouting":true}}`)
	c := client(w)
	transact(w, c, n, func(i int) clientv3.Op { return clientv3.OpPut(manyKey(i), manyValue(i)) })
	daemons := w.Start("kb21", "kb22")
	w.Mesh("kb21", "kb22")
	d := daemons[0]
	awaitPeerCount(t, w, d, n+1)
	for _, i := range []int{0, 4321, n - 1} {
		if mac := peerMAC(t, d, i); mac != manyMAC(i) {
			t.Errorf("lease %d is in the table with %q", i, mac)
		}
	}
	transact(w, c, changes, func(i int) clientv3.Op { return clientv3.OpPut(manyKey(n+i), manyValue(n+i)) })
	awaitPeerCount(t, w, d, n+1+changes)
	transact(w, c, changes, func(i int) clientv3.Op { return clientv3.OpPut(manyKey(i), manyValue(n-i)) })
	transact(w, c, n, func(i int) clientv3.Op { return clientv3.OpDelete(manyKey(changes + i)) })
	awaitPeerCount(t, w, d, changes+1)
	for _, i := range []int{0, changes - 1} {
		if mac := peerMAC(t, d, i); mac != manyMAC(n-i) {
			t.Errorf("changed lease %d is in the table with %q", i, mac)
		}
	}
	w.Mesh("kb21", "kb22")
	if lines := strings.Count(e2e.LogOf(t, d), "\n"); lines > 150 {
		t.Errorf("the log has %d lines", lines)
	}
}

func manyKey(i int) string { return fmt.Sprintf("%s/172.%d.%d.0-24", subnetsKey, 64+i>>8, i&0xff) }

func manyValue(i int) string {
	return flannelValue(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), manyMAC(i))
}

func manyMAC(i int) string { return fmt.Sprintf("0e:00:00:00:%02x:%02x", i>>8, i&0xff) }

// transact makes n requests in as few steps as etcd takes them.
func transact(w *e2e.World, c *clientv3.Client, n int, op func(int) clientv3.Op) {
	w.T.Helper()
	for i := 0; i < n; {
		var ops []clientv3.Op
		for ; i < n && len(ops) < 128; i++ {
			ops = append(ops, op(i))
		}
		if _, err := c.Txn(w.Context()).Then(ops...).Commit(); err != nil {
			w.T.Fatal(err)
		}
	}
}

func awaitPeerCount(t *testing.T, w *e2e.World, d *cluster.Daemon, n int) {
	t.Helper()
	for ctx := w.Context(); ; {
		s := e2e.AskStatus(t, d)
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
	out := e2e.Command(t, d.Host.Node, e2e.CommandBinary+" peers -o json -control-socket "+d.ControlSocket())
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
