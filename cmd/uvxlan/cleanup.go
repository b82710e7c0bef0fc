package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"uvxlan/cmd/internal/atomicfile"
	"uvxlan/cmd/internal/blackhole"
	"uvxlan/cmd/internal/control"
	"uvxlan/cmd/internal/firewall"
	"uvxlan/cmd/internal/hoststate"
	"uvxlan/cmd/internal/leasefile"
	"uvxlan/cmd/internal/subnetfile"
	"uvxlan/cmd/internal/sysctl"
	"uvxlan/tunnel/device"
	"uvxlan/tunnel/fastpath"
	"uvxlan/tunnel/kroute"
	"uvxlan/tunnel/link"
)

// defineCleanup removes what daemons have left on this host.
func defineCleanup(fs *flag.FlagSet) action {
	c := cleaner{out: os.Stdout}
	fs.StringVar(&c.dir, "state-dir", hoststate.DefaultDir, "state `directory` of the daemon")
	fs.BoolVar(&c.all, "all", false, "also remove what looks like a daemon's on this host without being on record, such as flannel's tables and chains")
	fs.BoolVar(&c.dry, "n", false, "print what there is to remove and leave it")
	sysctls := fs.String("proc-sys-net", sysctl.Root, "`directory` in which the kernel's network variables can be written")
	output := outputFlag(fs, os.Stdout)
	return func(context.Context, []string) error {
		sysctl.WriteBelow(*sysctls)
		p, err := output()
		if err != nil {
			return err
		}
		if !p.json {
			return c.run()
		}
		c.out = io.Discard
		err = c.run()
		return errors.Join(p.writeJSON(c.result()), err)
	}
}

// cleaned is what cleanup did in the command's JSON.
type cleaned struct {
	// Removed is what was removed, or with -n would be.
	Removed []string `json:"removed"`
	// Left is what is there and was left alone, each with the reason.
	Left []string `json:"left"`
	Dry  bool     `json:"dry_run"`
}

func (c *cleaner) result() cleaned {
	return cleaned{Removed: append([]string{}, c.removed...), Left: append([]string{}, c.left...), Dry: c.dry}
}

// cleaner removes what is ours from the host, in the calling thread's network
// namespace, and prints a line for each thing.
type cleaner struct {
	out io.Writer
	dir string
	dry bool // print only
	all bool // also what isn't on record

	hadLock       bool // before we took it
	removed, left []string
}

func (c *cleaner) run() error {
	err := c.clean()
	if errors.Is(err, hoststate.ErrRunning) {
		return fmt.Errorf("%w: %s", err, hoststate.Remedy(err))
	}
	return err
}

// clean removes the manifest last: what fails before remains known.
func (c *cleaner) clean() error {
	lock, err := c.lock()
	if err != nil {
		return err
	}
	if lock != nil {
		defer lock.Close()
	}
	state, err := hoststate.Load(c.dir)
	if err != nil {
		return err
	}
	err = errors.Join(c.routes(state.Networks), c.blackhole(state.Blackhole), c.blackhole(state.BlackholeV6),
		c.firewall(state), c.fastPath(state.Device), c.device(state.Device), c.sysctls(state.Sysctls),
		c.subnetFile(state), c.cniConfig(state.CNIConfig), c.socket("control", state.ControlSocket),
		c.socket("handover", hoststate.HandoverPath(c.dir)), c.file("leases", leasefile.Path(c.dir)))
	if err != nil {
		return err
	}
	if err := errors.Join(c.manifest(state), c.lockFile(lock)); err != nil {
		return err
	}
	if etcd := hoststate.EtcdDir(c.dir); exists(etcd) {
		c.leave("%s: the embedded etcd's data", etcd)
	}
	if len(c.removed) == 0 {
		c.print("nothing to remove")
	}
	return nil
}

