package host_test

import (
	"bytes"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"uvxlan/bench/e2e"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"uvxlan/bench/cluster"
)

// Each thing that can be wrong at the start ends the daemon with one line that
// says what to do.
func TestIntegrationStartErrors(t *testing.T) {
	w := e2e.NewWorld(t, "kb21")
	stateDir := t.TempDir()
	args := []string{e2e.DaemonBinary, "-etcd-endpoints", w.Cluster.Endpoint, "-subnet-file", t.TempDir() + "/subnet.env", "-state-dir", stateDir, "-control-socket", t.TempDir() + "/uvxlan.sock"}
	var lock *os.File
	nl := w.Host("kb21").Netlink()
	for _, c := range []struct {
		name    string
		command []string
		prepare func() error
		undo    func() error
		exit    int // 0 means 1
		want    []string
	}{
		{
			name:    "no /dev/net/tun",
			command: append([]string{"unshare", "--mount", "sh", "-c", `mount -t tmpfs none /dev/net && exec "$@"`, "sh"}, args...),
			want:    []string{"/dev/net/tun", "modprobe tun"},
		},
		{
			name:    "/dev/net/tun is a file",
			command: append([]string{"unshare", "--mount", "sh", "-c", `mount -t tmpfs none /dev/net && : >/dev/net/tun && exec "$@"`, "sh"}, args...),
			want:    []string{"no /dev/net/tun: in its place is a plain file", "remove that first", "modprobe tun"},
		},
		{
			name:    "/dev/net/tun is a directory",
			command: append([]string{"unshare", "--mount", "sh", "-c", `mount -t tmpfs none /dev/net && mkdir /dev/net/tun && exec "$@"`, "sh"}, args...),
			want:    []string{"no /dev/net/tun: in its place is a directory", "--device /dev/net/tun"},
		},
		{
			name:    "too many open files",
			command: append(append([]string{"prlimit", "--nofile=48"}, args...), "-workers", "8"),
			want:    []string{"too many open files", "RLIMIT_NOFILE is 48", "a worker needs", "LimitNOFILE="},
		},
		{
			name:    "no CAP_NET_ADMIN",
			command: append([]string{"setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"}, args...),
			want:    []string{"CAP_NET_ADMIN", "run as root"},
		},
		{
			name:    "no iptables",
			command: append(append([]string{"env", "PATH=/nowhere"}, args...), "-ip-masq"),
			want:    []string{"-ip-masq", "iptables can't be used", "install iptables", "EnableNFTables"},
		},
		{
			name:    "no IPv6 address",
			command: args,
			prepare: func() error { return w.Cluster.SetConfig(w.Context(), e2e.DualConfig) },
			undo:    func() error { return w.Cluster.SetConfig(w.Context(), e2e.VXLANConfig) },
			want:    []string{"eth0 has no IPv6 address that peers could be told", "-iface", "fe80::", "link-local"},
		},
		{
			name:    "another daemon",
			command: args,
			prepare: func() (err error) {
				lock, err = e2e.LockState(stateDir)
				return err
			},
			undo: func() error { return lock.Close() },
			want: []string{"uvxland runs (pid " + strconv.Itoa(os.Getpid()) + ")", "-state-dir"},
		},
		{
			name:    "no place for state",
			command: append(slices.Clip(args), "-state-dir", "/proc/uvxlan"),
			want:    []string{"/proc/uvxlan", "state directory", "-state-dir"},
		},
		{
			name:    "no place for the subnet file",
			command: append(slices.Clip(args), "-subnet-file", "/proc/uvxlan/subnet.env"),
			want:    []string{"/proc/uvxlan", "subnet file", "-subnet-file"},
		},
		{
			name:    "port in use",
			command: args,
			prepare: func() error {
				attrs := netlink.NewLinkAttrs()
				attrs.Name = "other"
				link := &netlink.Vxlan{LinkAttrs: attrs, VxlanId: 77, Port: 4789}
				if err := nl.LinkAdd(link); err != nil {
					return err
				}
				return nl.LinkSetUp(link)
			},
			undo: func() error {
				link, err := nl.LinkByName("other")
				if err != nil {
					return err
				}
				return nl.LinkDel(link)
			},
			want: []string{"4789", "in use", "ss -lunp"},
		},
		{
			name:    "bad config",
			command: args,
			prepare: func() error {
				r := w.Registry()
				return r.SetConfig(w.Context(), []byte(`{"Network":"172.7.0.0/16","SubnetLen":12,"Backend":{"Type":"carrier-pigeon"}}`))
			},
			undo: func() error { return w.Cluster.SetConfig(w.Context(), e2e.VXLANConfig) },
			want: []string{"SubnetLen", "12", "carrier-pigeon", "vxlan"},
		},
		{
			name:    "overlay over underlay",
			command: args,
			prepare: func() error {
				return w.Cluster.SetConfig(w.Context(), `{"Network":"192.168.0.0/16","Backend":{"Type":"vxlan"}}`)
			},
			undo: func() error { return w.Cluster.SetConfig(w.Context(), e2e.VXLANConfig) },
			want: []string{"192.168.14.21", "inside the overlay network"},
		},
		{
			name:    "no such interface",
			command: append(slices.Clip(args), "-iface", "eth9"),
			want:    []string{"eth9", "eth0"},
		},
		{
			name:    "no interface that fits",
			command: append(slices.Clip(args), "-iface-regex", "^wlan", "-iface-can-reach", "192.168.14.21"),
			want:    []string{`"^wlan" matches no address and no name`, "192.168.14.21 is no other host's address", "eth0 (up) 192.168.14.21"},
		},
		{
			name:    "leases in Kubernetes",
			command: append(slices.Clip(args), "-kube-subnet-mgr=true"),
			exit:    2,
			want:    []string{"-kube-subnet-mgr: set NODE_NAME", "POD_NAMESPACE"},
		},
		{
			name:    "host-gw behind a NAT",
			command: append(slices.Clip(args), "-iface", "eth0", "-public-ip", "203.0.113.7"),
			prepare: func() error { return w.Cluster.SetConfig(w.Context(), e2e.HostGWConfig) },
			undo:    func() error { return w.Cluster.SetConfig(w.Context(), e2e.VXLANConfig) },
			want:    []string{"host-gw", "203.0.113.7", "not on eth0", "192.168.14.21", "-iface", "-public-ip"},
		},
		{
			name:    "foreign interface of the name",
			command: args,
			prepare: func() error {
				attrs := netlink.NewLinkAttrs()
				attrs.Name = "flannel.1"
				return nl.LinkAdd(&netlink.Bridge{LinkAttrs: attrs})
			},
			undo: func() error {
				link, err := nl.LinkByName("flannel.1")
				if err != nil {
					return err
				}
				return nl.LinkDel(link)
			},
			want: []string{"flannel.1", "bridge", "ip link delete"},
		},
		{
			name:    "offload refused", // runs don't pass an interface of a smaller MTU
			command: append(slices.Clip(args), "-offload=on"),
			prepare: func() error { return setMTU(nl, "lo", 900) },
			undo:    func() error { return setMTU(nl, "lo", 65536) },
			want:    []string{"-offload=on", "refuses gso"},
		},
		{
			name: "read-only /proc/sys",
			command: append([]string{"unshare", "--mount", "sh", "-c",
				`mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec "$@"`, "sh"}, args...),
			want: []string{"accept_local", "make /proc/sys/net writable"},
		},
		{
			name:    "route in the way",
			command: args,
			prepare: func() error { return routeBy(nl, "eth0", nl.RouteAdd) },
			undo:    func() error { return routeBy(nl, "eth0", nl.RouteDel) },
			want:    []string{"172.7.0.0/16", "route exists", "another Network"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.prepare != nil {
				if err := c.prepare(); err != nil {
					t.Fatal(err)
				}
			}
			cmd, out := e2e.NewCommand(t, w, c.command...)
			err := cmd.Run()
			lines := strings.Split(strings.TrimSpace(out.String()), "\n")
			last := lines[len(lines)-1]
			if err == nil || cmd.ProcessState.ExitCode() != max(c.exit, 1) || !strings.HasPrefix(last, "uvxland: ") {
				t.Errorf("it ended with %v: %s", err, out)
			}
			for _, want := range c.want {
				if !strings.Contains(last, want) {
					t.Errorf("the line doesn't say %q: %s", want, last)
				}
			}
			if c.undo != nil {
				if err := c.undo(); err != nil {
					t.Fatal(err)
				}
			}
			if leases, _, err := w.Registry().List(w.Context()); err != nil || len(leases) != 0 {
				t.Errorf("it took a lease nevertheless: %v, %v", leases, err)
			}
		})
	}
}

