package restart_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"uvxlan/bench/e2e"

	"golang.org/x/sys/unix"

	"uvxlan/bench/cluster"
	"uvxlan/bench/lab"
	"uvxlan/lease"
)

// Kills of daemons without warning, at random moments and under load, each time
// started again as a supervisor would; now and then the etcd too: `make chaos`.
// Afterwards each host has the lease that it had, and exactly what a daemon puts
// on a host, once.
func TestIntegrationChaos(t *testing.T) {
	kills, err := strconv.Atoi(os.Getenv("UVXLAN_CHAOS"))
	if err != nil {
		t.Skip("takes minutes: run it with `make chaos`")
	}
	seed, err := strconv.ParseUint(os.Getenv("UVXLAN_CHAOS_SEED"), 10, 64)
	if err != nil {
		seed = rand.Uint64()
	}
	t.Logf("seed %d (UVXLAN_CHAOS_SEED=%d runs the same again)", seed, seed)
	all := e2e.Models()
	random := rand.New(rand.NewPCG(seed, 0))
	var sum toll
	for i, m := range all {
		t.Run(m.Name, func(t *testing.T) {
			c := newChaos(t, m, random)
			c.run(kills*(i+1)/len(all) - kills*i/len(all))
			t.Log(c.toll)
			sum.add(c.toll)
		})
	}
	t.Log("in all:", sum)
}

// toll is what was done and how long it took until all was well again.
type toll struct {
	kills, early, etcdKills int
	flows                   int
	bytes                   int64
	recovery                []time.Duration
}

func (s *toll) add(o toll) {
	s.kills, s.early, s.etcdKills = s.kills+o.kills, s.early+o.early, s.etcdKills+o.etcdKills
	s.flows, s.bytes, s.recovery = s.flows+o.flows, s.bytes+o.bytes, append(s.recovery, o.recovery...)
}

func (s toll) String() string {
	if len(s.recovery) == 0 {
		return "nothing"
	}
	sorted := slices.Sorted(slices.Values(s.recovery))
	return fmt.Sprintf("%d kills of daemons, %d of them before the daemon was ready, and %d of etcd; after the last start of %d rounds all was well in %s in the median, %s at most; %d TCP connections live, %d MB checked",
		s.kills, s.early, s.etcdKills, len(sorted), sorted[len(sorted)/2].Round(time.Millisecond), sorted[len(sorted)-1].Round(time.Millisecond), s.flows, s.bytes>>20)
}

// chaos is one model's.
type chaos struct {
	*e2e.World
	random      *rand.Rand
	hosts       []*lab.Host
	daemons     map[*lab.Host]*cluster.Daemon
	connections []*flow
	before      map[*lab.Host]string      // the host's state with no daemon
	running     map[*lab.Host]string      // and with one
	leases      map[*lab.Host]lease.Lease // the first ones

	toll
}

func newChaos(t *testing.T, m e2e.Model, random *rand.Rand) *chaos {
	t.Helper()
	names := []string{"kb21", "kb22", "kb31"}
	if !m.Device {
		names = names[:2] // host-gw doesn't reach beyond a router
	}
	c := &chaos{
		World: e2e.NewWorld(t, names...), random: random,
		daemons: map[*lab.Host]*cluster.Daemon{}, before: map[*lab.Host]string{}, running: map[*lab.Host]string{}, leases: map[*lab.Host]lease.Lease{},
	}
	c.Configure(m.Config)
	c.Cluster.Args = []string{"-ip-masq", "-ip-blackhole-route"}
	c.hosts = c.Hosts()
	for _, h := range c.hosts {
		e2e.StrictReversePath(t, h)
		c.before[h] = e2e.SettledState(t, h)
	}
	for i, d := range c.Start(names...) {
		c.daemons[c.hosts[i]] = d
	}
	c.Mesh(names...)
	for _, from := range c.hosts {
		for _, to := range c.hosts {
			if from != to {
				c.connections = append(c.connections, startFlow(t, from.Container, to.Container))
			}
		}
	}
	for _, h := range c.hosts {
		c.awaitWell(h, time.Now())
		c.leases[h] = c.LeaseOf(h.Name)
		c.running[h] = c.settledRunning(h)
	}
	return c
}