// lock keeps daemons from starting meanwhile. It is nil where there is no state
// directory, or nothing may be made in it.
func (c *cleaner) lock() (*hoststate.Lock, error) {
	c.hadLock = exists(hoststate.LockPath(c.dir))
	if !c.hadLock && (c.dry || !exists(c.dir)) {
		return nil, nil
	}
	return hoststate.Acquire(c.dir)
}

func (c *cleaner) print(format string, args ...any) { fmt.Fprintf(c.out, format+"\n", args...) }

// remove prints what is removed, and removes it unless that is only to be
// printed.
func (c *cleaner) remove(what string, do func() error) error {
	if !c.dry {
		if err := do(); err != nil {
			return err
		}
	}
	c.note(what)
	return nil
}

func (c *cleaner) note(what string) {
	c.removed = append(c.removed, what)
	verb := "removed"
	if c.dry {
		verb = "would remove"
	}
	c.print("%s %s", verb, what)
}

// leave prints what there is that isn't removed, and why.
func (c *cleaner) leave(format string, args ...any) {
	what := fmt.Sprintf(format, args...)
	c.left = append(c.left, what)
	c.print("left %s", what)
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// routes removes those that a daemon's peers had, which stay when it is killed:
// into the networks on record, or all daemons'. The network's own goes with the
// device.
func (c *cleaner) routes(of []hoststate.Network) error {
	why := ""
	if len(of) == 0 && !c.all {
		why = c.unrecorded()
	}
	list := kroute.RemoveLeftover
	if c.dry || why != "" {
		list = kroute.Leftover
	}
	var networks []netip.Prefix
	for _, n := range of {
		if !c.all {
			networks = append(networks, n.Network)
		}
	}
	routes, err := list(kroute.Protocol, networks...)
	for _, r := range routes {
		c.tell(fmt.Sprintf("route %s via %s dev %s", r.Subnet, r.Via, deviceName(r.Link)), why)
	}
	return err
}

// tell tells what was found: that it was removed, or left for the reason why, if
// there is one.
func (c *cleaner) tell(what, why string) {
	if why != "" {
		c.leave("%s: %s; -all removes it", what, why)
		return
	}
	c.note(what)
}

// blackhole removes the route that drops what is sent to the host's own subnet.
func (c *cleaner) blackhole(subnet netip.Prefix) error {
	found, err := blackhole.Exists(subnet)
	if err != nil || !found {
		return err
	}
	return c.remove("route blackhole "+subnet.String(), func() error {
		_, err := blackhole.Remove(subnet)
		return err
	})
}

// firewall removes the networks' rules, as far as there are any on record, or with
// -all flannel's chains and tables as a whole. Another daemon that has rules in them
// puts them back. Flannel's own rules for the network are the same as ours: whoever
// has replaced the subnet file since has taken them over.
func (c *cleaner) firewall(state hoststate.State) error {
	why := ""
	switch {
	case c.all:
	case len(state.Networks) == 0 || !state.Firewall:
		why = c.unrecorded()
	case c.replaced(state):
		why = theirs
	}
	list := firewall.Remove
	if c.dry || why != "" {
		list = firewall.Leftover
	}
	var policies []firewall.Policy
	for _, n := range state.Networks {
		if !c.all {
			policies = append(policies, firewall.Policy{Network: n.Network, Subnet: n.Subnet})
		}
	}
	found, err := list(policies...)
	for _, what := range found {
		c.tell(what, why)
	}
	return err
}

// theirs is why what looks like ours is left.
const theirs = "another daemon, such as flanneld, has written the subnet file since"

// unrecorded is why what may be ours or not is left.
func (c *cleaner) unrecorded() string { return "not on record in " + c.dir }

// replaced tells whether somebody else has written the subnet file since we did,
// such as flanneld.
func (c *cleaner) replaced(state hoststate.State) bool {
	info, err := os.Stat(state.SubnetFile)
	if err != nil {
		return false
	}
	if !state.SubnetFileTime.IsZero() {
		return !info.ModTime().Equal(state.SubnetFileTime)
	}
	file, err := subnetfile.Read(state.SubnetFile)
	ours := func(n hoststate.Network) bool { return n.Subnet == file.Subnet || n.Subnet == file.SubnetV6 }
	return err == nil && len(state.Networks) > 0 && !slices.ContainsFunc(state.Networks, ours)
}

// fastPath detaches the programs that a killed daemon has left at interfaces.
func (c *cleaner) fastPath(device string) error {
	why := ""
	if device == "" && !c.all {
		why = c.unrecorded()
	}
	list := fastpath.RemoveStale
	if c.dry || why != "" {
		list = fastpath.Stale
	}
	if c.all {
		device = ""
	}
	found, err := list(device)
	for _, what := range found {
		c.tell(what, why)
	}
	return err
}

// device removes a TUN device that no process holds. Anything else of its name
// isn't ours.
func (c *cleaner) device(name string) error {
	if name == "" {
		return nil
	}
	kind, err := link.Stale(name)
	switch {
	case errors.Is(err, device.ErrExists):
		c.leave("%v", err)
		return nil
	case err != nil || kind == "":
		return err
	case kind == "vxlan":
		c.leave("interface %s: the kernel's VXLAN, not ours", name)
		return nil
	}
	return c.remove("interface "+name, func() error {
		_, err := link.RemoveStale(name)
		return err
	})
}

// sysctls restores those that still have the value that was set.
func (c *cleaner) sysctls(all []hoststate.Sysctl) error {
	var errs []error
	for _, s := range all {
		inForce, err := s.InForce()
		if err == nil && inForce {
			err = c.remove(fmt.Sprintf("sysctl net/%s=%s, set back to %s", s.Path, s.Set, s.Before), s.Restore)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (c *cleaner) subnetFile(state hoststate.State) error {
	switch path := state.SubnetFile; {
	case path == "":
		return nil
	case c.replaced(state) && !c.all:
		c.tell("subnet file "+path, theirs)
		return nil
	default:
		return c.file("subnet file", path)
	}
}

func (c *cleaner) cniConfig(path string) error {
	if path == "" {
		return nil
	}
	return c.file("CNI configuration", path)
}

// file removes a file, and what a writer that was killed left beside it.
func (c *cleaner) file(what, path string) error {
	var errs []error
	for _, p := range []string{path, atomicfile.Unfinished(path)} {
		if exists(p) {
			errs = append(errs, c.remove(what+" "+p, func() error { return os.Remove(p) }))
		}
	}
	return errors.Join(errs...)
}

// socket removes a socket that no daemon answers on any longer.
func (c *cleaner) socket(what, path string) error {
	if path == "" {
		return nil
	}
	stale, err := control.Stale(context.Background(), path)
	if err != nil {
		c.leave("%s socket %s: %v", what, path, err)
		return nil
	}
	if !stale {
		return nil
	}
	return c.remove(what+" socket "+path, func() error { return os.Remove(path) })
}

// manifest removes it, but for what only a newer version can remove.
func (c *cleaner) manifest(s hoststate.State) error {
	path := hoststate.Path(c.dir)
	switch unknown := s.Unknown(); {
	case len(unknown) == 0:
		return c.file("manifest", path)
	default:
		c.leave("manifest %s: %s is a newer version's, whose cleanup removes it", path, strings.Join(unknown, ", "))
	}
	if c.dry {
		return nil
	}
	return s.OnlyUnknown().Save(c.dir)
}

// lockFile removes the lock's file.
func (c *cleaner) lockFile(lock *hoststate.Lock) error {
	switch {
	case lock == nil:
		return nil
	case !c.hadLock:
		return lock.Remove()
	}
	return c.remove("lock "+hoststate.LockPath(c.dir), lock.Remove)
}

func deviceName(index int) string {
	if i, err := net.InterfaceByIndex(index); err == nil {
		return i.Name
	}
	return strconv.Itoa(index)
}
