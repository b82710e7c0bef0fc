package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"uvxlan/cmd/internal/hoststate"
)

// Values of rp_filter (Documentation/networking/ip-sysctl.rst).
const (
	rpStrict = "1"
	rpLoose  = "2"
)

// reverseFilter is the external interface's reverse-path filter, which must be
// loose: packets of peers' containers arrive there without VXLAN, while our route
// to them leads into the device, and a strict filter would drop them in silence.
type reverseFilter struct {
	log             *slog.Logger // immutable, as are the others
	stateDir, iface string

	mu   sync.Mutex // held while the filter is looked at and changed
	told bool       // guarded by mu: it was warned of a failure
}

// loosen loosens the filter if it is strict.
func (f *reverseFilter) loosen() {
	f.mu.Lock()
	defer f.mu.Unlock()
	c, err := f.loosenLocked()
	switch {
	case err != nil && !f.told:
		f.told = true
		f.log.Warn("if the reverse-path filter is strict, packets of on-link peers are dropped", "error", err)
	case err == nil && c != nil:
		f.log.Info("loosened the reverse-path filter, for packets that come without VXLAN", "sysctl", c.Path, "value", c.Set)
	}
}

// loosenLocked changes the interface's own setting, which is enough since the
// looser of the two counts, and nothing where the filter isn't strict.
func (f *reverseFilter) loosenLocked() (*hoststate.Sysctl, error) {
	own := filepath.Join("ipv4/conf", f.iface, "rp_filter")
	all, err := readSysctl("ipv4/conf/all/rp_filter")
	if err != nil {
		return nil, err
	}
	before, err := readSysctl(own)
	if err != nil || max(all, before) != rpStrict {
		return nil, err
	}
	change := hoststate.Sysctl{Path: own, Before: before, Set: rpLoose}
	if err := hoststate.Update(f.stateDir, func(s *hoststate.State) { s.Record(change) }); err != nil {
		return nil, err
	}
	return &change, os.WriteFile(filepath.Join("/proc/sys/net", own), []byte(rpLoose), 0)
}

// follow loosens the filter whenever somebody makes it strict, such as another
// daemon of this host that had loosened it and stops, until the returned function
// is called.
func (f *reverseFilter) follow(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := eachSettingChange(ctx, f.loosen); err != nil {
			f.log.Warn("whether the reverse-path filter stays loose is not known", "error", err)
		}
	})
	return func() { cancel(); wg.Wait() }
}

// eachSettingChange calls changed at once, and when the kernel reports that IPv4
// settings of an interface changed, until ctx ends.
func eachSettingChange(ctx context.Context, changed func()) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink socket: %w", err)
	}
	events := os.NewFile(uintptr(fd), "netlink")
	defer events.Close()
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (unix.RTNLGRP_IPV4_NETCONF - 1)}); err != nil {
		return fmt.Errorf("subscribe to the kernel's events: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = events.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	for buf := make([]byte, 4096); ; {
		changed()
		_, err := events.Read(buf)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil && !errors.Is(err, unix.ENOBUFS) { // then there were many
			return fmt.Errorf("receive the kernel's events: %w", err)
		}
	}
}

// restoreSysctls undoes what a daemon changed and didn't restore: this one when
// it ends, or an earlier one that was killed.
func restoreSysctls(o Options) {
	restored, err := hoststate.RestoreSysctls(o.StateDir)
	for _, c := range restored {
		o.Logger.Info("restored", "sysctl", c.Path, "value", c.Before)
	}
	if err != nil {
		o.Logger.Warn("what was changed on the host is not restored", "error", err)
	}
}

// readSysctl returns a variable's value, "" if this kernel has none of the name.
func readSysctl(path string) (string, error) {
	text, err := os.ReadFile(filepath.Join("/proc/sys/net", path))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return strings.TrimSpace(string(text)), err
}