func (c *chaos) run(kills int) {
	c.T.Helper()
	for c.kills < kills && !c.T.Failed() {
		c.round()
	}
	c.flows = len(c.connections)
	for _, f := range c.connections {
		c.bytes += f.received.Load()
	}
	for _, f := range c.connections {
		f.end()
	}
	for _, h := range c.hosts {
		e2e.End(c.T, unix.SIGTERM, c.daemons[h])
		e2e.Command(c.T, h.Node, e2e.CommandBinary+" cleanup -state-dir "+c.daemons[h].StateDir())
		e2e.ExpectState(c.T, h, c.before[h], "at the end")
		e2e.AwaitRoutes(c.T, h)
	}
}

// round kills one daemon or all, starts them again, and looks at everything
// when they are well.
func (c *chaos) round() {
	c.T.Helper()
	time.Sleep(time.Duration(c.random.Int64N(int64(500 * time.Millisecond))))
	victims := []*lab.Host{c.hosts[c.random.IntN(len(c.hosts))]}
	if c.random.IntN(8) == 0 {
		victims = c.hosts
	}
	etcd := c.random.IntN(4) == 0
	if etcd {
		c.killEtcd()
	}
	for _, h := range victims {
		c.kill(h)
	}
	time.Sleep(time.Duration(c.random.Int64N(int64(300 * time.Millisecond)))) // the supervisor's
	for _, h := range victims {
		c.restart(h)
	}
	// Again, while they start.
	for c.random.IntN(2) == 0 {
		h := victims[c.random.IntN(len(victims))]
		time.Sleep(time.Duration(c.random.Int64N(int64(150 * time.Millisecond))))
		if !c.ready(h) {
			c.early++
		}
		c.kill(h)
		c.restart(h)
	}
	begin := time.Now()
	if etcd {
		time.Sleep(time.Duration(c.random.Int64N(int64(time.Second))))
		begin = time.Now()
		c.StartEtcd()
	}
	for _, h := range victims {
		c.awaitWell(h, begin)
	}
	c.recovery = append(c.recovery, time.Since(begin))
	c.check()
}

func (c *chaos) killEtcd() {
	c.T.Helper()
	if err := c.Etcd.Process.Signal(unix.SIGKILL); err != nil {
		c.T.Fatal(err)
	}
	_ = c.Etcd.Wait()
	c.etcdKills++
}

func (c *chaos) kill(h *lab.Host) {
	c.T.Helper()
	e2e.End(c.T, unix.SIGKILL, c.daemons[h])
	c.kills++
}

func (c *chaos) restart(h *lab.Host) {
	c.T.Helper()
	d, err := c.Cluster.Restart(c.T.Context(), h)
	if err != nil {
		c.T.Fatal(err)
	}
	c.daemons[h] = d
}

// ready tells what the daemon says of itself.
func (c *chaos) ready(h *lab.Host) bool {
	ctx, cancel := context.WithTimeout(c.T.Context(), time.Second)
	defer cancel()
	s, err := e2e.TryStatus(ctx, c.daemons[h])
	return err == nil && s.Ready && s.Etcd.Up && !s.Watch.Since.IsZero()
}

// awaitWell waits until the daemon is ready and all of the host's flows have
// brought something since.
func (c *chaos) awaitWell(h *lab.Host, since time.Time) {
	c.T.Helper()
	stuck := func() string {
		if !c.ready(h) {
			return h.Name + " isn't ready"
		}
		for _, f := range c.connections {
			if (f.from == h.Container || f.to == h.Container) && !f.last().After(since) {
				return f.name() + " stands"
			}
		}
		return ""
	}
	for late := since.Add(e2e.Patience); ; time.Sleep(2 * time.Millisecond) {
		select {
		case <-c.daemons[h].Done():
			c.T.Fatalf("%s: the daemon ended: %s", h.Name, lastLine(e2e.LogOf(c.T, c.daemons[h])))
		default:
		}
		why := stuck()
		if why == "" {
			return
		}
		if time.Now().After(late) {
			c.T.Fatal(why)
		}
	}
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}

