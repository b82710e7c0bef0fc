package docker

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"uvxlan/bench/iperf"
)

// port is where containers serve HTTP.
const port = 80

// Container is a running container of an engine.
type Container struct {
	Name string
	// Address is the one that Docker gave it.
	Address netip.Addr

	engine *Engine
}

// Run starts a container that serves HTTP.
func (e *Engine) Run(ctx context.Context, name string) (*Container, error) {
	// It is the first process of its own, which heeds no other signal.
	_, err := e.Docker(ctx, "run", "--detach", "--name", name, "--hostname", name, "--stop-signal", "KILL", image,
		"httpd", "-f", "-h", www, "-p", strconv.Itoa(port))
	if err != nil {
		return nil, err
	}
	text, err := e.Docker(ctx, "inspect", "--format", "{{.NetworkSettings.IPAddress}}", name)
	if err != nil {
		return nil, err
	}
	address, err := netip.ParseAddr(text)
	if err != nil {
		return nil, fmt.Errorf("find address of container %s: %w", name, err)
	}
	return &Container{Name: name, Address: address, engine: e}, nil
}

// Exec runs a command inside the container, as docker exec does, and returns
// what it printed.
func (c *Container) Exec(ctx context.Context, args ...string) (string, error) {
	return c.engine.Docker(ctx, append([]string{"exec", c.Name}, args...)...)
}

// Ping pings the other container with packets of size bytes until it answers.
func (c *Container) Ping(ctx context.Context, to *Container, size int) (rtt time.Duration, err error) {
	const headers = 28 // of IP and ICMP
	for {
		var said string
		said, err = c.Exec(ctx, "ping", "-c", "3", "-i", "0.02", "-W", "1", "-s", strconv.Itoa(size-headers), to.Address.String())
		if err == nil {
			return roundTrip(said)
		}
		if ctx.Err() != nil {
			return 0, fmt.Errorf("%s doesn't reach %s: %w", c.Name, to.Name, err)
		}
	}
}

// roundTrip finds the last time in what ping prints: the first meets cold caches.
func roundTrip(said string) (time.Duration, error) {
	const mark = " time="
	number, _, _ := strings.Cut(said[strings.LastIndex(said, mark)+1:], " ")
	number = strings.TrimPrefix(number, mark[1:])
	ms, err := strconv.ParseFloat(number, 64)
	if err != nil {
		return 0, fmt.Errorf("read what ping says: %w: %s", err, said)
	}
	return time.Duration(ms * float64(time.Millisecond)), nil
}

// Fill gives the container a file of random bytes to serve, and returns its
// SHA-256 in hexadecimal.
func (c *Container) Fill(ctx context.Context, name string, megabytes int) (sum string, err error) {
	said, err := c.Exec(ctx, "sh", "-c", fmt.Sprintf("dd if=/dev/urandom of=%[1]s/%[2]s bs=1M count=%[3]d 2>/dev/null && sha256sum < %[1]s/%[2]s",
		www, name, megabytes))
	return firstWord(said), err
}

// Fetch takes a file that the other container serves over one TCP connection,
// and returns the SHA-256 of what arrived.
func (c *Container) Fetch(ctx context.Context, from *Container, name string) (sum string, err error) {
	said, err := c.Exec(ctx, "sh", "-c", fmt.Sprintf("wget -q -O - %s | sha256sum", from.url(name)))
	return firstWord(said), err
}

// Rate sends over one TCP connection to the other container for a while, in
// whole seconds.
func (c *Container) Rate(ctx context.Context, to *Container, duration time.Duration) (iperf.Result, error) {
	if _, err := to.engine.Docker(ctx, "exec", "--detach", to.Name, "iperf3", "--server", "--one-off"); err != nil {
		return iperf.Result{}, err
	}
	for {
		said, err := c.Exec(ctx, "iperf3", "--client", to.Address.String(), "--json", "--time", strconv.Itoa(max(int(duration.Seconds()), 1)))
		// The server isn't waited for, so it may not listen yet.
		if err == nil || ctx.Err() != nil || !strings.Contains(said, "Connection refused") {
			return iperf.Parse([]byte(said), err)
		}
	}
}

// SeenBy is the address that the other container sees this one's requests come
// from.
func (c *Container) SeenBy(ctx context.Context, other *Container) (netip.Addr, error) {
	said, err := c.Exec(ctx, "wget", "-q", "-O", "-", other.url(whoAmI))
	if err != nil {
		return netip.Addr{}, err
	}
	// busybox puts an IPv4 address that came in over an IPv6 socket in brackets.
	a, err := netip.ParseAddr(strings.Trim(said, "[]"))
	return a.Unmap(), err
}

func (c *Container) url(name string) string {
	return fmt.Sprintf("http://%s:%d/%s", c.Address, port, name)
}

func firstWord(s string) string {
	word, _, _ := strings.Cut(s, " ")
	return word
}
