package overlay

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"uvxlan/cmd/internal/extiface"
	"uvxlan/tunnel"
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
	d, err := m.from.Release()
	if errors.Is(err, tunnel.ErrNotReleased) {
		err = errors.Join(tunnel.ErrUnderlayGone, m.from.Close())
	} else if err == nil {
		err = v.moveTo(d)
	}
	m.err = err
	close(m.done)
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
	before, inner := v.ext, outerMTU(v.config, ext).Inner(v.config.EnableIPv6)
	from, fromV6 := before.Sockets()
	to, toV6 := ext.Sockets()
	same := from == to && fromV6 == toV6 && v.inner == inner
	v.ext, v.inner = ext, inner
	if same || v.down != nil || v.handed {
		return nil
	}
	v.moved = &move{from: v.router, done: make(chan struct{})}
	return v.moved
}

// moveTo makes a router of the device's descriptors and of new sockets. It closes
// what can't be used.
func (v *Overlay) moveTo(d tunnel.Descriptors) (err error) {
	closeAll(socketsOf(d))
	if v.device, err = tunnel.AdoptDevice(d.Queues, v.opts.Offloads); err != nil {
		closeAll(d.Queues)
		return fmt.Errorf("%w: %w", tunnel.ErrDeviceGone, err)
	}
	if err = v.listen(); err == nil {
		err = tunnel.ConfigureLink(v.name, v.link())
	}
	if err == nil {
		err = v.startRouter()
	}
	if err != nil {
		return fmt.Errorf("%w: %w", tunnel.ErrUnderlayGone, errors.Join(err, v.closeOpened()))
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

// awaitMove tells whether a move has ended the router, and waits for it then; the
// error is why there is no other.
func (v *Overlay) awaitMove(router *tunnel.Router) (bool, error) {
	v.mu.Lock()
	m := v.moved
	v.mu.Unlock()
	if m == nil || m.from != router {
		return false, nil
	}
	<-m.done
	return true, m.err
}
