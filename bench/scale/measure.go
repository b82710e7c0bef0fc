package scale

import (
	"context"
	"fmt"
	"slices"
	"time"
)

const (
	starts = 5 // measured, one after the other
	// pace is the time between two new leases: fewer in a second than what the
	// daemon names one by one.
	pace = 60 * time.Millisecond
	// settled is how long a daemon's memory is left to itself.
	settled = 5 * time.Second
)

// start measures how long a daemon takes from its start to the first table.
func (r *run) start(ctx context.Context) error {
	for _, n := range []int{many, most} {
		if err := r.fill(ctx, n); err != nil {
			return err
		}
		var took []time.Duration
		for range starts {
			err := r.with(ctx, r.from, n, func(d *daemon) error {
				t, err := d.loading(ctx, n)
				took = append(took, t)
				return err
			})
			if err != nil {
				return err
			}
		}
		slices.Sort(took)
		row := Row{What: fmt.Sprintf("%d leases: start of the daemon to the first table", n), Value: milliseconds(took[len(took)/2]),
			Range: milliseconds(took[0]) + " - " + milliseconds(took[len(took)-1])}
		if n == many {
			row.Goal, row.Met = "below 1 s", took[len(took)/2] < time.Second
		} else {
			row.Goal, row.Met = "loads", true
		}
		r.table.add(row)
	}
	return r.fill(ctx, 0)
}

// latency measures how long a new lease takes from the end of its put to the
// table, beside many others.
func (r *run) latency(ctx context.Context) error {
	if err := r.fill(ctx, many); err != nil {
		return err
	}
	var after, whole []time.Duration
	err := r.with(ctx, r.from, many, func(d *daemon) error {
		id, err := r.leases.lease(ctx)
		if err != nil {
			return err
		}
		tick := time.NewTicker(pace)
		defer tick.Stop()
		for i := range r.Puts {
			<-tick.C
			n := many + i
			sent := time.Now()
			if _, err := r.leases.client.Do(ctx, r.leases.put(n, 0, id)); err != nil {
				return err
			}
			returned := time.Now()
			r.leases.n = n + 1
			seen, err := d.heard(ctx, subnet(n).String())
			if err != nil {
				return err
			}
			after, whole = append(after, max(0, seen.Sub(returned))), append(whole, seen.Sub(sent))
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, c := range []struct {
		what  string
		times []time.Duration
		goal  string
	}{
		{"end of the put", after, "median and p99 below 5 ms"},
		{"begin of the put", whole, ""},
	} {
		slices.Sort(c.times)
		median, p99 := c.times[len(c.times)/2], c.times[len(c.times)*99/100]
		r.table.add(Row{
			What:  fmt.Sprintf("%d leases: %s of another to its place in the table, %d times", many, c.what, len(c.times)),
			Value: milliseconds(median), Range: fmt.Sprintf("p99 %s, most %s", milliseconds(p99), milliseconds(c.times[len(c.times)-1])),
			Goal: c.goal, Met: p99 < 5*time.Millisecond,
		})
	}
	return r.fill(ctx, 0)
}

// memory measures what a peer costs.
func (r *run) memory(ctx context.Context) error {
	var none int64
	for _, n := range []int{0, many, most} {
		if err := r.fill(ctx, n); err != nil {
			return err
		}
		err := r.with(ctx, r.from, n, func(d *daemon) error {
			time.Sleep(settled) // the garbage collector's and the kernel's work
			now, peak, err := d.resident()
			if n == 0 {
				none = now
			}
			row := Row{What: fmt.Sprintf("%d peers: resident memory", n), Value: fmt.Sprintf("%.1f MB", float64(now)/1e6), Range: fmt.Sprintf("most %.1f MB", float64(peak)/1e6)}
			if n > 0 {
				row.Range += fmt.Sprintf(", %d bytes a peer", (now-none)/int64(n))
			}
			r.table.add(row)
			return err
		})
		if err != nil {
			return err
		}
	}
	return r.fill(ctx, 0)
}
