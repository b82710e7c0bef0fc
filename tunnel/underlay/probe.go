package underlay

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"uvxlan/encap"
	"uvxlan/tunnel/internal/descriptor"
	"uvxlan/tunnel/internal/family"
)

const (
	// probeAttempts is how often a run must fail for segmentation to be given
	// up: on a busy host one may be lost.
	probeAttempts = 3
	probePatience = 500 * time.Millisecond
	// probeCount datagrams of probeSize bytes are a run.
	probeSize  = 1000
	probeCount = 3
	// probeLength is the UDP length of one (RFC 768).
	probeLength = probeSize + 8
)

// segmentationWorks tells whether the kernel segments a run rightly: a kernel's
// version doesn't say. attempt is probeSegmentation.
//
// Only the kernel's own segmentation is seen on loopback. What a device makes
// of a run is not: with some, Linux 7.0 to 7.1.4 send runs of equal datagrams
// with wrong lengths, and only turning offload.GSO off helps.
func segmentationWorks(attempt func() error) bool {
	for range probeAttempts {
		if attempt() == nil {
			return true
		}
	}
	return false
}

// probeSegmentation sends a run over a family's loopback and looks at what
// arrives. Where loopback carries nothing at all there is nothing to hold against
// the kernel, and a refusal is dealt with when it comes.
func probeSegmentation(f family.Family) error {
	p, err := newProbe(f)
	if err != nil {
		return nil
	}
	defer p.close()
	data := probeData()
	if p.expect(probeLength, p.sums(data[:probeSize])) != nil || p.exchange(data[:probeSize], nil) != nil {
		return nil
	}
	return p.exchange(data, controlSegment(probeSize))
}

// probeData is a run of datagrams that differ, but not in their sum.
func probeData() []byte {
	data := make([]byte, probeCount*probeSize)
	for i := range data {
		segment, at := i/probeSize, i%probeSize
		data[i] = byte((at + 2*segment) % probeSize / 3)
	}
	return data
}

// probe is a pair of sockets on loopback.
type probe struct {
	tx, rx   int
	from, to netip.AddrPort
}

func newProbe(f family.Family) (*probe, error) {
	p := &probe{}
	var err error
	if p.tx, p.from, err = loopbackSocket(f); err != nil {
		return nil, err
	}
	if p.rx, p.to, err = loopbackSocket(f); err != nil {
		return nil, errors.Join(err, unix.Close(p.tx))
	}
	return p, nil
}

func loopbackSocket(f family.Family) (int, netip.AddrPort, error) {
	local := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 0)
	if f == family.IPv6 {
		local = netip.AddrPortFrom(netip.IPv6Loopback(), 0)
	}
	fd, err := newSocket(local, nil)
	if err != nil {
		return -1, local, err
	}
	local, err = boundTo(fd)
	if err != nil {
		return -1, local, errors.Join(err, unix.Close(fd))
	}
	return fd, local, nil
}

func (p *probe) close() {
	unix.Close(p.tx)
	unix.Close(p.rx)
}

// sums are the two values that the checksum field of a datagram may have: that
// of the pseudo-header alone, as long as nobody had to fill in the rest, and the
// whole one.
func (p *probe) sums(payload []byte) [2]uint16 {
	pseudo := encap.PseudoHeaderSum(p.from.Addr(), p.to.Addr(), encap.ProtoUDP, probeLength)
	header := uint64(p.from.Port()) + uint64(p.to.Port()) + probeLength
	return [2]uint16{encap.Fold(pseudo), encap.Checksum(payload, encap.AddSums(pseudo, header))}
}

// expect makes the receiver drop what has another UDP length or checksum field.
// A socket filter is the one place that sees the header of each segment.
func (p *probe) expect(length uint16, sums [2]uint16) error {
	const lengthAt, sumAt = 4, 6
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: lengthAt},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: uint32(length), Jf: 4},
		{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: sumAt},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: uint32(sums[0]), Jt: 1},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: uint32(sums[1]), Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 1<<32 - 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	}
	return attachFilter(p.rx, filter)
}

// exchange sends data at once and expects it in datagrams of probeSize bytes.
func (p *probe) exchange(data, control []byte) error {
	if err := unix.Sendmsg(p.tx, data, control, unixSockaddr(p.to), 0); err != nil {
		return err
	}
	limit := unix.NsecToTimespec(int64(probePatience))
	buf := make([]byte, 2*len(data))
	for want := range slices.Chunk(data, probeSize) {
		if n, err := descriptor.Poll([]unix.PollFd{{Fd: int32(p.rx), Events: unix.POLLIN}}, &limit); err != nil || n == 0 {
			return errors.Join(err, unix.ETIMEDOUT)
		}
		n, err := unix.Read(p.rx, buf)
		if err != nil {
			return err
		}
		if !bytes.Equal(buf[:n], want) {
			return fmt.Errorf("a datagram of %d bytes was damaged", n)
		}
	}
	return nil
}
