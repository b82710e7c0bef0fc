package datapath_test

import (
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"uvxlan/bench/e2e"

	"uvxlan/bench/lab"
)

// Many flows for a long time, directly and by VXLAN, each transfer checked by its
// SHA-256: `make soak`.
func TestIntegrationSoak(t *testing.T) {
	const flows = 16
	length, err := time.ParseDuration(os.Getenv("UVXLAN_SOAK"))
	if err != nil {
		t.Skip("takes minutes: run it with `make soak`")
	}
	w := e2e.NewWorld(t)
	w.Configure(e2e.HybridConfig)
	w.Start("kb21", "kb22", "kb31")
	w.Mesh("kb21", "kb22", "kb31")
	hosts := w.Hosts()
	var total, transfers atomic.Int64
	var wg sync.WaitGroup
	end := time.Now().Add(length)
	for i := range flows {
		wg.Go(func() {
			from, to := hosts[i%len(hosts)], hosts[(i+1+i/len(hosts)%2)%len(hosts)]
			for time.Now().Before(end) && !t.Failed() {
				size := 1 + rand.Int64N(256<<20)
				if err := e2e.CheckedTransfer(from.Container.Node, to.Container, size); err != nil {
					t.Error(err)
				}
				total.Add(size)
				transfers.Add(1)
			}
		})
	}
	wg.Wait()
	t.Logf("%d transfers on %d flows, %d GB, every SHA-256 right", transfers.Load(), flows, total.Load()/1e9)
}

// The segments that a kernel makes of our superpackets, with no offload left to
// hide behind, have right checksums: tcpdump reads them all.
func TestIntegrationKernelSegmentsOurSuperpackets(t *testing.T) {
	w := e2e.NewWorld(t, "kb21", "kb22")
	w.Start("kb21", "kb22")
	w.Mesh("kb21", "kb22")
	from, to := w.Container("kb21"), w.Container("kb22")
	off := map[string]bool{"tx-checksum-ip-generic": false, "tx-tcp-segmentation": false, "tx-udp-segmentation": false}
	for _, end := range []struct {
		node  *lab.Node
		iface string
	}{{w.Host("kb22").Node, "veth-c1"}, {from.Node, "eth0"}} {
		if err := end.node.SetFeatures(end.iface, off); err != nil {
			t.Fatal(err)
		}
	}
	dump := to.Command(w.Context(), "tcpdump", "-nvv", "-i", "eth0", "-c", "3000", "-s", "0", "--direction=in", "ip")
	var out strings.Builder
	dump.Stdout, dump.Stderr = &out, &out
	if err := dump.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = dump.Wait() }() // closes Done
	datagrams := w.StartDatagrams(from, to)
	for captured := false; !captured; {
		e2e.Transfer(t, from.Node, to, 1<<20)
		select {
		case <-dump.Done():
			captured = true
		default:
		}
	}
	datagrams.End()
	if err := dump.Wait(); err != nil {
		t.Fatalf("%v: %s", err, out.String())
	}
	correct := 0
	for line := range strings.Lines(out.String()) {
		switch {
		case strings.Contains(line, "incorrect"), strings.Contains(line, "bad udp cksum"):
			t.Error(line)
		case strings.Contains(line, "(correct)"), strings.Contains(line, "udp sum ok"):
			correct++
		}
	}
	t.Logf("%d checksums are right", correct)
	if correct < 2900 {
		t.Errorf("only %d of 3000 packets were judged", correct)
	}
}
