package flannel_test

import (
	"strings"
	"testing"
	"time"

	"uvxlan/bench/e2e"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"uvxlan/bench/lab"
	"uvxlan/lease"
	"uvxlan/tunnel"
)

// forgetNeighbour removes the permanent neighbour, so that the kernel asks by
// ARP, and gives broadcasts a way.
func forgetNeighbour(p *e2e.KernelPeer, l lease.Lease) {
	p.T.Helper()
	nl := p.Host.Netlink()
	p.Must("remove neighbour", nl.NeighDel(&netlink.Neigh{LinkIndex: p.Link.Attrs().Index, IP: l.Subnet.Addr().AsSlice()}))
	p.Must("add broadcast entry", nl.NeighAppend(&netlink.Neigh{
		LinkIndex: p.Link.Attrs().Index, State: netlink.NUD_PERMANENT, Family: unix.AF_BRIDGE,
		Flags: netlink.NTF_SELF, IP: l.Attrs.PublicIP.AsSlice(), HardwareAddr: make([]byte, 6),
	}))
}

// A host with uvxlan and a host with kernel VXLAN share a network. On veth the
// kernel's packets come with unfilled checksums and as superpackets, on a NIC
// without tunnel offloads as many small ones.
func TestIntegrationKernelPeer(t *testing.T) {
	w := e2e.NewWorld(t)
	w.Start("kb21")
	for _, kind := range []lab.Offload{lab.Veth, lab.NIC, lab.NICGRO, lab.NICPlain} {
		t.Run(kind.String(), func(t *testing.T) {
			if err := w.SetOffloads(kind); err != nil {
				t.Fatal(err)
			}
			for _, host := range []string{"kb22", "kb31"} {
				withKernelPeer(w, t, host)
			}
		})
	}
}

func withKernelPeer(w *e2e.World, t *testing.T, host string) {
	h := w.Host(host)
	registry := w.Registry()
	peer := e2e.NewKernelPeer(t, h)
	ours := w.LeaseOf("kb21")
	peer.Learn(ours)
	l, err := registry.Create(w.Context(), peer.Lease(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := registry.Delete(w.Context(), l); err != nil {
			t.Error(err)
		}
		peer.Remove()
	}()
	w.Mesh("kb21", host)
	uv, kernel := w.Container("kb21"), h.Container
	e2e.Transfer(t, uv.Node, kernel, 64<<20)
	e2e.Transfer(t, kernel.Node, uv, 64<<20)
	for _, ends := range [][2]*lab.Container{{uv, kernel}, {kernel, uv}} {
		from, to := ends[0], ends[1]
		w.SendDatagrams(from.Node, to.Node, to.Address)
	}
}

// A kernel that has no permanent neighbour entry asks for our VTEP by ARP and
// is answered.
func TestIntegrationKernelPeerAsksByARP(t *testing.T) {
	w := e2e.NewWorld(t, "kb21", "kb22")
	w.Start("kb21")
	peer := e2e.NewKernelPeer(t, w.Host("kb22"))
	ours := w.LeaseOf("kb21")
	peer.Learn(ours)
	if _, err := w.Registry().Create(w.Context(), peer.Lease(), time.Hour); err != nil {
		t.Fatal(err)
	}
	w.Mesh("kb21", "kb22")
	forgetNeighbour(peer, ours)
	w.Mesh("kb21", "kb22")
	neighbours, err := w.Host("kb22").Netlink().NeighList(peer.Link.Attrs().Index, netlink.FAMILY_V4)
	if err != nil {
		t.Fatal(err)
	}
	want, err := tunnel.PeerFromLease(ours)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range neighbours {
		if n.IP.Equal(ours.Subnet.Addr().AsSlice()) && strings.EqualFold(n.HardwareAddr.String(), want.MAC.String()) &&
			n.State&netlink.NUD_PERMANENT == 0 {
			return
		}
	}
	t.Errorf("the kernel's neighbours are %v, want %s at %s", neighbours, ours.Subnet.Addr(), want.MAC)
}
