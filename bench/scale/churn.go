package scale

import (
	"context"
	"errors"
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

// beside is what happens beside the traffic.
type beside struct {
	name, what string
	store      func(*changed) *store // whose leases change, if any
	plain      bool                  // etcd's own client watches them, once for each host
}

// besides take turns. All hosts, etcd and the program that makes the changes are
// on the same CPUs, so that what they cost is part of what there is to compare
// with.
var besides = []beside{
	{name: "quiet", what: "nothing changes"},
	{name: "elsewhere", what: "another network changes", store: func(c *changed) *store { return c.elsewhere }},
	{name: "watched", what: "another network changes, plain etcd clients watch", store: func(c *changed) *store { return c.elsewhere }, plain: true},
	{name: "changes", what: "this network changes", store: func(c *changed) *store { return c.here }},
}

// changed is the leases that change.
type changed struct{ here, elsewhere *store }

// churn measures what changes cost the traffic of one TCP stream.
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
			return r.compare(ctx, []*daemon{from, to}, &changed{r.leases, elsewhere})
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

func (r *run) compare(ctx context.Context, daemons []*daemon, leases *changed) error {
	limited, cancel := context.WithTimeout(ctx, readiness)
	defer cancel()
	if _, err := cluster.Reach(limited, r.from.Container.Node, r.to.Container, lab.DefaultContainerMTU); err != nil {
		return err
	}
	if err := r.cost(ctx, daemons, leases.here); err != nil {
		return err
	}
	all := map[string]*outcome{}
	for _, b := range besides {
		all[b.name] = &outcome{}
	}
	for range max(1, int(r.Churn/segment)) {
		for _, b := range besides {
			o := all[b.name]
			if err := r.segment(ctx, daemons, leases, b, o); err != nil {
				return err
			}
			fmt.Fprintf(r.Log, "%-10s %.2f Gbit/s\n", b.name, o.rates[len(o.rates)-1])
		}
	}
	r.judge(all)
	return nil
}

// segment runs iperf3 once, beside what b says.
func (r *run) segment(ctx context.Context, daemons []*daemon, leases *changed, b beside, o *outcome) error {
	if b.plain {
		stop, err := r.watchPlainly(ctx, b.store(leases), len(daemons))
		if err != nil {
			return err
		}
		defer stop()
	}
	before, err := usedBy(daemons)
	if err != nil {
		return err
	}
	changing, stop := context.WithCancel(ctx)
	defer stop()
	var wg sync.WaitGroup
	var failure error
	if b.store != nil {
		wg.Go(func() { failure = b.store(leases).change(changing, &o.changes) })
	}
	result, err := iperf.Test{Server: r.to.Container.Node, Client: r.from.Container.Node, To: r.to.Container.Address, Duration: segment}.Run(ctx)
	stop()
	wg.Wait()
	if err := errors.Join(err, failure); err != nil {
		return err
	}
	after, err := usedBy(daemons)
	o.rates, o.cpu = append(o.rates, result.BitsPerSecond/1e9), o.cpu+after-before
	return err
}

// watchPlainly follows a store by so many clients of etcd's own, each with its
// connection, until stop.
func (r *run) watchPlainly(ctx context.Context, s *store, n int) (stop func(), err error) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	stop = func() { cancel(); wg.Wait() }
	for range n {
		c, err := openStore(r.Endpoint, r.from, s.prefix)
		if err != nil {
			stop()
			return nil, err
		}
		events := c.client.Watch(ctx, s.prefix+"/subnets/", clientv3.WithPrefix())
		wg.Go(func() {
			defer c.close()
			for range events {
			}
		})
	}
	return stop, nil
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
	changes := all["changes"]
	seconds := float64(len(changes.rates)) * segment.Seconds()
	for _, b := range besides {
		o := all[b.name]
		r.table.add(Row{
			What:  fmt.Sprintf("%d peers, one TCP stream, %s", many, b.what),
			Value: fmt.Sprintf("%.2f Gbit/s", median(o.rates)),
			Range: fmt.Sprintf("%.0f changes/s, daemons' CPU %.2f", float64(o.changes)/seconds, o.cpu.Seconds()/seconds),
		})
	}
	for _, c := range []struct {
		what, base, goal string
	}{
		{"changes of another network", "elsewhere", "within 10 %"},
		{"changes of another network that plain etcd clients watch", "watched", ""},
		{"no changes, and nothing for etcd to do", "quiet", ""},
	} {
		ratios := make([]float64, len(changes.rates))
		for i, rate := range changes.rates {
			ratios[i] = rate / all[c.base].rates[i]
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
