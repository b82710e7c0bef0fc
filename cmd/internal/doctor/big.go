package doctor

import (
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"uvxlan/encap"
)

// arrives tells whether packets of size bytes reach the peer's VTEP, though no answer
// as long as they comes back: a datagram to a port where nobody listens is answered by
// a short ICMP error (RFC 1122, section 4.1.3.1).
func (x *examiner) arrives(p *evidence, size int, wait time.Duration) verdict {
	conn, err := net.DialUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(x.vtep, 0)),
		net.UDPAddrFromAddrPort(netip.AddrPortFrom(p.vtep(), closedPort)))
	if err != nil {
		return untold
	}
	defer conn.Close()
	if setOption(conn, unix.SOL_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE) != nil {
		return untold
	}
	answered := func(size int) bool {
		payload := make([]byte, size-encap.IPv4HeaderLen-udpHeaderLen)
		for range tries {
			_, _ = conn.Write(payload) // it may tell of the error to the one before
			if conn.SetReadDeadline(time.Now().Add(wait)) != nil {
				return false
			}
			if _, err := conn.Read(make([]byte, 1)); isRefused(err) {
				return true
			}
		}
		return false
	}
	switch {
	case answered(size):
		return passes
	case answered(leastEcho):
		return fails
	}
	return untold
}
