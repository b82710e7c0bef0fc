package lab

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"time"
)

// ErrUnreachable is returned by Ping when a router or the receiver answered
// with an ICMP destination unreachable message; the error's text has the code.
var ErrUnreachable = errors.New("destination unreachable")

// Ping sends one ICMP echo request of size bytes, IP header included, which
// must not be fragmented, and returns the time until the reply. Without a reply
// it waits until ctx ends. A packet that is too large for the path gives
// EMSGSIZE.
func (n *Node) Ping(ctx context.Context, to netip.Addr, size int) (time.Duration, error) {
	m := &icmp4
	if to.Is6() {
		m = &icmp6
	}
	if !to.IsValid() || size < m.ipHeader+icmpHeader || size > 65535 {
		return 0, fmt.Errorf("ping %s: no address, or %d bytes are not between %d and 65535", to, size, m.ipHeader+icmpHeader)
	}
	var conn *net.IPConn
	err := n.Do(func() (err error) {
		conn, err = net.ListenIP(m.network, nil)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("ping: %w", err)
	}
	defer func() { _ = conn.Close() }()
	defer context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })()
	rtt, err := m.ping(conn, to, size)
	if errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil {
		return 0, fmt.Errorf("ping %s from %s with %d bytes: %w", to, n.Name, size, err)
	}
	return rtt, nil
}

// ping exchanges one request and its reply.
func (m *icmp) ping(conn *net.IPConn, to netip.Addr, size int) (time.Duration, error) {
	if err := m.dontFragment(conn); err != nil {
		return 0, err
	}
	request := m.echo(size-m.ipHeader-icmpHeader, rand.Uint32())
	start := time.Now()
	if _, err := conn.WriteTo(request, &net.IPAddr{IP: to.AsSlice()}); err != nil {
		return 0, err
	}
	buf := make([]byte, 1<<16)
	for {
		read, from, err := conn.ReadFromIP(buf)
		if err != nil {
			return 0, err
		}
		if done, err := m.answers(buf[:read], request); done {
			if err != nil {
				err = fmt.Errorf("%w, says %s", err, from)
			}
			return time.Since(start), err
		}
	}
}
