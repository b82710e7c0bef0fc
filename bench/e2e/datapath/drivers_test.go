package datapath_test

import (
	"os"
	"strings"
	"testing"

	"uvxlan/bench/e2e"

	"uvxlan/bench/cluster"
	"uvxlan/tunnel/device"
)

// Hosts of three device drivers in one overlay: each pair of them carries
// streams whole, also after their devices were deleted.
func TestIntegrationDeviceDrivers(t *testing.T) {
	w := e2e.NewWorld(t)
	hosts := []string{"kb21", "kb22", "kb31"}
	var daemons []*cluster.Daemon
	for i, driver := range device.Drivers()[1:] {
		d, err := w.Cluster.Start(w.T.Context(), w.Host(hosts[i]), "-device-driver", string(driver))
		if err != nil {
			t.Fatal(err)
		}
		daemons = append(daemons, d)
	}
	for i, d := range daemons {
		if err := d.Ready(w.Context()); err != nil {
			t.Fatal(err)
		}
		log, err := os.ReadFile(d.LogFile())
		if want := "driver=" + string(device.Drivers()[1+i]); err != nil || !strings.Contains(string(log), want) {
			t.Errorf("%s: %v, no %q in the log", hosts[i], err, want)
		}
	}
	carry := func() {
		t.Helper()
		w.Mesh(hosts...)
		for i, from := range hosts {
			e2e.Transfer(t, w.Container(from).Node, w.Container(hosts[(i+1)%3]), 16<<20)
			e2e.Transfer(t, w.Container(from).Node, w.Container(hosts[(i+2)%3]), 16<<20)
		}
	}
	carry()
	for _, host := range hosts {
		if out, err := w.Host(host).Command(w.Context(), "ip", "link", "delete", "flannel.1").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	carry()
}

// With -offload=on a driver that moves single packets is refused.
func TestIntegrationOffloadsOfOtherDrivers(t *testing.T) {
	w := e2e.NewWorld(t, "kb21")
	d, err := w.Cluster.Start(t.Context(), w.Host("kb21"), "-device-driver=water", "-offload=on")
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Ready(w.Context()); err == nil {
		t.Fatal("the daemon started")
	}
	log, err := os.ReadFile(d.LogFile())
	if want := "-offload=on: with device driver water, this kernel refuses "; err != nil || !strings.Contains(string(log), want) {
		t.Errorf("%v; no %q in %s", err, want, log)
	}
}
