package doctor

import (
	"cmp"
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"uvxlan/cmd/internal/probe"
)

// echoes sends a few echoes, and more where some are lost.
func (x *examiner) echoes(ctx context.Context, by *probe.Prober, to netip.Addr) outcome {
	o := series(ctx, by, to, few)
	if o.Received > 0 && o.lost() > 0 {
		o.add(series(ctx, by, to, more))
	}
	return o
}

// series sends n echoes.
func series(ctx context.Context, by *probe.Prober, to netip.Addr, n int) (o outcome) {
	replies, errs := make([]probe.Reply, n), make([]error, n)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			select {
			case <-time.After(time.Duration(i) * gap):
			case <-ctx.Done():
			}
			replies[i], errs[i] = by.Echo(ctx, probe.Request{To: to, Timeout: patience})
		})
	}
	all.Wait()
	var times []time.Duration
	for i, err := range errs {
		o.Sent++
		switch {
		case err == nil:
			o.Received++
			times = append(times, replies[i].RTT)
		case errors.Is(err, probe.ErrDamaged):
			o.damaged++
			fallthrough
		default:
			o.note(err)
		}
	}
	if len(times) > 0 {
		slices.Sort(times)
		o.RTT = times[len(times)/2]
	}
	return o
}

// note keeps the most telling of the errors.
func (o *outcome) note(err error) {
	if o.err == nil || errors.Is(o.err, probe.ErrNoAnswer) {
		o.err = err
	}
	o.Error = words(o.err)
}

// words is an error without the operation that it is of.
func words(err error) string {
	var icmp *probe.ICMPError
	switch {
	case err == nil:
		return ""
	case errors.As(err, &icmp):
		return icmp.Error()
	case errors.Is(err, probe.ErrNoAnswer):
		return probe.ErrNoAnswer.Error()
	case errors.Is(err, probe.ErrDamaged):
		return probe.ErrDamaged.Error()
	case errors.Is(err, unix.EPERM):
		return "a rule of this host's firewall drops it"
	}
	return err.Error()
}

// add adds the echoes of another series.
func (o *outcome) add(other outcome) {
	o.Sent, o.Received, o.damaged = o.Sent+other.Sent, o.Received+other.Received, o.damaged+other.damaged
	o.RTT = cmp.Or(other.RTT, o.RTT)
	if other.err != nil {
		o.note(other.err)
	}
}
