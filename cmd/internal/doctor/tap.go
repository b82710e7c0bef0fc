package doctor

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// tap sees the VXLAN frames with ICMP or ARP inside and the ICMP messages that pass the
// host's interfaces: outgoing ones after the firewall had them, incoming ones before.
// A filter in the kernel keeps all else away from it.
type tap struct {
	// immutable
	file *os.File
	conn syscall.RawConn

	reading sync.WaitGroup

	mu   sync.Mutex
	seen []sighting // guarded by mu
	more chan struct{}
}

// most bounds the memory that sightings take.
const most = 100_000

// openTap sees frames to the given UDP ports. It works in the calling thread's
// network namespace, and needs CAP_NET_RAW.
func openTap(ports ...uint16) (*tap, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open packet socket: %w", err)
	}
	t := &tap{file: os.NewFile(uintptr(fd), "packet"), more: make(chan struct{})}
	if err := t.listen(fd, ports); err != nil {
		return nil, errors.Join(err, t.file.Close())
	}
	if t.conn, err = t.file.SyscallConn(); err != nil {
		return nil, errors.Join(err, t.file.Close())
	}
	t.reading.Go(t.read)
	return t, nil
}

func (t *tap) listen(fd int, ports []uint16) error {
	program := tapFilter(ports)
	prog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &prog); err != nil {
		return fmt.Errorf("filter packets: %w", err)
	}
	const room = 4 << 20
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, room) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, room) // less serves too
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1); err != nil {
		return fmt.Errorf("ask for checksums' states: %w", err)
	}
	// Only now, so that no packet comes unfiltered.
	all := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL))
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all}); err != nil {
		return fmt.Errorf("bind packet socket: %w", err)
	}
	return nil
}

func (t *tap) close() error {
	err := t.file.Close()
	t.reading.Wait()
	return err
}

// read takes packets until the socket is closed.
func (t *tap) read() {
	buf, oob := make([]byte, 1<<16), make([]byte, 256)
	for {
		var n, oobn int
		var from unix.Sockaddr
		var err error
		readErr := t.conn.Read(func(fd uintptr) bool {
			n, oobn, _, from, err = unix.Recvmsg(int(fd), buf, oob, unix.MSG_DONTWAIT)
			return !errors.Is(err, unix.EAGAIN)
		})
		if readErr != nil {
			return
		}
		link, ok := from.(*unix.SockaddrLinklayer)
		if err != nil || !ok {
			continue // the interface may be gone, another is there
		}
		s := sighting{at: time.Now(), out: link.Pkttype == unix.PACKET_OUTGOING, link: link.Ifindex}
		t.record(s.parse(buf[:n], inPlace(oob[:oobn])))
	}
}

// inPlace tells whether the checksums of a packet are all in place: one that is to be
// sent, or comes from the same machine, may leave that to the device (packet(7),
// PACKET_AUXDATA). That the kernel has found one right isn't asked: what has changed
// the packet since doesn't always say so.
func inPlace(oob []byte) bool {
	const notReady = 1 << 3 // linux/if_packet.h, TP_STATUS_CSUMNOTREADY
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return false
	}
	for _, m := range messages {
		if m.Header.Level == unix.SOL_PACKET && m.Header.Type == unix.PACKET_AUXDATA && len(m.Data) >= 4 {
			return binary.NativeEndian.Uint32(m.Data)&notReady == 0
		}
	}
	return false
}

func (t *tap) record(s []sighting) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.seen) >= most || len(s) == 0 {
		return
	}
	t.seen = append(t.seen, s...)
	close(t.more)
	t.more = make(chan struct{})
}

// missed tells whether packets may have passed unseen since it was asked last.
func (t *tap) missed() (missed bool) {
	err := t.conn.Control(func(fd uintptr) {
		stats, err := unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS)
		missed = err != nil || stats.Drops > 0
	})
	t.mu.Lock()
	defer t.mu.Unlock()
	return missed || err != nil || len(t.seen) >= most
}

// sightings are all so far that match.
func (t *tap) sightings(match func(*sighting) bool) (found []sighting) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range t.seen {
		if match(&t.seen[i]) {
			found = append(found, t.seen[i])
		}
	}
	return found
}

// await waits until n packets have matched or the time has passed, and returns those
// that have.
func (t *tap) await(n int, timeout time.Duration, match func(*sighting) bool) (found []sighting) {
	late := time.NewTimer(timeout)
	defer late.Stop()
	for next := 0; ; {
		t.mu.Lock()
		for ; next < len(t.seen); next++ {
			if match(&t.seen[next]) {
				found = append(found, t.seen[next])
			}
		}
		more := t.more
		t.mu.Unlock()
		if len(found) >= n {
			return found
		}
		select {
		case <-more:
		case <-late.C:
			return found
		}
	}
}