// check compares leases and hosts with what they were when all began.
func (c *chaos) check() {
	c.T.Helper()
	leases, _, err := c.Registry().List(c.Context())
	if err != nil {
		c.T.Fatal(err)
	}
	if len(leases) != len(c.hosts) {
		c.T.Errorf("%d hosts have %d leases: %+v", len(c.hosts), len(leases), leases)
	}
	for _, h := range c.hosts {
		if !slices.ContainsFunc(leases, func(l lease.Lease) bool { return l.Equal(c.leases[h]) && l.Revision == c.leases[h].Revision }) {
			c.T.Errorf("%s had %+v, and now there is %+v", h.Name, c.leases[h], leases)
		}
		if now := c.settledRunning(h); now != c.running[h] {
			c.T.Errorf("%s is different after %d kills: %s", h.Name, c.kills, difference(c.running[h], now))
		}
	}
	for _, f := range c.connections {
		select {
		case err := <-f.failed:
			c.T.Errorf("%s: %v", f.name(), err)
		default:
		}
	}
}

// settledRunning is runningState once it has stayed the same for a moment: on-link
// peers become direct some time after the daemon is ready.
func (c *chaos) settledRunning(h *lab.Host) string {
	c.T.Helper()
	state := c.runningState(h)
	for late := time.Now().Add(5 * time.Second); c.running[h] == "" && time.Now().Before(late); {
		time.Sleep(time.Second)
		now := c.runningState(h)
		if now == state {
			return state
		}
		state = now
	}
	for late := time.Now().Add(5 * time.Second); state != c.running[h] && time.Now().Before(late); state = c.runningState(h) {
		time.Sleep(20 * time.Millisecond)
	}
	return state
}

// runningState is what a daemon may have put on the host, without numbers that
// the kernel or the process chooses.
func (c *chaos) runningState(h *lab.Host) string {
	c.T.Helper()
	d := c.daemons[h]
	script := fmt.Sprintf(`
		ip -o link show type tun | sed 's/^[0-9]*: //'
		ip -o -4 address | sed 's/^[0-9]*: //'
		ip -4 route show table all; ip -4 rule
		ip -o link show | wc -l
		iptables-save | grep -v '^[#:]'; nft list tables
		ss -Hlnu | awk '{print "udp", $4}' | grep -v ':[3-6][0-9][0-9][0-9][0-9]$'; ss -Hna -0 | wc -l
		grep -s . /proc/sys/net/ipv4/conf/*/rp_filter /proc/sys/net/ipv4/conf/flannel.1/* /proc/sys/net/ipv6/conf/flannel.1/disable_ipv6
		cd %s && find . -type f -o -type s | grep -v /etcd/ | sort; cat subnet.env; grep -v subnetFileTime state/host.json
	`, strings.TrimSuffix(d.StateDir(), "/state"))
	out, err := h.Run(c.T.Context(), "sh", "-c", script)
	if err != nil {
		c.T.Fatal(err)
	}
	return string(out)
}

// difference lists the lines that only one of two texts has.
func difference(before, after string) string {
	var out strings.Builder
	old, now := strings.Split(before, "\n"), strings.Split(after, "\n")
	for _, line := range old {
		if i := slices.Index(now, line); i >= 0 {
			now = slices.Delete(now, i, i+1)
		} else {
			fmt.Fprintf(&out, "\n  gone: %s", line)
		}
	}
	for _, line := range now {
		fmt.Fprintf(&out, "\n  new: %s", line)
	}
	return out.String()
}
