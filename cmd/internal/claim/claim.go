// Package claim keeps two daemons of one host from carrying networks that overlap,
// whose routes and rules would be in each other's way.
//
// A claim is a listening Unix socket with an abstract name, which belongs to a
// network namespace, is listed by the kernel and goes with the process (unix(7)).
package claim

import (
	"bufio"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// ErrOverlap says that another daemon of the host carries an overlapping network.
var ErrOverlap = errors.New("another uvxland of this host has an overlapping network")

// lead is what a claim's name begins with. The network follows, and something
// random: process ids repeat in other namespaces.
const lead = "@uvxlan/network/"

// Claim is the right to carry networks in a network namespace.
type Claim struct {
	listeners []net.Listener
	answering sync.WaitGroup
}

// Networks claims networks in the calling thread's network namespace. The error is
// [ErrOverlap], with the other's network and process id, if another process has
// claimed one that overlaps. What another user than root or this one has listening
// there doesn't count, nor do claims by the names of those whose place is taken.
func Networks(networks []netip.Prefix, taken ...string) (*Claim, error) {
	c := &Claim{}
	names := slices.Clone(taken)
	for _, n := range networks {
		name := lead + n.String() + "/" + rand.Text()
		l, err := net.Listen("unix", name)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("claim network %s: %w", n, err), c.Close())
		}
		c.listeners, names = append(c.listeners, l), append(names, name)
		c.answering.Go(func() { answer(l) })
	}
	// After our own: of two that start at once at least one sees the other.
	others, err := list()
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	for _, o := range others {
		if slices.Contains(names, o.name) || !slices.ContainsFunc(networks, o.network.Overlaps) {
			continue
		}
		if pid, ok := o.owner(); ok {
			return nil, errors.Join(fmt.Errorf("%w: %s (pid %d)", ErrOverlap, o.network, pid), c.Close())
		}
	}
	return c, nil
}

// Names are those of the claim, for a process that takes this one's place.
func (c *Claim) Names() (names []string) {
	for _, l := range c.listeners {
		names = append(names, l.Addr().String())
	}
	return names
}

// answer takes connections, so that there always is room for one that asks.
func answer(l net.Listener) {
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			conn.Close()
		}
	}
}

// Close gives the claim up.
func (c *Claim) Close() error {
	var errs []error
	for _, l := range c.listeners {
		errs = append(errs, l.Close())
	}
	c.answering.Wait()
	return errors.Join(errs...)
}

// claimed is a network of a process.
type claimed struct {
	name    string
	network netip.Prefix
}

// list reads the names of all sockets of the network namespace.
func list() (all []claimed, err error) {
	f, err := os.Open("/proc/thread-self/net/unix")
	if err != nil {
		return nil, fmt.Errorf("list claims of networks: %w", err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		i := strings.Index(lines.Text(), " "+lead)
		if i < 0 {
			continue
		}
		name := lines.Text()[i+1:]
		at := strings.LastIndexByte(name, '/')
		network, err := netip.ParsePrefix(name[len(lead):max(at, len(lead))])
		if err == nil {
			all = append(all, claimed{name, network})
		}
	}
	return all, lines.Err()
}

// owner is the process that listens by that name; false unless it may run a daemon:
// anybody can have the name.
func (o claimed) owner() (pid int, ok bool) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, false
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: o.name}); err != nil {
		return 0, false
	}
	who, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil || who.Uid != 0 && int(who.Uid) != os.Geteuid() {
		return 0, false
	}
	return int(who.Pid), true
}
