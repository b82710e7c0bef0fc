package overlay

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"uvxlan/tunnel/device"
)

// checkTUN finds out whether this process can have a TUN device at all.
func checkTUN() error {
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return fmt.Errorf("%w: %w", device.ErrNoTUN, err)
	case err != nil:
		return err
	}
	f.Close()
	return nil
}
