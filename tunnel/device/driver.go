package device

import (
	"errors"
	"fmt"
	"slices"

	"uvxlan/tunnel/offload"
)

// Driver is a way to have a TUN device.
type Driver string

// The drivers, in the order in which [DriverAuto] tries them. Each needs less of
// the kernel than the one before.
const (
	// DriverAuto is the first that the kernel allows.
	DriverAuto Driver = "auto"
	// DriverNative is this package's own: superpackets both ways, and as many
	// queues as are wanted.
	DriverNative Driver = "native"
	// DriverWireGuard is wireguard-go's: one queue, superpackets between the
	// kernel and the driver, single packets beyond it. See [WrapWireGuard] for
	// its devices of other kinds.
	DriverWireGuard Driver = "wireguard"
	// DriverWater is songgao/water's, for TUN drivers that know no vnet headers
	// (IFF_VNET_HDR), such as those of sandboxes: a packet at a time, and as many
	// queues as are wanted where the kernel has more than one.
	DriverWater Driver = "water"
)

// Drivers lists every driver, [DriverAuto] first.
func Drivers() []Driver { return []Driver{DriverAuto, DriverNative, DriverWireGuard, DriverWater} }

// ParseDriver reads a driver's name; "" is [DriverAuto].
func ParseDriver(s string) (Driver, error) {
	if s == "" {
		return DriverAuto, nil
	}
	if d := Driver(s); slices.Contains(Drivers(), d) {
		return d, nil
	}
	return "", fmt.Errorf("device driver %q: there are %s", s, Drivers())
}

// Errors of [Open].
var (
	// ErrNoTUN says that the kernel offers no TUN driver here: load the module
	// or pass the device node into the container.
	ErrNoTUN = errors.New("no " + tunPath)
	// ErrExists says that an interface of the wanted name is already
	// there: remove it or choose another name.
	ErrExists = errors.New("the interface exists")
	// ErrDriverRefused says that the kernel's TUN lacks what the device driver
	// needs: choose another driver, or [DriverAuto].
	ErrDriverRefused = errors.New("the kernel's TUN refuses this device driver")
)

// Config says what [Open] opens.
type Config struct {
	// Driver is the driver to use; empty means [DriverAuto].
	Driver Driver
	// Queues is the number of queues, one for each worker; 0 means one. A device
	// may have fewer, as each driver says.
	Queues int
	// Offloads are those wanted of the device; what the kernel refuses is left
	// out.
	Offloads offload.Set
}

// Open makes the TUN interface name and opens all of its queues, in the
// calling thread's network namespace. The interface is down, without addresses,
// and goes when the device is closed; see [link.Configure]. It needs
// CAP_NET_ADMIN.
//
// It returns [ErrNoTUN], [ErrExists], [ErrDriverRefused] or the kernel's
// refusal (unix.EPERM for want of privilege), wrapped.
func Open(name string, c Config) (Device, error) {
	return openFirst(name, c, []driver{
		{DriverNative, openNative},
		{DriverWireGuard, openWireGuard},
		{DriverWater, openWater},
	})
}

// DriverOf is the driver of a device that this package made, empty for others.
func DriverOf(d Device) Driver {
	if d, ok := d.(interface{ driver() Driver }); ok {
		return d.driver()
	}
	return ""
}

// driver opens the devices of one kind.
type driver struct {
	name Driver
	open func(name string, c Config) (Device, error)
}

// openFirst opens the device by the first driver that was asked for and isn't
// refused. Any other error would be the next driver's, too.
func openFirst(name string, c Config, drivers []driver) (Device, error) {
	want, err := ParseDriver(string(c.Driver))
	if err != nil {
		return nil, err
	}
	var refused []error
	for _, d := range drivers {
		if want != DriverAuto && want != d.name {
			continue
		}
		device, err := d.open(name, c)
		if err == nil {
			if k, ok := device.(*kernelDevice); ok {
				k.counters = openCounters()
			}
			return device, nil
		}
		if !errors.Is(err, ErrDriverRefused) {
			return nil, fmt.Errorf("open TUN device %s: %w", name, err)
		}
		refused = append(refused, fmt.Errorf("%s: %w", d.name, err))
	}
	return nil, fmt.Errorf("open TUN device %s: %w", name, errors.Join(refused...))
}
