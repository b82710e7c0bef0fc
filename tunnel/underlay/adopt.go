package underlay

import (
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"uvxlan/tunnel/internal/descriptor"
	"uvxlan/tunnel/internal/family"
	"uvxlan/tunnel/offload"
)

// ErrUnfit says that a descriptor is not what it has to be to be adopted; the
// words around it say which and why.
var ErrUnfit = descriptor.ErrUnfit

// Sockets are the sockets of one address family.
type Sockets struct {
	// Receive are bound to one address, not the unspecified one, and the VXLAN port,
	// one for each queue of the device. If there are several, each was bound with
	// SO_REUSEPORT.
	Receive []int `json:"receive"`
	// Send only send, a pool for each of Receive. The pools have the same ports,
	// in the same order and shared by SO_REUSEPORT, so that a flow keeps its port
	// whichever worker sends it. Nil means that the receiving sockets send as well:
	// everything leaves from the VXLAN port, and neither the network nor the peers
	// can spread the flows.
	Send [][]int `json:"send,omitempty"`
}

// Adopt makes an underlay of sockets that the caller has opened, with whatever
// privilege and in whatever network namespace. There is one set for each address
// family, and both have the same VXLAN port and as many receiving sockets. A socket
// that isn't as [Sockets] says is [ErrUnfit].
//
// The underlay owns the descriptors from here on and closes them. They become
// non-blocking and close-on-exec and get the options that [Listen] would set, but
// for the receive buffers: some MiB, which may take SO_RCVBUFFORCE, lose less at
// high rates. After an error they are still the caller's. The paths' MTUs are known
// only if the calling thread is in the sockets' network namespace.
func Adopt(s []Sockets, want offload.Set) (*UDP, error) {
	u := &UDP{offloads: want & (offload.GSO | offload.GRO), probe: newRouteProbe()}
	err := u.adopt(s)
	if err == nil {
		err = u.setOptions()
	}
	if err != nil {
		return nil, fmt.Errorf("adopt underlay: %w", err)
	}
	for _, local := range u.locals {
		u.probe.adopt(local.Addr(), u.sockets[family.Of(local.Addr())].rx[0])
	}
	return u, nil
}

// adopt refuses sockets that aren't as they have to be, and changes none.
func (u *UDP) adopt(s []Sockets) error {
	for _, given := range s {
		set, f, err := checkSockets(given)
		if err != nil {
			return err
		}
		if u.sockets[f] != nil || u.Workers() > 0 && u.Workers() != len(set.rx) {
			return fmt.Errorf("%w: two sets of one family, or of %d and %d receiving sockets", ErrUnfit, u.Workers(), len(set.rx))
		}
		u.sockets[f] = set
		local, err := boundTo(set.rx[0])
		if err != nil {
			return err
		}
		if len(u.locals) > 0 && u.locals[0].Port() != local.Port() {
			return fmt.Errorf("%w: there are receiving sockets at %s and at %s, not with one port", ErrUnfit, u.locals[0], local)
		}
		u.locals = append(u.locals, local)
	}
	if u.Workers() == 0 {
		return fmt.Errorf("%w: there is no receiving socket", ErrUnfit)
	}
	return nil
}

// checkSockets returns the sockets as a set, and their family.
func checkSockets(s Sockets) (*socketSet, family.Family, error) {
	if len(s.Receive) == 0 || s.Send != nil && len(s.Send) != len(s.Receive) {
		return nil, 0, fmt.Errorf("%w: %d receiving sockets, %d pools of sending ones", ErrUnfit, len(s.Receive), len(s.Send))
	}
	set := &socketSet{rx: s.Receive, tx: s.Send}
	if s.Send == nil {
		for _, fd := range s.Receive {
			set.tx = append(set.tx, []int{fd})
		}
	}
	local, err := udpAddress(s.Receive[0])
	if err != nil {
		return nil, 0, fmt.Errorf("receiving socket %d: %w", s.Receive[0], err)
	}
	if local.Addr().IsUnspecified() {
		return nil, 0, fmt.Errorf("receiving socket %d: %w: it is bound to no address", s.Receive[0], ErrUnfit)
	}
	for i, fd := range s.Receive {
		if slices.Contains(s.Receive[:i], fd) {
			return nil, 0, fmt.Errorf("receiving socket %d: %w: it is there twice", fd, ErrUnfit)
		}
		if err := checkReceiver(fd, local, len(s.Receive) > 1); err != nil {
			return nil, 0, fmt.Errorf("receiving socket %d: %w", fd, err)
		}
	}
	return set, family.Of(local.Addr()), set.checkSenders(local)
}

