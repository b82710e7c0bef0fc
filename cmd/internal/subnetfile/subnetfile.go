// Package subnetfile reads and writes subnet.env, the file by which container
// runtimes learn which subnet and MTU their host has.
package subnetfile

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"uvxlan/cmd/internal/atomicfile"
)

// DefaultPath is where container runtimes look for the file: flannel's place.
const DefaultPath = "/run/flannel/subnet.env"

// File is what the file says. The form is flannel's: KEY=value lines without
// quotes.
type File struct {
	// Network is the overlay's, FLANNEL_NETWORK.
	Network netip.Prefix
	// Subnet is the host's, FLANNEL_SUBNET. The file has the gateway's address,
	// the first of the subnet, with the subnet's length.
	Subnet netip.Prefix
	// NetworkV6 and SubnetV6 are the same of IPv6, FLANNEL_IPV6_NETWORK and
	// FLANNEL_IPV6_SUBNET; without them the file has neither line.
	NetworkV6, SubnetV6 netip.Prefix
	// MTU is that of the overlay's device, in bytes, FLANNEL_MTU.
	MTU int
	// IPMasq tells that the daemon masquerades, FLANNEL_IPMASQ.
	IPMasq bool
}

// ErrPlace says that the file can't be where it should: choose another place.
var ErrPlace = errors.New("the subnet file can't be written")

// Prepare makes the directory of the file at path, and finds out whether a file
// can be made there.
func Prepare(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("%w: %w", ErrPlace, err)
	}
	if err := atomicfile.Try(path); err != nil {
		return fmt.Errorf("%w: %w", ErrPlace, err)
	}
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		return fmt.Errorf("%w: %s is a directory", ErrPlace, path)
	}
	return nil
}

// Write replaces the file at path in one step: a reader sees the old or the
// new one, whole. It makes the directory if need be.
func (f File) Write(path string) error {
	if err := atomicfile.Write(path, []byte(f.text())); err != nil {
		return fmt.Errorf("%w: %w", ErrPlace, err)
	}
	return nil
}

func (f File) text() string {
	text := fmt.Sprintf("FLANNEL_NETWORK=%s\nFLANNEL_SUBNET=%s\n", f.Network, gateway(f.Subnet))
	if f.NetworkV6.IsValid() {
		text += fmt.Sprintf("FLANNEL_IPV6_NETWORK=%s\nFLANNEL_IPV6_SUBNET=%s\n", f.NetworkV6, gateway(f.SubnetV6))
	}
	return text + fmt.Sprintf("FLANNEL_MTU=%d\nFLANNEL_IPMASQ=%t\n", f.MTU, f.IPMasq)
}

func gateway(subnet netip.Prefix) netip.Prefix {
	return netip.PrefixFrom(subnet.Masked().Addr().Next(), subnet.Bits())
}

// Read reads the file at path; the subnets come back as network addresses. A file
// that isn't there is the zero File. Lines and values that make no sense are
// passed over, since the file only tells what an earlier run had.
func Read(path string) (File, error) {
	r, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return File{}, nil
	}
	if err != nil {
		return File{}, fmt.Errorf("read subnet file: %w", err)
	}
	defer r.Close()
	var f File
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		key, value, _ := strings.Cut(strings.TrimSpace(lines.Text()), "=")
		f.set(key, value)
	}
	if err := lines.Err(); err != nil {
		return File{}, fmt.Errorf("read subnet file: %w", err)
	}
	return f, nil
}

func (f *File) set(key, value string) {
	switch key {
	case "FLANNEL_NETWORK":
		f.Network = network(value)
	case "FLANNEL_SUBNET":
		f.Subnet = network(value)
	case "FLANNEL_IPV6_NETWORK":
		f.NetworkV6 = network(value)
	case "FLANNEL_IPV6_SUBNET":
		f.SubnetV6 = network(value)
	case "FLANNEL_MTU":
		f.MTU, _ = strconv.Atoi(value)
	case "FLANNEL_IPMASQ":
		f.IPMasq = value == "true"
	}
}

func network(s string) netip.Prefix {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}
	}
	return p.Masked()
}
