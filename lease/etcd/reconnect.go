package etcd

import (
	"net"
	"sync"
)

// connections are those to etcd that are open.
type connections struct {
	mu   sync.Mutex
	open map[net.Conn]struct{} // guarded by mu
}

// add takes note of a connection until it is closed.
func (c *connections) add(conn net.Conn) net.Conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open == nil {
		c.open = map[net.Conn]struct{}{}
	}
	c.open[conn] = struct{}{}
	return &counted{conn, c}
}

// closeAll closes them, whereupon the client makes others.
func (c *connections) closeAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for conn := range c.open {
		_ = conn.Close() // it is of no use in any case
	}
}

// counted is a connection that is taken note of.
type counted struct {
	net.Conn
	of *connections
}

// Close implements [net.Conn].
func (c *counted) Close() error {
	c.of.mu.Lock()
	defer c.of.mu.Unlock()
	delete(c.of.open, c.Conn)
	return c.Conn.Close()
}

// Reconnect drops the connections to etcd, so that others are made at once. It is
// for when the host's address has changed: what is sent from the old one gets no
// answer, which TCP and gRPC take seconds to find out. Calls that are under way are
// repeated or end with lease.ErrUnavailable, as when etcd drops the connection.
func (r *Registry) Reconnect() { r.opts.connections.closeAll() }
