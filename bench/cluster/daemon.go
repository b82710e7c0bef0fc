package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"uvxlan/bench/lab"
)

// Daemon is one uvxland process.
type Daemon struct {
	*lab.Cmd
	Host *lab.Host
	dir  string
}

// SubnetFile is the daemon's subnet.env.
func (d *Daemon) SubnetFile() string { return filepath.Join(d.dir, "subnet.env") }

// StateDir is the daemon's own.
func (d *Daemon) StateDir() string { return filepath.Join(d.dir, "state") }

// ControlSocket is the daemon's own.
func (d *Daemon) ControlSocket() string { return filepath.Join(d.dir, "uvxlan.sock") }

// LogFile has all that the daemons of this host wrote.
func (d *Daemon) LogFile() string { return filepath.Join(d.dir, "uvxland.log") }

// prepare makes the host's folder with a subnet file that names the container's
// subnet and nothing else, which tells it from one that a daemon has written.
func (d *Daemon) prepare() error {
	if err := os.MkdirAll(d.dir, 0o755); err != nil {
		return err
	}
	text := "FLANNEL_SUBNET=" + d.Host.Subnet.String() + "\n"
	if v6 := d.Host.IPv6.Subnet; v6.IsValid() {
		text += "FLANNEL_IPV6_SUBNET=" + v6.String() + "\n"
	}
	return os.WriteFile(d.SubnetFile(), []byte(text), 0o644)
}

// Ready waits until the daemon has written its subnet file, which it does when
// the device is up. It returns the daemon's own words if it ended instead.
func (d *Daemon) Ready(ctx context.Context) error {
	for tick := time.NewTicker(5 * time.Millisecond); ; {
		text, err := os.ReadFile(d.SubnetFile())
		if err == nil && strings.Contains(string(text), "FLANNEL_MTU=") {
			tick.Stop()
			return nil
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("wait for uvxland on %s: %w", d.Host.Name, err)
		}
		select {
		case <-tick.C:
		case <-d.Done():
			return fmt.Errorf("uvxland on %s ended: %s", d.Host.Name, d.lastLine())
		case <-ctx.Done():
			return fmt.Errorf("uvxland on %s is not ready: %w: %s", d.Host.Name, ctx.Err(), d.lastLine())
		}
	}
}

// lastLine is the end of the log, for an error's sake.
func (d *Daemon) lastLine() string {
	text, err := os.ReadFile(d.LogFile())
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return lines[len(lines)-1]
}

// Mesh waits until every host's container reaches every other's, with packets
// of size bytes that may not be fragmented, and returns the round-trip times by
// sender and receiver.
func Mesh(ctx context.Context, hosts []*lab.Host, size int) (map[[2]string]time.Duration, error) {
	times := map[[2]string]time.Duration{}
	for _, from := range hosts {
		for _, to := range hosts {
			if from == to {
				continue
			}
			rtt, err := Reach(ctx, from.Container.Node, to.Container, size)
			if err != nil {
				return times, err
			}
			times[[2]string{from.Name, to.Name}] = rtt
		}
	}
	return times, nil
}

// Reach pings a container from a node until it answers. What is lost before the
// way is open is soon sent again; on a slow machine it is waited for longer.
func Reach(ctx context.Context, from *lab.Node, to *lab.Container, size int) (time.Duration, error) {
	return ReachAt(ctx, from, to.Node, to.Address, size)
}

// ReachAt is Reach for one address of any node.
func ReachAt(ctx context.Context, from, to *lab.Node, at netip.Addr, size int) (time.Duration, error) {
	for patience := 10 * time.Millisecond; ; patience = min(2*patience, time.Second) {
		once, cancel := context.WithTimeout(ctx, patience)
		rtt, err := from.Ping(once, at, size)
		if err == nil {
			cancel()
			return rtt, nil
		}
		<-once.Done() // an answer that it is unreachable comes at once
		cancel()
		if ctx.Err() != nil {
			return 0, fmt.Errorf("%s doesn't reach %s at %s: %w", from.Name, to.Name, at, err)
		}
	}
}
