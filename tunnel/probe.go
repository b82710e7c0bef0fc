package tunnel

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// segmentationWorks sends a run over loopback and looks at what arrives: a
// kernel's version doesn't tell, for some segment wrongly (Linux 7.0 to 7.1.4
// damage runs of equal datagrams). Where loopback carries nothing at all the
// answer is yes, and a refusal is dealt with when it comes.
func segmentationWorks() bool {
	const size, count = 1000, 3
	p, err := newProbe()
	if err != nil {
		return true
	}
	defer p.close()
	data := make([]byte, size*count)
	for i := range data {
		data[i] = byte(i / 3)
	}
	if p.exchange(data[:size], nil, size) != nil {
		return true
	}
	return p.exchange(data, controlSegment(size), size) == nil
}

// probe is a pair of sockets on loopback.
type probe struct {
	fd       int
	receiver *net.UDPConn
	to       netip.AddrPort
}

func newProbe() (*probe, error) {
	receiver, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, err
	}
	to := receiver.LocalAddr().(*net.UDPAddr).AddrPort()
	p := &probe{receiver: receiver, to: netip.AddrPortFrom(to.Addr().Unmap(), to.Port())}
	if p.fd, err = udpSocket(false); err != nil {
		receiver.Close()
		return nil, err
	}
	return p, nil
}

func (p *probe) close() {
	p.receiver.Close()
	unix.Close(p.fd)
}

// exchange sends data at once and expects it in datagrams of size bytes.
func (p *probe) exchange(data, control []byte, size int) error {
	if err := unix.Sendmsg(p.fd, data, control, unixSockaddr(p.to), 0); err != nil {
		return err
	}
	if err := p.receiver.SetReadDeadline(time.Now().Add(500 * time.Millisecond)); err != nil {
		return err
	}
	buf := make([]byte, 2*len(data))
	for len(data) > 0 {
		n, err := p.receiver.Read(buf)
		if err != nil {
			return err
		}
		if !bytes.Equal(buf[:n], data[:size]) {
			return fmt.Errorf("a datagram of %d bytes was damaged", n)
		}
		data = data[size:]
	}
	return nil
}
