package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Node is a named network namespace: a host, a container or the router. Its
// methods are safe for concurrent use and return os.ErrClosed, or an error that
// wraps it, after the lab's Close.
type Node struct {
	// Name is the name of the namespace, as `ip netns` shows it.
	Name string

	// Immutable.
	ns      *os.File
	id      nsID
	spawner *spawner
	keep    bool

	mu     sync.RWMutex // guards handle, held for reading while it is used
	handle *netlink.Handle
}

// Host is a machine of the lab. Its underlay interface is eth0.
type Host struct {
	*Node

	// Address is the host's underlay address.
	Address netip.Addr
	// Underlay is Address with the length of its network.
	Underlay netip.Prefix
	// Gateway is the router's address on that network.
	Gateway netip.Addr
	// Subnet is the container subnet, whose first address is the host's own.
	Subnet netip.Prefix
	// IPv6 is the host's part of the IPv6 networks, zero if it has none.
	IPv6 IPv6Spec
	// Container is the container behind the host.
	Container *Container

	router *Node // its interface towards the host is named after the host
	bare   bool  // the container has no link
}

// Container is a network namespace behind a host. Its interface is eth0.
type Container struct {
	*Node

	// Address is the container's address, the second of its host's subnet, and
	// AddressV6 that of the IPv6 subnet; the zero Addr if it has none.
	Address, AddressV6 netip.Addr
}

// newNode makes the namespace and the node that owns it.
func newNode(name string, s *spawner, keep bool) (*Node, error) {
	ns, err := createNamespace(name)
	if err != nil {
		return nil, fmt.Errorf("create namespace %s: %w", name, err)
	}
	n := &Node{Name: name, ns: ns, spawner: s, keep: keep}
	err = n.Do(func() (err error) {
		if n.id, err = namespaceID(threadNamespace); err != nil {
			return err
		}
		n.handle, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open namespace %s: %w", name, err), ns.Close(), deleteNamespace(name))
	}
	return n, nil
}

// Do runs f on an OS thread inside the namespace and returns its error. The
// sockets that f opens stay in the namespace; goroutines that f starts are not
// in it. f must not end its goroutine, as testing's FailNow does.
func (n *Node) Do(f func() error) error { return inside(n.ns, f) }

// Namespace returns the path of the namespace, for nsenter --net=<path>.
func (n *Node) Namespace() string { return namespacePath(n.Name) }

// Netlink returns the lab's own rtnetlink handle inside the namespace, nil after
// the lab's Close. Don't use it beyond that: a closed handle acts on the
// caller's namespace. Its calls are serialized.
func (n *Node) Netlink() *netlink.Handle {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.handle
}

// withHandle runs f with a handle that stays open meanwhile.
func (n *Node) withHandle(f func(*netlink.Handle) error) error {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if n.handle == nil {
		return os.ErrClosed
	}
	return f(n.handle)
}

// release gives up the node's descriptors and leaves the namespace as it is.
func (n *Node) release() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.handle.Close()
	n.handle = nil
	return n.ns.Close()
}

// remove ends the namespace, in which no process may run any more. If somebody
// gave its name to another one meanwhile, that one stays.
func (n *Node) remove() error {
	if id, err := namespaceID(n.Namespace()); err == nil && id != n.id {
		return n.release()
	}
	return errors.Join(n.release(), deleteNamespace(n.Name))
}