// descriptors are the sockets as checkSockets takes them, each of them once.
func (s *socketSet) descriptors() Sockets {
	if s.sendsByReceivers() {
		return Sockets{Receive: s.rx}
	}
	return Sockets{Receive: s.rx, Send: s.tx}
}

func (s *socketSet) checkSenders(local netip.AddrPort) error {
	for i, pool := range s.tx {
		if len(pool) == 0 || len(pool) != len(s.tx[0]) {
			return fmt.Errorf("%w: pools of %d and %d sending sockets", ErrUnfit, len(s.tx[0]), len(pool))
		}
		for k, fd := range pool {
			if err := checkSender(fd, s.tx[0][k], local); err != nil {
				return fmt.Errorf("sending socket %d of worker %d: %w", fd, i, err)
			}
		}
	}
	return nil
}

// option is a socket option, negative for a descriptor that has none such.
func option(fd, level, name int) int {
	value, err := unix.GetsockoptInt(fd, level, name)
	if err != nil {
		return -1
	}
	return value
}

// udpAddress is the address of a UDP socket that is bound to a port.
func udpAddress(fd int) (netip.AddrPort, error) {
	if option(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL) != unix.IPPROTO_UDP {
		return netip.AddrPort{}, fmt.Errorf("%w: it is no UDP socket", ErrUnfit)
	}
	local, err := boundTo(fd)
	if err == nil && local.Port() == 0 {
		err = fmt.Errorf("%w: it is bound to no port", ErrUnfit)
	}
	return local, err
}

func checkReceiver(fd int, local netip.AddrPort, several bool) error {
	own, err := udpAddress(fd)
	if err != nil {
		return err
	}
	if own != local {
		return fmt.Errorf("%w: it is bound to %s, not to %s", ErrUnfit, own, local)
	}
	if several && option(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT) <= 0 {
		return fmt.Errorf("%w: it is one of several, without SO_REUSEPORT", ErrUnfit)
	}
	return nil
}

// checkSender compares a sending socket with the first worker's one in its place.
func checkSender(fd, first int, local netip.AddrPort) error {
	own, err := udpAddress(fd)
	if err != nil {
		return err
	}
	like, err := udpAddress(first)
	if err != nil {
		return err
	}
	if family.Of(own.Addr()) != family.Of(local.Addr()) || own.Port() != like.Port() {
		return fmt.Errorf("%w: it is bound to %s, the first worker's to %s and the receiving ones to %s", ErrUnfit, own, like, local)
	}
	return nil
}

// setOptions gives the sockets the options that Listen sets.
func (u *UDP) setOptions() error {
	for f, s := range u.sockets {
		if s == nil {
			continue
		}
		if err := u.setFamilyOptions(s, family.Family(f)); err != nil {
			return err
		}
	}
	return nil
}

func (u *UDP) setFamilyOptions(s *socketSet, f family.Family) error {
	senders := slices.Concat(s.tx...)
	if err := descriptor.Own(slices.Concat(s.rx, senders)); err != nil {
		return err
	}
	for _, fd := range s.rx {
		if err := setOptions(fd, receiverOptions(f)); err != nil {
			return err
		}
		u.setGRO(fd)
	}
	for _, fd := range senders {
		if err := setOptions(fd, senderOptions(f)); err != nil {
			return err
		}
		if slices.Contains(s.rx, fd) {
			continue
		}
		if err := refuseAll(fd); err != nil {
			return err
		}
	}
	u.tryGSO(f)
	return nil
}
