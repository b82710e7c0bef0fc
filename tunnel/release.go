package tunnel

import (
	"errors"
	"fmt"

	"uvxlan/tunnel/device"
	"uvxlan/tunnel/underlay"
)

// Sockets are descriptors of open sockets, which may be of another network
// namespace than the caller's; see [underlay.Adopt].
type Sockets struct {
	// UDP are the sockets of one address family, or of IPv4 and of IPv6.
	UDP []underlay.Sockets `json:"udp"`
	// Packet are packet sockets (packet(7)) with PACKET_VNET_HDR, one for each
	// queue of the device; see [onlink.Config].
	Packet []int `json:"packet,omitempty"`
}

// Descriptors are those of a router, in the order of its workers.
type Descriptors struct {
	// Queues are for [device.Adopt].
	Queues []int `json:"queues"`
	// Sockets are for [underlay.Adopt].
	Sockets Sockets `json:"sockets"`
}

// ErrNotReleased says that a device or an underlay has no descriptors that could be
// adopted.
var ErrNotReleased = errors.New("the device or the underlay can't be handed over")

// Release ends Run like Close, between two packets, but closes neither device nor
// sockets and removes no route: they are the caller's, to be adopted by another
// router, in this process or in another one. Until then packets wait in the
// kernel's queues. It returns [ErrNotReleased] for a device of another driver than
// [device.DriverNative] and for an underlay that isn't [underlay.UDP], and [ErrClosed]
// on a closed router; then nothing has happened.
func (r *Router) Release() (d Descriptors, err error) {
	err = r.life.HandOver(func() error {
		d, err = r.descriptors()
		return err
	})
	if err != nil {
		return Descriptors{}, fmt.Errorf("release router: %w", err)
	}
	// First, since it takes some time; meanwhile the paths are as they are.
	err = r.paths.Release()
	r.haltWorkers()
	r.life.Wait()
	r.lookOutside() // for the last time
	device.Disown(r.device)
	if u, ok := r.underlay.(*underlay.UDP); ok {
		err = errors.Join(err, u.Release())
	}
	if err := errors.Join(err, r.closeWorkers()); err != nil {
		r.log.Warn("release router", "error", err)
	}
	return d, nil
}

// Descriptors are those that Release would return, for a process that is to inherit
// them before. They stay the router's. The errors are Release's.
func (r *Router) Descriptors() (d Descriptors, err error) {
	err = ErrClosed
	r.life.While(func() { d, err = r.descriptors() })
	return d, err
}

func (r *Router) descriptors() (Descriptors, error) {
	queues, native := device.Descriptors(r.device)
	udp, sockets := r.underlay.(*underlay.UDP)
	if !native || !sockets {
		return Descriptors{}, ErrNotReleased
	}
	return Descriptors{queues, Sockets{UDP: udp.Descriptors(), Packet: r.paths.Sockets()}}, nil
}
