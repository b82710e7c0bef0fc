package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// directory is where `ip netns` looks for named namespaces.
const directory = "/run/netns"

// mark is the alias of the loopback interface in every namespace of a lab.
const mark = "uvxlan-lab"

// ErrForeign is returned when a namespace of the lab's name exists that no lab
// made. Rename or remove it, or give the lab's host another name.
var ErrForeign = errors.New("namespace exists and is not a lab's")

func namespacePath(name string) string { return filepath.Join(directory, name) }

// createNamespace makes a marked namespace, binds it to its name and returns
// its descriptor.
func createNamespace(name string) (ns *os.File, err error) {
	path := namespacePath(name)
	if isNamespace(path) {
		return nil, fmt.Errorf("%w: %s", ErrForeign, path)
	}
	err = onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return os.NewSyscallError("unshare", err)
		}
		// Prepared before it is bound, so that no unmarked one can be left.
		if err := prepareNamespace(); err != nil {
			return err
		}
		if ns, err = os.Open(threadNamespace); err != nil {
			return err
		}
		if err := bindNamespace(path); err != nil {
			return errors.Join(err, ns.Close())
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return ns, nil
}

// prepareNamespace marks the calling thread's namespace and sets it up.
func prepareNamespace() error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink socket: %w", err)
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback: %w", err)
	}
	if err := h.LinkSetAlias(lo, mark); err != nil {
		return fmt.Errorf("mark namespace: %w", err)
	}
	if err := h.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set loopback up: %w", err)
	}
	return quietNamespace()
}

// bindNamespace gives the calling thread's namespace a path. A file that is
// there already, and is no namespace, is what a killed run or a reboot left.
func bindNamespace(path string) error {
	if err := os.MkdirAll(directory, 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o444)
	if err != nil {
		return err
	}
	f.Close()
	if err := unix.Mount(threadNamespace, path, "none", unix.MS_BIND, ""); err != nil {
		return errors.Join(os.NewSyscallError("mount", err), os.Remove(path))
	}
	return nil
}

// deleteNamespace removes the name; the namespace ends with its last user.
func deleteNamespace(name string) error {
	path := namespacePath(name)
	err := unix.Unmount(path, unix.MNT_DETACH)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove namespace: %w", err)
	}
	return nil
}

// isNamespace reports whether a namespace of any kind is bound to the path.
func isNamespace(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

// isMarked reports whether a lab made the namespace. One that can't be entered
// or asked is not a lab's.
func isMarked(path string) bool {
	ns, err := os.Open(path)
	if err != nil {
		return false
	}
	defer ns.Close()
	var alias string
	err = inside(ns, func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		lo, err := h.LinkByName("lo")
		if err == nil {
			alias = lo.Attrs().Alias
		}
		return err
	})
	return err == nil && alias == mark
}
