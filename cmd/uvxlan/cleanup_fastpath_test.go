package main

import (
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"uvxlan/cmd/internal/hoststate"
)

// leaveFilter leaves a program at eth0 as a killed daemon does where the kernel has no
// tcx links.
func leaveFilter(t *testing.T, name string, handle uint32) {
	t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	eth0, err := netlink.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	index := eth0.Attrs().Index
	_ = netlink.QdiscAdd(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{ // it may be there
		LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}})
	err = netlink.FilterAdd(&netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: index, Parent: netlink.HANDLE_MIN_INGRESS, Handle: handle, Protocol: unix.ETH_P_ALL, Priority: 49152},
		Fd:          p.FD(), Name: name, DirectAction: true,
	})
	if err != nil {
		t.Fatal(err)
	}
}

// The fast path of the daemon on record goes, and another daemon's stays.
func TestIntegrationCleanupFastPath(t *testing.T) {
	newHost(t)
	dir := filepath.Join(t.TempDir(), "state")
	if err := (hoststate.State{Device: "flannel.1"}).Save(dir); err != nil {
		t.Fatal(err)
	}
	leaveFilter(t, "uvxlan-fastpath flannel.1", 2)
	leaveFilter(t, "uvxlan-fastpath flannel.7", 8)
	leaveFilter(t, "somebody's", 9)
	const ours, theirs = `tc filter "uvxlan-fastpath flannel.1" at the ingress of eth0`, `tc filter "uvxlan-fastpath flannel.7" at the ingress of eth0`
	expectLines(t, cleanup(t, dir, true), "would remove "+ours, "would remove manifest "+hoststate.Path(dir))
	expectLines(t, cleanup(t, dir, false), "removed "+ours, "removed manifest "+hoststate.Path(dir))
	expectLines(t, cleanup(t, dir, false), "left "+theirs+": not on record in "+dir+"; -all removes it", "nothing to remove")
	expectLines(t, cleanupAll(t, dir, false), "removed "+theirs)
	eth0, err := netlink.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	left, err := netlink.FilterList(eth0, netlink.HANDLE_MIN_INGRESS)
	if err != nil || len(left) != 1 {
		t.Errorf("the filters left are %v, %v", left, err)
	}
}
