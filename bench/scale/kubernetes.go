package scale

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"uvxlan/lease/kube/kubetest"
)

const (
	// nodes is the most that Kubernetes supports.
	nodes = 5000
	// nodeBytes is how large a Node is beside its metadata, with the images that it has.
	nodeBytes = 11_000
	// heartbeats are so many, a quarter of a minute's at a Node's five minutes each.
	heartbeats = 5000
	podConfig  = `{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan"}}`
)

// kubernetes measures what a cluster of Nodes costs a host. The API server is in this
// process, so that a daemon's figures are its own.
func (r *run) kubernetes(ctx context.Context) (err error) {
	fmt.Fprintf(r.Log, "%d nodes in Kubernetes\n", nodes)
	dir, err := r.dir(r.from)
	if err != nil {
		return err
	}
	s, err := kubetest.New(dir, "127.0.0.1:6443", r.from.Do)
	if err != nil {
		return err
	}
	defer s.Down()
	s.Pad(nodeBytes)
	s.Fill(1, func(int) string { return r.from.Subnet.String() }, func(int) string { return r.from.Address.String() })
	few, err := r.kubernetesMemory(ctx, s, dir, 0)
	if err != nil {
		return err
	}
	s.Fill(nodes-1, func(i int) string { return subnet(i).String() }, publicIP)
	var took []time.Duration
	for range starts {
		err := r.withNode(ctx, s, dir, nodes-1, func(d *daemon) error {
			t, err := d.loading(ctx, nodes-1)
			took = append(took, t)
			return err
		})
		if err != nil {
			return err
		}
	}
	slices.Sort(took)
	r.table.add(Row{What: fmt.Sprintf("%d nodes of Kubernetes: start of the daemon to the first table", nodes), Value: milliseconds(took[len(took)/2]),
		Range: milliseconds(took[0]) + " - " + milliseconds(took[len(took)-1])})
	many, err := r.kubernetesMemory(ctx, s, dir, nodes-1)
	if err != nil {
		return err
	}
	r.table.add(Row{What: fmt.Sprintf("%d nodes of Kubernetes: resident memory", nodes), Value: fmt.Sprintf("%.1f MB", float64(many.now)/1e6),
		Range: fmt.Sprintf("most %.1f MB; %.1f MB with one node, %d bytes a node", float64(many.peak)/1e6, float64(few.now)/1e6, (many.now-few.now)/nodes)})
	return r.heartbeats(ctx, s, dir)
}

// withNode runs do while a daemon of the Node node-1 runs that knows n others.
func (r *run) withNode(ctx context.Context, s *kubetest.Server, dir string, n int, do func(*daemon) error) error {
	kubeconfig, err := s.WriteKubeconfig()
	if err != nil {
		return err
	}
	config := filepath.Join(dir, "net-conf.json")
	if err := os.WriteFile(config, []byte(podConfig), 0o644); err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Join(dir, "state")); err != nil {
		return err
	}
	d, err := r.open(ctx, r.from, "-kube-subnet-mgr", "-kubeconfig-file", kubeconfig, "-net-config-path", config)
	if err != nil {
		return err
	}
	if err := d.await(ctx, n); err != nil {
		return errors.Join(err, d.stop())
	}
	return errors.Join(do(d), d.stop())
}

// resident is the memory of a process in bytes, now and at its most.
type resident struct{ now, peak int64 }

func (r *run) kubernetesMemory(ctx context.Context, s *kubetest.Server, dir string, n int) (m resident, err error) {
	err = r.withNode(ctx, s, dir, n, func(d *daemon) (err error) {
		time.Sleep(settled) // the garbage collector's and the kernel's work
		m.now, m.peak, err = d.resident()
		return err
	})
	return m, err
}

// heartbeats measures what the Nodes' heartbeats cost a host that needs none of them.
func (r *run) heartbeats(ctx context.Context, s *kubetest.Server, dir string) error {
	return r.withNode(ctx, s, dir, nodes-1, func(d *daemon) error {
		time.Sleep(settled)
		before, err := d.used()
		if err != nil {
			return err
		}
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for i := range heartbeats {
			<-tick.C
			s.Heartbeat(fmt.Sprintf("node-%d", 2+i%(nodes-1)))
		}
		// The last one counts when what comes after it is there.
		seen := time.Now()
		s.Fill(1, func(int) string { return subnet(nodes).String() }, func(int) string { return publicIP(nodes) })
		if _, err := d.heard(ctx, subnet(nodes).String()); err != nil {
			return err
		}
		after, err := d.used()
		each := (after - before) / heartbeats
		r.table.add(Row{What: fmt.Sprintf("%d nodes of Kubernetes: a daemon's CPU time for a heartbeat", nodes), Value: fmt.Sprintf("%d us", each.Microseconds()),
			Range: fmt.Sprintf("%.2f %% of a CPU with one in 5 minutes from each; a new node is in the table after %s", float64(each)*nodes/float64(5*time.Minute)*100, milliseconds(time.Since(seen)))})
		return err
	})
}

// publicIP is of a network that no host has.
func publicIP(i int) string { return add([4]byte{172, 16, 0, 1}, i).String() }