func setMTU(nl *netlink.Handle, name string, mtu int) error {
	link, err := nl.LinkByName(name)
	if err != nil {
		return err
	}
	return nl.LinkSetMTU(link, mtu)
}

func routeBy(nl *netlink.Handle, name string, do func(*netlink.Route) error) error {
	link, err := nl.LinkByName(name)
	if err != nil {
		return err
	}
	return do(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: e2e.IPNet(e2e.OverlayNetwork), Scope: netlink.SCOPE_LINK})
}

// The device comes up, and the subnet file says so, only once the peers are
// known: before that their containers would be told to be unreachable.
func TestIntegrationDeviceWaitsForPeers(t *testing.T) {
	w := e2e.NewWorld(t, "kb21", "kb22")
	w.Start("kb22")
	d, err := w.Cluster.Start(t.Context(), w.Host("kb21"))
	if err != nil {
		t.Fatal(err)
	}
	w.LeaseOf("kb21")
	e2e.Freeze(t, w.Etcd.Process)
	for end := time.Now().Add(time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		link, err := w.Host("kb21").Netlink().LinkByName("flannel.1")
		if err != nil {
			t.Fatal(err)
		}
		file, err := os.ReadFile(d.SubnetFile())
		if err != nil {
			t.Fatal(err)
		}
		up, ready := link.Attrs().RawFlags&unix.IFF_UP != 0, bytes.Contains(file, []byte("FLANNEL_MTU="))
		if (up || ready) && !strings.Contains(e2e.LogOf(t, d), "peers loaded") {
			t.Fatalf("before the peers are known: the device is up: %t; the subnet file is written: %t", up, ready)
		}
	}
	if err := w.Etcd.Process.Signal(unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := d.Ready(w.Context()); err != nil {
		t.Fatal(err)
	}
	w.Mesh("kb21", "kb22")
}

// Without etcd the daemon says so once, waits, and comes up when etcd does; a
// SIGTERM meanwhile ends it in order.
func TestIntegrationWaitsForEtcd(t *testing.T) {
	w := e2e.NewWorld(t, "kb21", "kb22")
	w.StopEtcd()
	d, err := w.Cluster.Start(t.Context(), w.Host("kb21"))
	if err != nil {
		t.Fatal(err)
	}
	log := func() string { return e2e.LogOf(t, d) }
	for ctx := w.Context(); !strings.Contains(log(), w.Cluster.Endpoint); time.Sleep(5 * time.Millisecond) {
		if ctx.Err() != nil {
			t.Fatalf("it doesn't say that etcd is away: %s", log())
		}
	}
	e2e.AwaitStatus(t, d, "it has tried again", func(s e2e.Status) bool { return s.Etcd.Errors > 4 })
	if n := strings.Count(log(), w.Cluster.Endpoint); n != 1 {
		t.Errorf("it says %d times that etcd is away: %s", n, log())
	}
	if err := d.Stop(w.Context()); err != nil {
		t.Errorf("SIGTERM while it waits: %v", err)
	}
	again, err := w.Cluster.Start(t.Context(), w.Host("kb21"))
	if err != nil {
		t.Fatal(err)
	}
	w.StartEtcd()
	if err := again.Ready(w.Context()); err != nil {
		t.Fatal(err)
	}
}

// flanneld leaves its kernel device behind; the daemon takes its place, and the
// host keeps the lease that flanneld had.
func TestIntegrationTakesOverFromFlannel(t *testing.T) {
	w := e2e.NewWorld(t, "kb21", "kb22")
	w.Start("kb22")
	flannel := e2e.NewKernelPeer(t, w.Host("kb21"))
	old, err := w.Registry().Create(w.Context(), flannel.Lease(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	w.Start("kb21")
	w.Mesh("kb21", "kb22")
	l := w.LeaseOf("kb21")
	if !l.Equal(old) {
		t.Errorf("the lease was %+v and is %+v", old, l)
	}
}

// The embedded etcd serves the other hosts too.
func TestIntegrationEmbeddedEtcd(t *testing.T) {
	w := e2e.NewWorld(t, "kb21", "kb22")
	w.StopEtcd()
	w.Cluster.Embedded = true
	if _, err := w.Cluster.Start(t.Context(), w.Host("kb21")); err != nil {
		t.Fatal(err)
	}
	w.Configure(e2e.VXLANConfig)
	d, err := w.Cluster.Start(t.Context(), w.Host("kb22"))
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Ready(w.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := cluster.Reach(w.Context(), w.Container("kb21").Node, w.Container("kb22"), 1450); err != nil {
		t.Fatal(err)
	}
	if err := d.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := d.Wait(); err != nil {
		t.Error(err)
	}
}

// What the daemon leaves on the host is on record as soon as it is there, and
// the record is free to use when the daemon was killed.
func TestIntegrationHostState(t *testing.T) {
	w := e2e.NewWorld(t, "kb21")
	d := w.Start("kb21")[0]
	if _, err := e2e.LockState(d.StateDir()); err == nil || !strings.Contains(err.Error(), strconv.Itoa(d.Process.Pid)) {
		t.Errorf("while it runs the lock is free: %v", err)
	}
	if m := e2e.ReadManifest(t, d.StateDir()); m.Device != "flannel.1" || m.SubnetFile != d.SubnetFile() {
		t.Errorf("the manifest is %+v", m)
	}
	if err := d.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-d.Done()
	lock, err := e2e.LockState(d.StateDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	w.Start("kb21")
}
