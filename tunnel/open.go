package tunnel

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"

	"uvxlan/encap"
	"uvxlan/tunnel/device"
	"uvxlan/tunnel/link"
	"uvxlan/tunnel/offload"
	"uvxlan/tunnel/onlink"
	"uvxlan/tunnel/underlay"
)

// Setup is what [Open] makes a router of.
type Setup struct {
	// Address is the address that the other hosts send to, and AddressV6 an IPv6
	// one beside an IPv4 Address, if there are peers with such. Port is the VXLAN
	// port, ours and every peer's.
	Address, AddressV6 netip.Addr
	Port               uint16
	// VNI is the VXLAN segment and MAC our VTEP's address in it.
	VNI encap.VNI
	MAC encap.MAC
	// Link is what the interface needs.
	Link link.Config
	// Direct says how packets to on-link peers travel.
	Direct onlink.Mode
	// Workers is how many there are; 0 means one. A driver may give fewer.
	Workers int
	// Driver is the device's; empty means [device.DriverAuto].
	Driver device.Driver
	// Without are offloads that are not to be used.
	Without offload.Set
	// Logger gets what happens rarely; nil means nothing is logged.
	Logger *slog.Logger
}

// Open makes the TUN interface name, opens all that a router needs in the calling
// thread's network namespace, configures the interface and brings it up: what
// [device.Open], [underlay.Listen], [onlink.Open], [New] and [link.Configure] do, whose
// errors it returns. Packets wait until [Router.Run].
func Open(name string, s Setup) (*Router, error) {
	offloads := offload.All &^ s.Without
	dev, err := device.Open(name, device.Config{Driver: s.Driver, Queues: s.Workers, Offloads: offloads})
	if err != nil {
		return nil, err
	}
	u, p, err := s.open(len(dev.Queues()), offloads)
	if err != nil {
		return nil, errors.Join(err, dev.Close())
	}
	r, err := New(dev, u, Config{VNI: s.VNI, MAC: s.MAC, Link: s.Link, OnLink: p, Logger: s.Logger})
	if err != nil {
		return nil, errors.Join(err, p.Close(), u.Close(), dev.Close())
	}
	if err := link.Configure(name, s.Link); err != nil {
		return nil, errors.Join(fmt.Errorf("configure %s: %w", name, err), r.Close())
	}
	return r, nil
}

// open opens the sockets.
func (s *Setup) open(workers int, offloads offload.Set) (*underlay.UDP, *onlink.Paths, error) {
	u, err := underlay.Listen(underlay.Config{
		Address: s.Address, AddressV6: s.AddressV6, Port: s.Port, Workers: workers, Offloads: offloads,
	})
	if err != nil || s.Direct == onlink.Off {
		return u, nil, err
	}
	p, err := onlink.Open(onlink.Config{Mode: s.Direct, Workers: workers})
	if err != nil {
		return nil, nil, errors.Join(err, u.Close())
	}
	return u, p, nil
}
