package scale

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"uvxlan/bench/cluster"
	"uvxlan/bench/iperf"
	"uvxlan/bench/lab"
)

const (
	changesPerSecond = 1000
	writers          = 8
	segment          = 5 * time.Second
	extras           = 1000 // leases that come and go
)

// What happens beside the traffic, in turns.
var besides = []string{"quiet", "elsewhere", "changes"}

// churn measures what changes cost the traffic: one TCP stream with nothing
// else, with as many changes of another network, which cost etcd and its client
// the same, and with changes of this one.
func (r *run) churn(ctx context.Context) error {
	if err := r.fill(ctx, many); err != nil {
		return err
	}
	elsewhere := &store{client: r.leases.client, prefix: prefix + "-other"}
	if err := elsewhere.resize(ctx, many); err != nil {
		return err
	}
	// The second host's daemon sees the first one's lease, too.
	err := r.with(ctx, r.from, many, func(from *daemon) error {
		return r.with(ctx, r.to, many+1, func(to *daemon) error {
			return r.compare(ctx, []*daemon{from, to}, map[string]*store{"elsewhere": elsewhere, "changes": r.leases})
		})
	})
	if err != nil {
		return err
	}
	for _, s := range []*store{elsewhere, r.leases} {
		s.n += extras
		if err := s.resize(ctx, 0); err != nil {
			return err
		}
	}
	return nil
}

// outcome is what one kind of segments brought.
type outcome struct {
	rates   []float64
	changes int64
	cpu     time.Duration
}

func (r *run) compare(ctx context.Context, daemons []*daemon, stores map[string]*store) error {
	limited, cancel := context.WithTimeout(ctx, readiness)
	defer cancel()
	if _, err := cluster.Reach(limited, r.from.Container.Node, r.to.Container, lab.DefaultContainerMTU); err != nil {
		return err
	}
	if err := r.cost(ctx, daemons, stores["changes"]); err != nil {
		return err
	}
	all := map[string]*outcome{}
	for _, kind := range besides {
		all[kind] = &outcome{}
	}
	for range max(1, int(r.Churn/segment)) {
		for _, kind := range besides {
			if err := r.segment(ctx, daemons, stores[kind], all[kind]); err != nil {
				return err
			}
			o := all[kind]
			fmt.Fprintf(r.Log, "%-10s %.2f Gbit/s\n", kind, o.rates[len(o.rates)-1])
		}
	}
	r.judge(all)
	return nil
}

// segment runs iperf3 once, beside changes of the store if there is one.
func (r *run) segment(ctx context.Context, daemons []*daemon, s *store, o *outcome) error {
	before, err := usedBy(daemons)
	if err != nil {
		return err
	}
	changing, stop := context.WithCancel(ctx)
	defer stop()
	var wg sync.WaitGroup
	var failure error
	if s != nil {
		wg.Go(func() { failure = s.change(changing, &o.changes) })
	}
	result, err := iperf.Test{Server: r.to.Container.Node, Client: r.from.Container.Node, To: r.to.Container.Address, Duration: segment}.Run(ctx)
	stop()
	wg.Wait()
	if err != nil || failure != nil {
		return fmt.Errorf("traffic: %w, changes: %w", err, failure)
	}
	after, err := usedBy(daemons)
	o.rates, o.cpu = append(o.rates, result.BitsPerSecond/1e9), o.cpu+after-before
	return err
}

// cost measures the CPU time of a daemon for each change, without traffic.
func (r *run) cost(ctx context.Context, daemons []*daemon, s *store) error {
	before, err := usedBy(daemons)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, segment)
	defer cancel()
	var changes int64
	if err := s.change(ctx, &changes); err != nil {
		return err
	}
	after, err := usedBy(daemons)
	each := (after - before) / time.Duration(int64(len(daemons))*max(1, changes))
	r.table.add(Row{
		What:  fmt.Sprintf("%d peers, no traffic: a daemon's CPU time for a change", many),
		Value: fmt.Sprintf("%d us", each.Microseconds()), Range: fmt.Sprintf("%d changes", changes),
	})
	return err
}

func usedBy(daemons []*daemon) (sum time.Duration, err error) {
	for _, d := range daemons {
		used, err := d.used()
		if err != nil {
			return 0, err
		}
		sum += used
	}
	return sum, nil
}

// change makes so many changes a second, each a request of its own, until ctx
// ends: every other one a lease with another MAC, the others a new lease or the
// end of one.
func (s *store) change(ctx context.Context, done *int64) error {
	id, err := s.lease(ctx)
	if err != nil {
		return err
	}
	todo := make(chan clientv3.Op, changesPerSecond)
	var wg sync.WaitGroup
	var failed atomic.Pointer[error]
	for range writers {
		wg.Go(func() {
			for op := range todo {
				_, err := s.client.Do(context.WithoutCancel(ctx), op)
				if err != nil {
					failed.Store(&err)
				} else {
					atomic.AddInt64(done, 1)
				}
			}
		})
	}
	s.schedule(ctx, id, todo)
	close(todo)
	wg.Wait()
	if err := failed.Load(); err != nil {
		return *err
	}
	return nil
}

// schedule sends the changes in time.
func (s *store) schedule(ctx context.Context, id clientv3.LeaseID, todo chan<- clientv3.Op) {
	const interval = 10 * time.Millisecond
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for n := 0; ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for range changesPerSecond * int(interval) / int(time.Second) {
			n++
			switch extra := s.n + n/4%extras; n % 4 {
			case 1:
				todo <- s.put(extra, n, id)
			case 3:
				todo <- clientv3.OpDelete(s.key(extra))
			default:
				todo <- s.put(n%s.n, n, id)
			}
		}
	}
}

// judge compares the kinds of segments, each with those before it in its turn.
func (r *run) judge(all map[string]*outcome) {
	changes, elsewhere, quiet := all["changes"], all["elsewhere"], all["quiet"]
	seconds := float64(len(changes.rates)) * segment.Seconds()
	for _, kind := range besides {
		o := all[kind]
		r.table.add(Row{
			What:  fmt.Sprintf("%d peers, one TCP stream, %s", many, map[string]string{"quiet": "nothing changes", "elsewhere": "another network changes", "changes": "this network changes"}[kind]),
			Value: fmt.Sprintf("%.2f Gbit/s", median(o.rates)),
			Range: fmt.Sprintf("%.0f changes/s, daemons' CPU %.2f", float64(o.changes)/seconds, o.cpu.Seconds()/seconds),
		})
	}
	for _, c := range []struct {
		what string
		base *outcome
		goal string
	}{
		{"changes of another network", elsewhere, "within 10 %"},
		{"no changes, with etcd's and its client's own cost on the same CPUs", quiet, ""},
	} {
		ratios := make([]float64, len(changes.rates))
		for i, rate := range changes.rates {
			ratios[i] = rate / c.base.rates[i]
		}
		m := median(ratios)
		r.table.add(Row{What: "throughput with changes to that with " + c.what, Value: fmt.Sprintf("%.2f", m),
			Range: fmt.Sprintf("%.2f - %.2f", slices.Min(ratios), slices.Max(ratios)), Goal: c.goal, Met: m >= 0.9})
	}
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}
