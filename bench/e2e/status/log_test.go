package status_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"uvxlan/bench/e2e"
	"uvxlan/lease"
)

// Whoever reads a daemon's log stands still. The daemon takes peers over, answers
// and ends all the same.
func TestIntegrationLogBlocked(t *testing.T) {
	w := e2e.NewWorld(t, "kb21", "kb22")
	r, wr, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer wr.Close()
	if _, err := unix.FcntlInt(wr.Fd(), unix.F_SETPIPE_SZ, os.Getpagesize()); err != nil {
		t.Fatal(err)
	}
	w.Start("kb22")
	w.Cluster.Log = wr
	d := w.StartHealthy("kb21")
	if err := d.Ready(w.Context()); err != nil {
		t.Fatal(err)
	}
	registry := w.Registry()
	const peers = 100
	for i := range byte(peers) {
		data, err := json.Marshal(lease.VXLANData{VNI: 1, VtepMAC: fmt.Sprintf("0e:00:00:00:00:%02x", i)})
		if err != nil {
			t.Fatal(err)
		}
		l := lease.Lease{
			Subnet: netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 7, 100 + i, 0}), 24),
			Attrs:  lease.Attrs{PublicIP: netip.AddrFrom4([4]byte{192, 168, 14, 100 + i}), BackendType: lease.TypeVXLAN, BackendData: data},
		}
		if _, err := registry.Create(w.Context(), l, time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	e2e.AwaitAnswer(t, w.Host("kb21"), "/metrics", 200, fmt.Sprintf("\nuvxlan_peers %d\n", peers+1), "\nuvxlan_log_lines_dropped_total 0\n")
	if n, err := unix.IoctlGetInt(int(r.Fd()), unix.TIOCINQ); err != nil || n < os.Getpagesize()/2 {
		t.Fatalf("%d bytes wait in the pipe, %v", n, err)
	}
	e2e.AwaitAnswer(t, w.Host("kb21"), "/readyz", 200, "uvxland is ready")
	if s := e2e.AskStatus(t, d); s.Peers != peers+1 {
		t.Errorf("it has %d peers", s.Peers)
	}
	w.Mesh("kb21", "kb22")
	e2e.End(t, unix.SIGTERM, d)
	wr.Close()
	text, err := io.ReadAll(r)
	if err != nil || strings.Count(string(text), "msg=peer") == 0 {
		t.Errorf("%v, and of the log there was\n%s", err, text)
	}
}
