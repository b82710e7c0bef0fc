package overlay

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"uvxlan/cmd/internal/handover"
	"uvxlan/tunnel"
	"uvxlan/tunnel/device"
	"uvxlan/tunnel/underlay"
)

// takeOver takes the device and the sockets over, while the standby still uses them.
// What can't be used any longer, such as a device that was deleted meanwhile, is
// made anew.
func (v *Overlay) takeOver(before *handover.State) error {
	if err := v.adopt(before); err != nil {
		if before.Borrowed() {
			return err // it is in use where it is
		}
		v.log.Error("what was handed over is of no use, making the device and the sockets again", "name", v.name, "error", err)
		v.fast.Discard()
		err = before.StopStandby() // whose process holds the device
		before.Reap()
		return errors.Join(err, v.open())
	}
	v.before = before
	return nil
}

// adopt makes the device and the sockets of the descriptors, and closes these if
// they are of no use.
func (v *Overlay) adopt(e *handover.State) (err error) {
	if p, err := tunnel.PeerFromLease(e.Own); err != nil {
		return err
	} else {
		v.mac = p.MAC
	}
	left := e.TunnelDescriptors()
	defer func() {
		if err != nil {
			err = errors.Join(err, v.closeOpened())
			closeAll(left)
		}
	}()
	if v.device, err = device.Adopt(e.Tunnel.Queues, v.opts.Offloads); err != nil {
		return err
	}
	v.driver, v.workers = device.DriverOf(v.device), len(v.device.Queues())
	left = without(left, e.Tunnel.Queues)
	if v.underlay, err = underlay.Adopt(e.Tunnel.Sockets.UDP, v.opts.Offloads); err != nil {
		return err
	}
	left = e.Tunnel.Sockets.Packet
	return v.follow(left)
}

func without(all, some []int) (rest []int) {
	for _, fd := range all {
		if !slices.Contains(some, fd) {
			rest = append(rest, fd)
		}
	}
	return rest
}

// goOn gives the router the peers of the one before.
func (v *Overlay) goOn() {
	if err := v.router.ReplacePeers(v.before.Peers); err != nil {
		v.log.Warn("peers were left out", "error", err)
	}
	v.once.Do(func() { close(v.loaded) })
}

// replaceStandby takes the place of the standby. Between it and the router's start
// packets wait.
func (v *Overlay) replaceStandby() error {
	if err := v.removeStaleRoutes(); err != nil {
		return err
	}
	before := v.before
	v.before = nil
	begin := time.Now()
	borrowed := before.Borrowed()
	err := before.StopStandby()
	if borrowed {
		if err != nil {
			return err
		}
		v.fast.Inherit(before.FastPath)
	}
	v.log.Info("took over", "from_version", before.Version, "peers", len(before.Peers), "paused", time.Since(begin))
	return err
}

// HandOver tells a daemon that takes over of the device, the sockets and the peers.
func (v *Overlay) HandOver(e *handover.State) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.down != nil {
		return fmt.Errorf("%s: %w", v.name, v.down)
	}
	d, err := v.router.Descriptors()
	if err != nil {
		return err
	}
	v.offered = v.router
	e.Tunnel, e.Peers = &d, v.router.Peers()
	return nil
}

// errReplaced says that the other process has what is of no use any longer.
var errReplaced = errors.New("the sockets or the device were made again meanwhile: reload again")

// Release stops the router in favour of another process, which HandOver has told
// of it. The fast path goes on alone, if that process takes it over.
func (v *Overlay) Release(e *handover.State) (time.Time, error) {
	keep := e.TakesFastPath()
	if !keep {
		v.fast.Detach() // first, since packets wait from here on
	}
	begin, err := v.releaseRouter()
	if err == nil {
		e.FastPath = v.fast.Release(keep)
	} else if !keep {
		err = errors.Join(err, v.useFast(false))
	}
	return begin, err
}

func (v *Overlay) releaseRouter() (time.Time, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	begin := time.Now()
	if v.router != v.offered || v.down != nil {
		return begin, fmt.Errorf("%s: %w", v.name, errReplaced)
	}
	v.handed = true // before Run sees the router end
	if _, err := v.router.Release(); err != nil {
		v.handed = false
		return begin, err
	}
	return begin, nil
}

// isHanded tells whether another process carries the packets.
func (v *Overlay) isHanded() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.handed
}
