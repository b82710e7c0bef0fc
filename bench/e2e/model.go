package e2e

import (
	"encoding/json"
	"net/netip"
	"testing"
	"time"

	"uvxlan/lease"
)

// Model is a way to join hosts, with what it leaves to be seen on kb21.
type Model struct {
	Name, Config string
	Backend      string // of the lease
	Device       bool   // there is one
	routes       bool   // kb22 has a kernel route
	filter       string // rp_filter, which was strict
}

// Models are all there are: vxlan, by socket, by route, host-gw.
func Models() []Model {
	return []Model{
		{"vxlan", VXLANConfig, lease.TypeVXLAN, true, false, "1"},
		{"socket", HybridConfig, lease.TypeVXLAN, true, false, "2"},
		{"route", RouteConfig, lease.TypeVXLAN, true, true, "2"},
		{"host-gw", HostGWConfig, lease.TypeHostGW, false, true, "1"},
	}
}

// Await waits until kb21 has the model's routes, and to the guest too if that
// has a subnet; then nothing else of ours may be there.
func (m Model) Await(t *testing.T, w *World, guest lease.Lease) {
	t.Helper()
	var want []string
	kb21 := w.Host("kb21")
	if m.Device {
		want = append(want, "172.7.0.0/16 dev flannel.1 scope link src "+kb21.Subnet.Addr().String())
	}
	if m.routes {
		want = append(want, RouteTo(w.Host("kb22")))
	}
	if m.routes && guest.Subnet.IsValid() {
		want = append(want, guest.Subnet.String()+" via "+guest.Attrs.PublicIP.String()+" dev eth0")
	}
	AwaitRoutes(t, kb21, want...)
	if filter := ReversePath(t, kb21); filter != m.filter {
		t.Errorf("%s: rp_filter is %s, want %s", m.Name, filter, m.filter)
	}
}

// Guest is the lease of one more subnet behind kb22.
func (m Model) Guest(t *testing.T, w *World) lease.Lease {
	t.Helper()
	l := lease.Lease{Subnet: netip.MustParsePrefix("172.7.99.0/24"), Attrs: lease.Attrs{PublicIP: w.Host("kb22").Address, BackendType: m.Backend}}
	if m.Device {
		data, err := json.Marshal(lease.VXLANData{VNI: 1, VtepMAC: "0e:00:00:00:00:99"})
		if err != nil {
			t.Fatal(err)
		}
		l.Attrs.BackendData = data
	}
	l, err := w.Registry().Create(w.Context(), l, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return l
}
