package handover

import (
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"uvxlan/cmd/internal/extiface"
	"uvxlan/encap"
	"uvxlan/lease"
	"uvxlan/tunnel"
	"uvxlan/tunnel/fastpath"
	"uvxlan/tunnel/underlay"
)

func testState(t *testing.T) *State {
	t.Helper()
	c, err := lease.ParseConfig([]byte(`{"Network":"172.7.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}`))
	if err != nil {
		t.Fatal(err)
	}
	own := lease.Lease{
		Subnet: netip.MustParsePrefix("172.7.21.0/24"), Revision: 7, ID: 9, Expires: time.Now().Add(time.Hour),
		Attrs: lease.Attrs{PublicIP: netip.MustParseAddr("192.168.14.21"), BackendType: lease.TypeVXLAN, BackendData: []byte(`{"VNI":1,"VtepMAC":"02:00:00:00:00:21"}`)},
	}
	e := NewState()
	e.Started, e.Config, e.Own = time.Now(), c, own
	e.Interface = extiface.Interface{Name: "eth0", MTU: 1500, Address: own.Attrs.PublicIP, PublicIP: own.Attrs.PublicIP}
	e.Peers = []tunnel.Peer{{
		Subnet: netip.MustParsePrefix("172.7.22.0/24"), Underlay: netip.MustParseAddr("192.168.14.22"), MAC: encap.MAC{2, 0, 0, 0, 0, 22},
	}}
	e.Tunnel = &tunnel.Descriptors{Queues: []int{10, 11}, Sockets: tunnel.Sockets{
		UDP: []underlay.Sockets{{Receive: []int{12, 13}, Send: [][]int{{12, 14}, {13, 15}}}}, Packet: []int{16, 17},
	}}
	e.Lock, e.Control = 18, 19
	e.FastPath = &fastpath.Descriptors{Maps: map[string]int{"routes4": 20}, Links: []int{21}}
	return e
}

// What is read is what was written, down to the last field.
func TestState(t *testing.T) {
	e := testState(t)
	text, err := e.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := ReadState(text)
	if err != nil {
		t.Fatal(err)
	}
	if !got.Own.Equal(e.Own) || !got.Own.Expires.Equal(e.Own.Expires) || got.Own.Revision != 7 || got.Own.ID != 9 || !got.Started.Equal(e.Started) {
		t.Errorf("read %+v, started %s", got.Own, got.Started)
	}
	if got.Interface != e.Interface || !reflect.DeepEqual(got.Config, e.Config) || !reflect.DeepEqual(got.Peers, e.Peers) || !reflect.DeepEqual(got.Tunnel, e.Tunnel) {
		t.Errorf("read %s", text)
	}
	if !reflect.DeepEqual(got.FastPath, e.FastPath) {
		t.Errorf("read the fast path %v", got.FastPath)
	}
	fds := got.Descriptors()
	slices.Sort(fds)
	if !reflect.DeepEqual(fds, []int{10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21}) {
		t.Errorf("the descriptors are %v", fds)
	}
}

func TestStateRefused(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*State)
		want   string
	}{
		"another format": {func(e *State) { e.Format++ }, "it is of format 2"},
		"no lease":       {func(e *State) { e.Own = lease.Lease{} }, "something is missing"},
		"no config":      {func(e *State) { e.Config = nil }, "something is missing"},
		"no interface":   {func(e *State) { e.Interface = extiface.Interface{} }, "something is missing"},
		"no device":      {func(e *State) { e.Tunnel = nil }, "something is missing"},
	} {
		e := testState(t)
		c.change(e)
		text, err := e.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ReadState(text); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := ReadState([]byte("{")); err == nil {
		t.Error("half a text was read")
	}
}
