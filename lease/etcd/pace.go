package etcd

import (
	"context"
	"net"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/credentials"
)

const (
	// paceInterval is how far apart reads are when there are many, and paceCredit
	// how many come without a wait after a quiet time.
	paceInterval = 10 * time.Millisecond
	paceCredit   = 8
	// paceBytes are worth a read at any time: a list isn't slowed down.
	paceBytes = 4 << 10
)

// paced are credentials whose connections are paced. As a dialer of ours the same
// would turn off what gRPC's own does: proxies, and the time limit of TCP.
type paced struct {
	credentials.TransportCredentials
	connections *connections
}

// ClientHandshake implements [credentials.TransportCredentials].
func (p paced) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return p.TransportCredentials.ClientHandshake(ctx, authority, newPacedConn(p.connections.add(conn)))
}

// Clone implements [credentials.TransportCredentials].
func (p paced) Clone() credentials.TransportCredentials {
	return paced{p.TransportCredentials.Clone(), p.connections}
}

// pacedConn puts reads off when many bring little, as a network card does with
// interrupts: when leases change all the time, waking up for each of etcd's
// messages costs more than what is in it. TLS is above it, since a read of TLS
// brings one record.
type pacedConn struct {
	net.Conn
	hurry   chan struct{} // holds one: ends a wait
	limited atomic.Bool   // there is a deadline
	spent   time.Time     // until when the reads so far last at paceInterval each; Read's alone
}

func newPacedConn(conn net.Conn) *pacedConn {
	return &pacedConn{Conn: conn, hurry: make(chan struct{}, 1)}
}

// Read implements [net.Conn].
func (c *pacedConn) Read(p []byte) (int, error) {
	c.wait()
	n, err := c.Conn.Read(p)
	if n < min(len(p), paceBytes) {
		if now := time.Now(); c.spent.Before(now) {
			c.spent = now
		}
		c.spent = c.spent.Add(paceInterval)
	}
	return n, err
}

func (c *pacedConn) wait() {
	d := time.Until(c.spent.Add(-paceCredit * paceInterval))
	if d <= 0 || c.limited.Load() {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-c.hurry:
	}
}

// Close implements [net.Conn].
func (c *pacedConn) Close() error {
	defer c.goOn()
	return c.Conn.Close()
}

// SetDeadline implements [net.Conn].
func (c *pacedConn) SetDeadline(t time.Time) error {
	defer c.limit(t)
	return c.Conn.SetDeadline(t)
}

// SetReadDeadline implements [net.Conn].
func (c *pacedConn) SetReadDeadline(t time.Time) error {
	defer c.limit(t)
	return c.Conn.SetReadDeadline(t)
}

// limit leaves the wait to the connection below while there is a deadline.
func (c *pacedConn) limit(t time.Time) {
	c.limited.Store(!t.IsZero())
	c.goOn()
}

func (c *pacedConn) goOn() {
	select {
	case c.hurry <- struct{}{}:
	default: // the next wait ends at once
	}
}
