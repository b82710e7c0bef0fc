package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// snapLength is how many bytes of a frame are recorded.
	snapLength = 256
	// largestFrame is a superpacket with its headers.
	largestFrame = 1<<16 + snapLength
	// captureBuffer is asked for so that a benchmark's rate loses nothing, even
	// where the capture waits for a CPU.
	captureBuffer = 256 << 20
)

// Packet is a frame that passed an interface, possibly a superpacket.
type Packet struct {
	// Frame begins with the Ethernet header and holds at most 256 bytes.
	Frame []byte
	// Length is the length of the whole frame in bytes.
	Length int
	// Outgoing tells frames that the node sends from those that it receives.
	Outgoing bool
}

// Capture is a running capture. Its methods are safe for concurrent use.
type Capture struct {
	file *os.File
	keep func(Packet) bool
	stop func() bool
	wg   sync.WaitGroup

	mu      sync.Mutex // guards what follows
	packets []Packet
	changed chan struct{} // closed and replaced when packets grows
	read    int           // packets that were kept or not
	passed  int           // packets that the kernel counts, dropped ones included
	drops   int
	err     error
}

// Capture records the packets that pass the interface in either direction from
// the moment it returns until ctx ends or Close. keep chooses what is recorded,
// nil everything; it must not hold on to the frame.
func (n *Node) Capture(ctx context.Context, iface string, keep func(Packet) bool) (*Capture, error) {
	var f *os.File
	err := n.Do(func() (err error) {
		f, err = openPacketSocket(iface)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("capture on %s in %s: %w", iface, n.Name, err)
	}
	c := &Capture{file: f, keep: keep, changed: make(chan struct{})}
	c.wg.Go(c.run)
	c.stop = context.AfterFunc(ctx, func() { f.Close() })
	return c, nil
}

// openPacketSocket opens a socket that sees all frames of the interface, in the
// calling thread's namespace.
func openPacketSocket(iface string) (*os.File, error) {
	// Protocol 0 receives nothing until bind has chosen the interface.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	f := os.NewFile(uintptr(fd), "capture on "+iface)
	link, err := interfaceIndex(fd, iface)
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, captureBuffer)
	}
	if err == nil {
		all := binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL)
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: binary.NativeEndian.Uint16(all), Ifindex: link})
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func interfaceIndex(fd int, name string) (int, error) {
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return 0, err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, ifr); err != nil {
		return 0, os.NewSyscallError("find interface", err)
	}
	return int(ifr.Uint32()), nil
}

// run records until the socket is closed.
func (c *Capture) run() {
	raw, err := c.file.SyscallConn()
	buf := make([]byte, largestFrame)
	for err == nil {
		var p Packet
		if p, err = receive(raw, buf); err == nil {
			c.record(p, c.keep == nil || c.keep(p))
		}
		if errors.Is(err, unix.ENETDOWN) {
			err = nil // reported once when the interface is set down
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !errors.Is(err, os.ErrClosed) {
		c.err = err
	}
	close(c.changed)
	c.changed = nil
}

func (c *Capture) record(p Packet, keep bool) {
	if keep {
		p.Frame = slices.Clone(p.Frame)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.read++
	if !keep {
		return
	}
	c.packets = append(c.packets, p)
	close(c.changed)
	c.changed = make(chan struct{})
}

// Packets returns what has been recorded so far.
func (c *Capture) Packets() []Packet {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.packets)
}

// Count returns how many packets have been recorded so far.
func (c *Capture) Count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.packets)
}

// Await waits until n packets have been recorded.
func (c *Capture) Await(ctx context.Context, n int) error {
	for {
		c.mu.Lock()
		count, changed, err := len(c.packets), c.changed, c.err
		c.mu.Unlock()
		if count >= n {
			return nil
		}
		if changed == nil {
			return errors.Join(net.ErrClosed, err)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("wait for %d packets, got %d: %w", n, count, ctx.Err())
		}
	}
}

// Drops returns how many packets the kernel dropped because the capture was too
// slow. A capture proves an absence only if that is 0.
func (c *Capture) Drops() (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	err := c.countLocked()
	return c.drops, err
}

// countLocked adds the kernel's counters, which start again each time.
func (c *Capture) countLocked() error {
	raw, err := c.file.SyscallConn()
	if err != nil {
		return err
	}
	var statsErr error
	err = raw.Control(func(fd uintptr) {
		var s *unix.TpacketStats
		if s, statsErr = unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS); statsErr == nil {
			c.passed += int(s.Packets)
			c.drops += int(s.Drops)
		}
	})
	return errors.Join(err, statsErr)
}

// Settle waits until all that had passed the interface when it was called is
// recorded, or was dropped.
func (c *Capture) Settle(ctx context.Context) error {
	c.mu.Lock()
	err := c.countLocked()
	passed := c.passed - c.drops
	c.mu.Unlock()
	for tick := time.NewTicker(time.Millisecond); err == nil; {
		c.mu.Lock()
		settled := c.read >= passed || c.changed == nil
		c.mu.Unlock()
		if settled {
			tick.Stop()
			break
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	return err
}

// Close ends the capture and returns the error that ended it before. What was
// recorded stays.
func (c *Capture) Close() error {
	c.stop()
	c.file.Close()
	c.wg.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}
