package overlay

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"uvxlan/cmd/internal/extiface"
	"uvxlan/encap"
	"uvxlan/tunnel"
	"uvxlan/tunnel/device"
	"uvxlan/tunnel/link"
	"uvxlan/tunnel/underlay"
)

// move is the change from one router to the next, on the same device.
type move struct {
	from *tunnel.Router
	done chan struct{} // closed once the next router is in force, or can't be
	err  error         // why it can't
}

// Move has the overlay reach the other hosts by ext from here on: with sockets on
// its addresses and, if it has another MTU, with that. Packets wait meanwhile in
// the device's queue. A device that can't be kept is made again. It returns once
// Run goes on.
func (v *Overlay) Move(ext extiface.Interface) error {
	if err := v.checkMTU(ext); err != nil {
		return err
	}
	begin := time.Now()
	m := v.beginMove(ext)
	if m == nil {
		return nil // the sockets are right, or being made with the device
	}
	v.fast.Detach()
	d, err := m.from.Release()
	if errors.Is(err, tunnel.ErrNotReleased) {
		err = errors.Join(underlay.ErrGone, m.from.Close())
	} else if err == nil {
		err = v.moveTo(d)
	}
	m.err = err
	close(m.done)
	v.wake(devicePart)
	if err == nil {
		local, _ := ext.Sockets()
		v.log.Info("sockets moved", "address", local, "interface", ext.Name, "paused", time.Since(begin).Round(time.Microsecond))
	}
	return nil
}

// beginMove returns no move when none is needed.
func (v *Overlay) beginMove(ext extiface.Interface) *move {
	v.mu.Lock()
	defer v.mu.Unlock()
	before := v.wayLocked()
	v.ext, v.inner = ext, outerMTU(v.config, ext).Inner(v.config.EnableIPv6)
	if v.wayLocked() == before || v.down != nil || v.handed {
		return nil
	}
	v.moved = &move{from: v.router, done: make(chan struct{})}
	return v.moved
}

// way is what the sockets and the router are made for: the underlay's addresses and
// the containers' MTU.
type way struct {
	local, localV6 netip.Addr
	inner          encap.InnerMTU
}

func (v *Overlay) wayLocked() way {
	local, localV6 := v.ext.Sockets()
	return way{local, localV6, v.inner}
}

// way is the one at the moment.
func (v *Overlay) way() way {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.wayLocked()
}

// moveTo makes a router of the device's descriptors and of new sockets. It closes
// what can't be used.
func (v *Overlay) moveTo(d tunnel.Descriptors) (err error) {
	closeAll(socketsOf(d))
	if v.device, err = device.Adopt(d.Queues, v.opts.Offloads); err != nil {
		closeAll(d.Queues)
		return fmt.Errorf("%w: %w", device.ErrGone, err)
	}
	if err = v.listen(); err == nil {
		// For the MTU. What doesn't succeed is the device's part to tell and to repair.
		_ = link.Configure(v.name, v.link())
		err = v.startRouter()
	}
	if err != nil {
		return fmt.Errorf("%w: %w", underlay.ErrGone, errors.Join(err, v.closeOpened()))
	}
	return nil
}

func socketsOf(d tunnel.Descriptors) []int {
	fds := d.Sockets.Packet
	for _, s := range d.Sockets.UDP {
		fds = append(fds, s.Receive...)
		for _, pool := range s.Send {
			fds = append(fds, pool...)
		}
	}
	return fds
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// ended takes note of the end of a router, which returned err. If a move has ended
// it, it waits for that, and the error is why there is no other. If the device or the
// sockets are gone, neither a move nor a handover begins until they are made again.
func (v *Overlay) ended(router *tunnel.Router, err error) error {
	v.mu.Lock()
	m := v.moved
	moved := m != nil && m.from == router
	if !moved && gone(err) {
		v.down = err
	}
	v.mu.Unlock()
	if !moved {
		return err
	}
	<-m.done
	return m.err
}
