package daemon

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"uvxlan/cmd/internal/attach"
	"uvxlan/cmd/internal/claim"
	"uvxlan/cmd/internal/cniconf"
	"uvxlan/cmd/internal/control"
	"uvxlan/cmd/internal/firewall"
	"uvxlan/cmd/internal/hoststate"
	"uvxlan/cmd/internal/subnetfile"
	"uvxlan/lease"
	"uvxlan/tunnel/device"
	"uvxlan/tunnel/link"
	"uvxlan/tunnel/underlay"
)

func checkCapability() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	if data[0].Effective&(1<<unix.CAP_NET_ADMIN) == 0 {
		return fmt.Errorf("no CAP_NET_ADMIN: %w", unix.EPERM)
	}
	return nil
}

const privileges = "run as root, or with CAP_NET_ADMIN and, for direct routes, CAP_NET_RAW (docker run --cap-add NET_ADMIN --cap-add NET_RAW)"

// explain adds what to do to an error that has a usual remedy.
func explain(err error) error {
	if errors.Is(err, unix.EMFILE) {
		return fmt.Errorf("%w: %s", err, filesWords())
	}
	for _, r := range []struct {
		cause  error
		remedy string
	}{
		{claim.ErrOverlap, "stop it, or set another Network in the network config"},
		{hoststate.ErrRunning, hoststate.Remedy(err) + ", or give each daemon a -state-dir of its own"},
		{hoststate.ErrDir, "choose one that can be written, with -state-dir"},
		{subnetfile.ErrPlace, "choose a place that can be written, with -subnet-file"},
		{cniconf.ErrPlace, "choose a place that can be written, with -cni-conf"},
		{control.ErrInUse, "stop it, or give each daemon a -control-socket of its own"},
		{control.ErrSocket, "choose another path, with -control-socket"},
		{lease.ErrLeaseLost, "the next start takes another subnet, from which the containers need new addresses"},
		{device.ErrNoTUN, "load the driver (modprobe tun), or give the container the device (--device /dev/net/tun)"},
		{underlay.ErrPortInUse, "stop who holds it (ss -lunp), or remove a kernel VXLAN device on it, or set another Port in the network config"},
		{device.ErrExists, "stop the other daemon, or remove the interface (ip link delete)"},
		{device.ErrDriverRefused, "leave -device-driver away, or try water"},
		{attach.ErrNone, "leave -fast-path=on away"},
		{link.ErrRouteExists, "remove it (ip route), or set another Network in the network config"},
		{firewall.ErrNoIPTables, `install iptables and ip6tables, or set "EnableNFTables":true in the network config, or start without -ip-masq`},
		{firewall.ErrNoNFTables, `load the modules (modprobe -a nf_tables nft_chain_nat nft_masq), or leave EnableNFTables out of the network config and install iptables, or start without -ip-masq`},
		{unix.ENFILE, "raise the machine's limit (sysctl fs.file-max)"},
		{unix.EROFS, "make /proc/sys/net writable (docker run --privileged), or mount it elsewhere as well and give that place with -proc-sys-net, or set it from outside"},
		{unix.EPERM, privileges},
		{unix.EACCES, privileges},
	} {
		if errors.Is(err, r.cause) {
			return fmt.Errorf("%w: %s", err, r.remedy)
		}
	}
	return err
}

// What a daemon has open, rounded up: the most of it are a worker's sockets, one for
// each source port.
const (
	filesOfWorker   = 20
	filesOfWorkerV6 = 40 // where the network has IPv6
	filesOfRest     = 60 // with the embedded etcd and the fast path
)

// filesWords says how many open files are allowed and how many are needed.
func filesWords() string {
	limit := "the limit RLIMIT_NOFILE"
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err == nil {
		limit = fmt.Sprintf("%s is %d", limit, r.Max) // Go has raised the soft one to it
	}
	return fmt.Sprintf("%s, and a worker needs %d, %d with IPv6, all else %d: raise it (ulimit -n, LimitNOFILE= of systemd, docker run --ulimit nofile=), or set fewer -workers",
		limit, filesOfWorker, filesOfWorkerV6, filesOfRest)
}
