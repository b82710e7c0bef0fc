package scale

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// detours is how often the underlay leads away from the other host and back.
const detours = 20

// What a daemon says of a path that changes, each after its message.
const (
	directNow   = "peer is direct now"
	backToVXLAN = "peer is back to vxlan"
)

// paths measures how long a path takes to follow the underlay, beside many other
// peers: from a route's change to the daemon's word that packets take the new
// path.
func (r *run) paths(ctx context.Context) error {
	if err := r.fill(ctx, many); err != nil {
		return err
	}
	if err := r.cluster.SetConfig(ctx, directConfig); err != nil {
		return err
	}
	times := map[string][]time.Duration{}
	err := r.with(ctx, r.to, many, func(*daemon) error {
		return r.with(ctx, r.from, many+1, func(d *daemon) error {
			subnet := r.to.Subnet.String()
			if _, err := d.turned(ctx, directNow, subnet, d.began); err != nil {
				return err
			}
			route := []string{r.to.Address.String() + "/32", "via", r.to.Gateway.String(), "dev", "eth0"}
			for range detours {
				for _, step := range []struct{ verb, words string }{{"add", backToVXLAN}, {"del", directNow}} {
					begin := time.Now()
					if _, err := r.from.Run(ctx, "ip", slices.Concat([]string{"route", step.verb}, route)...); err != nil {
						return err
					}
					at, err := d.turned(ctx, step.words, subnet, begin)
					if err != nil {
						return err
					}
					times[step.words] = append(times[step.words], at.Sub(begin))
				}
			}
			return nil
		})
	})
	if err != nil {
		return err
	}
	for _, c := range []struct{ what, words string }{{"begin of a detour in the underlay to the path by VXLAN", backToVXLAN}, {"end of the detour to the direct path", directNow}} {
		took := times[c.words]
		slices.Sort(took)
		most := took[len(took)-1]
		r.table.add(Row{
			What:  fmt.Sprintf("%d leases: %s, %d times", many, c.what, len(took)),
			Value: milliseconds(took[len(took)/2]), Range: "most " + milliseconds(most),
			Goal: "all below 200 ms", Met: most < 200*time.Millisecond,
		})
	}
	if err := r.cluster.SetConfig(ctx, config); err != nil {
		return err
	}
	return r.fill(ctx, 0)
}

// turned is when the daemon first said, after since, that the path to a subnet
// has changed.
func (d *daemon) turned(ctx context.Context, words, subnet string, since time.Time) (time.Time, error) {
	return d.when(ctx, func() (time.Time, bool) { at := d.turns[words+" "+subnet]; return at, at.After(since) })
}
