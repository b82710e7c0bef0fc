package device

import (
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

// The kernel refuses: the next driver is tried. Any other error ends the search.
func TestOpenFirst(t *testing.T) {
	refused := fmt.Errorf("%w: no vnet headers", ErrDriverRefused)
	for _, c := range []struct {
		name            string
		want            Driver
		native, guarded error
		driver          Driver
		err             error
	}{
		{"all work", DriverAuto, nil, nil, DriverNative, nil},
		{"empty is auto", "", nil, nil, DriverNative, nil},
		{"no vnet headers", DriverAuto, refused, refused, DriverWater, nil},
		{"no queues", DriverAuto, refused, nil, DriverWireGuard, nil},
		{"no privilege", DriverAuto, unix.EPERM, nil, "", unix.EPERM},
		{"no TUN", DriverAuto, ErrNoTUN, nil, "", ErrNoTUN},
		{"exists", DriverAuto, refused, ErrExists, "", ErrExists},
		{"by name", DriverWater, unix.EPERM, unix.EPERM, DriverWater, nil},
		{"by name, refused", DriverNative, refused, nil, "", ErrDriverRefused},
	} {
		opens := func(d Driver, err error) driver {
			return driver{d, func(string, Config) (Device, error) {
				if err != nil {
					return nil, err
				}
				return &kernelDevice{kind: d}, nil
			}}
		}
		d, err := openFirst("tun0", Config{Driver: c.want}, []driver{
			opens(DriverNative, c.native), opens(DriverWireGuard, c.guarded), opens(DriverWater, nil),
		})
		if !errors.Is(err, c.err) || err == nil && DriverOf(d) != c.driver {
			t.Errorf("%s: %+v, %v", c.name, d, err)
		}
	}
	if _, err := Open("tun0", Config{Driver: "tap"}); err == nil {
		t.Error("driver tap was accepted")
	}
}
