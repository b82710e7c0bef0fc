// Uvxland joins a host's containers into one network with the containers of
// other hosts, as flanneld does, on hosts whose kernel has no VXLAN.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/netip"
	"os"
	"os/signal"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"uvxlan/cmd/internal/attach"
	"uvxlan/cmd/internal/completion"
	"uvxlan/cmd/internal/control"
	"uvxlan/cmd/internal/daemon"
	"uvxlan/cmd/internal/flagenv"
	"uvxlan/cmd/internal/handover"
	"uvxlan/cmd/internal/health"
	"uvxlan/cmd/internal/logqueue"
	"uvxlan/cmd/internal/overlay"
	"uvxlan/cmd/internal/sysctl"
	"uvxlan/cmd/internal/version"
	"uvxlan/internal/cli"
	"uvxlan/lease/etcd"
	"uvxlan/tunnel/device"
	"uvxlan/tunnel/offload"
)

func main() {
	if ok, err := runWord(os.Stdout, os.Args[1:]); ok {
		if err != nil {
			fmt.Fprintln(os.Stderr, "uvxland:", err)
		}
		os.Exit(cli.ExitCode(err))
	}
	q := openLog()
	code := run(q)
	q.Flush(logqueue.LastWords)
	os.Exit(code)
}

// runWord does what a first word asks for, what packages are made of; ok is false if
// there is none.
func runWord(out io.Writer, args []string) (ok bool, err error) {
	switch {
	case len(args) == 1 && args[0] == "man":
		return true, writeManual(out)
	case len(args) > 0 && args[0] == "completion":
		if len(args) != 2 || !slices.Contains(completion.Shells(), args[1]) {
			return true, cli.Usagef("completion: name one shell: %s", strings.Join(completion.Shells(), ", "))
		}
		return true, program().Write(out, args[1])
	}
	return false, nil
}

// run returns the exit code.
func run(q *logqueue.Queue) int {
	f, err := parse(os.Args[1:])
	switch {
	case errors.Is(err, flag.ErrHelp):
		printHelp(os.Stdout)
		return 0
	case err != nil:
		return failed(q, cli.ExitCode(err), err)
	case f.version:
		fmt.Fprintln(q, version.String())
		return 0
	}
	termination := handover.NotifyTermination()
	reloads := make(chan os.Signal, 1)
	signal.Notify(reloads, unix.SIGUSR2)
	o := f.options(q)
	o.Reload, o.LogQueue = reloads, q
	if err := daemon.Run(termination, o); err != nil {
		return failed(q, 1, err)
	}
	return 0
}

// flags are the command line as it was given.
type flags struct {
	endpoints   string
	etcd        etcd.Options
	embedded    bool
	etcdListen  string
	stateDir    string
	expired     string
	takeOver    bool
	ifaces      flagenv.List
	publicIP    netip.Addr
	subnetFile  string
	cniConfig   string
	sysctlDir   string
	healthIP    netip.Addr
	healthPort  int
	socket      string
	mustControl bool // the socket's path was given
	workers     int
	driver      string
	sourceCheck bool
	hugePages   bool
	offload     string
	noOffload   string
	verbosity   int
	kube        kubeFlags
	version     bool
	// between two requests to a peer
	probeInterval time.Duration

	// flannel's others
	ifaceRegexes                         flagenv.List
	ifacePattern                         []*regexp.Regexp // ifaceRegexes, once checked
	canReach                             netip.Addr
	publicIPv6                           netip.Addr
	renewMargin                          int // minutes
	blackhole                            bool
	fastPath                             string
	ipMasq, notRandomFully, forwardRules bool
	iptablesResync                       int
}

const defaultEndpoints = "http://127.0.0.1:4001,http://127.0.0.1:2379"

// define makes the flags with their defaults.
func define() (*flags, *flag.FlagSet) {
	f := &flags{}
	fs := flag.NewFlagSet("uvxland", flag.ContinueOnError)
	fs.StringVar(&f.endpoints, "etcd-endpoints", defaultEndpoints, "comma-separated `URLs` of etcd")
	fs.StringVar(&f.etcd.Prefix, "etcd-prefix", etcd.DefaultPrefix, "etcd key `prefix` of the network")
	fs.StringVar(&f.etcd.CAFile, "etcd-cafile", "", "`file` of the certificates that etcd's is checked against")
	fs.StringVar(&f.etcd.CertFile, "etcd-certfile", "", "`file` of the client certificate for etcd")
	fs.StringVar(&f.etcd.KeyFile, "etcd-keyfile", "", "`file` of the client certificate's key")
	fs.StringVar(&f.etcd.Username, "etcd-username", "", "etcd user `name`")
	fs.StringVar(&f.etcd.Password, "etcd-password", "", "etcd `password`")
	fs.BoolVar(&f.embedded, "embedded-etcd", false, "run an etcd in this process, for a first node or a trial; it asks nobody for a password")
	fs.StringVar(&f.etcdListen, "embedded-etcd-listen", "", "comma-separated `addresses` that the embedded etcd listens on, with or without a port (default: port 2379 of loopback and of the interface to the other hosts)")
	fs.StringVar(&f.stateDir, "state-dir", daemon.DefaultStateDir, "`directory` of what outlives the daemon, one for each: lock, record of changes to the host, the embedded etcd's data")
	fs.Var(&f.ifaces, "iface", "`name or address` of the interface to the other hosts, may be repeated (default: of the default route)")
	fs.TextVar(&f.publicIP, "public-ip", netip.Addr{}, "`address` by which the other hosts reach this one (default: the interface's)")
	fs.BoolVar(&f.takeOver, "takeover", false, "take the place of the daemon that runs with the same -state-dir, if one does, without a lost packet; it works until this one is ready")
	fs.StringVar(&f.expired, "stored-lease-expired", "wait", "what a start without etcd does with a stored lease that has run out: `wait` for etcd, or use it although its subnet may be another host's")
	fs.StringVar(&f.sysctlDir, "proc-sys-net", sysctl.Root, "`directory` in which the kernel's network variables can be written, where a container has another for it")
	fs.StringVar(&f.subnetFile, "subnet-file", daemon.DefaultSubnetFile, "`file` that tells container runtimes the subnet and MTU")
	fs.StringVar(&f.cniConfig, "cni-conf", "", "`file` of a CNI configuration to write, for container runtimes without flannel's plugin (default: none); one of flannel's beside it is used instead")
	fs.TextVar(&f.healthIP, "healthz-ip", netip.IPv4Unspecified(), "`address` that /healthz, /readyz and /metrics are answered on")
	fs.IntVar(&f.healthPort, "healthz-port", 0, "`port` that /healthz, /readyz and /metrics are answered on (default: none)")
	fs.StringVar(&f.socket, "control-socket", control.DefaultSocket, "`path` of the socket for uvxlan status, peers and top, one for each daemon; empty for none")
	fs.DurationVar(&f.probeInterval, "probe-interval", health.DefaultInterval, "`time` between two pings to each peer, by which uvxlan peers and the metrics know its round-trip time and loss; 0 for none")
	fs.IntVar(&f.workers, "workers", 0, "`number` of threads that move packets (default: one a CPU, within the CPU quota of its control group, at most 8)")
	fs.StringVar(&f.driver, "device-driver", string(device.DriverAuto), "`driver` of the TUN device: auto (the first that the kernel allows), native, wireguard or water")
	fs.BoolVar(&f.sourceCheck, "source-check", true, "drop packets whose outer or inner source isn't a peer's")
	fs.BoolVar(&f.hugePages, "huge-pages", false, "keep packets on transparent huge pages, for more resident memory")
	fs.StringVar(&f.offload, "offload", "auto", "move many packets in one step: `auto`, on (refuse to start without) or off")
	fs.StringVar(&f.noOffload, "offload-disable", "", "comma-separated `offloads` to leave alone, of "+offload.All.String())
	fs.StringVar(&f.fastPath, "fast-path", string(attach.Auto), "carry plain packets in the kernel: `auto` (where it can be and bypasses no firewall rule that matters), on (refuse to start without) or off")
	fs.BoolVar(&f.ipMasq, "ip-masq", false, "give what containers send out of the overlay the host's address")
	fs.BoolVar(&f.notRandomFully, "ip-masq-fully-random-disable", false, "leave the choice of masqueraded connections' source ports to the kernel")
	fs.IntVar(&f.iptablesResync, "iptables-resync", 5, "`seconds` after which missing firewall rules are put back")
	fs.BoolVar(&f.forwardRules, "iptables-forward-rules", true, "accept the overlay's packets where the host forwards")
	fs.IntVar(&f.verbosity, "v", 0, "log `level`: 0, or 1 for more")
	fs.BoolVar(&f.version, "version", false, "print the version and exit")
	fs.Var(&f.ifaceRegexes, "iface-regex", "regular `expression` that an address of the interface to the other hosts, or else its name, matches; tried after -iface, may be repeated")
	fs.TextVar(&f.canReach, "iface-can-reach", netip.Addr{}, "use the interface by which the kernel would reach this `address`; tried after -iface-regex")
	fs.TextVar(&f.publicIPv6, "public-ipv6", netip.Addr{}, "IPv6 `address` by which the other hosts reach this one, if the network has IPv6 (default: the interface's)")
	fs.IntVar(&f.renewMargin, "subnet-lease-renew-margin", 60, "`minutes` before its end at which the lease is renewed, from 1 to 1439")
	fs.BoolVar(&f.blackhole, "ip-blackhole-route", false, "drop what is sent to containers of this host that aren't there, while their network isn't up")
	defineOld(fs)
	f.kube.define(fs)
	return f, fs
}

// parse reads the command line. Every error is a [cli.ErrUsage], or flag.ErrHelp if
// help is asked for.
func parse(args []string) (*flags, error) {
	f, fs := define()
	if err := checkGone(args); err != nil {
		return nil, err
	}
	if err := cli.Parse(fs, args); err != nil {
		return nil, err
	}
	if fs.NArg() > 0 {
		return nil, cli.Usagef("unexpected argument %q: all settings are flags, see -help", fs.Arg(0))
	}
	if err := flagenv.Fill(fs, "FLANNELD_"); err != nil {
		return nil, err
	}
	return f, cli.Usage(f.check(fs))
}

func (f *flags) check(fs *flag.FlagSet) error {
	var errs []error
	fs.Visit(func(g *flag.Flag) {
		if g.Name == "etcd-endpoints" && f.embedded {
			errs = append(errs, errors.New("-embedded-etcd brings its own endpoints: leave -etcd-endpoints away"))
		}
		f.mustControl = f.mustControl || g.Name == "control-socket"
	})
	if f.offload != "auto" && f.offload != "on" && f.offload != "off" {
		errs = append(errs, fmt.Errorf("-offload %q: must be auto, on or off", f.offload))
	}
	if f.expired != "wait" && f.expired != "use" {
		errs = append(errs, fmt.Errorf("-stored-lease-expired %q: must be wait or use", f.expired))
	}
	if _, err := offload.Parse(f.noOffload); err != nil {
		errs = append(errs, fmt.Errorf("-offload-disable: %w", err))
	}
	if _, err := device.ParseDriver(f.driver); err != nil {
		errs = append(errs, fmt.Errorf("-device-driver: %w", err))
	}
	if _, err := attach.ParseMode(f.fastPath); err != nil {
		errs = append(errs, fmt.Errorf("-fast-path %w", err))
	}
	if f.workers < 0 || f.workers > 256 {
		errs = append(errs, fmt.Errorf("-workers %d: must be from 0 to 256", f.workers))
	}
	if f.probeInterval != 0 && f.probeInterval < time.Second {
		errs = append(errs, fmt.Errorf("-probe-interval %s: must be 0 or at least 1s", f.probeInterval))
	}
	if f.healthPort < 0 || f.healthPort > math.MaxUint16 {
		errs = append(errs, fmt.Errorf("-healthz-port %d: must be from 0 to %d", f.healthPort, math.MaxUint16))
	}
	if f.publicIP.IsValid() && !f.publicIP.Is4() {
		errs = append(errs, fmt.Errorf("-public-ip %s: must be an IPv4 address", f.publicIP))
	}
	if f.iptablesResync < 1 {
		errs = append(errs, fmt.Errorf("-iptables-resync %d: must be at least 1", f.iptablesResync))
	}
	if _, err := listenAddresses(f.etcdListen); err != nil {
		errs = append(errs, err)
	} else if f.etcdListen != "" && !f.embedded {
		errs = append(errs, errors.New("-embedded-etcd-listen: has no effect without -embedded-etcd"))
	}
	if !f.embedded && !f.kube.on {
		errs = append(errs, f.options(io.Discard).Etcd.Check())
	}
	errs = append(errs, f.checkFlannel(), f.kube.check(fs))
	return errors.Join(errs...)
}

// listenAddresses reads -embedded-etcd-listen.
func listenAddresses(text string) (all []netip.AddrPort, err error) {
	const etcdPort = 2379
	if text == "" {
		return nil, nil
	}
	for s := range strings.SplitSeq(text, ",") {
		s = strings.TrimSpace(s)
		at, err := netip.ParseAddrPort(s)
		if addr, addrErr := netip.ParseAddr(s); addrErr == nil {
			at, err = netip.AddrPortFrom(addr, etcdPort), nil
		}
		if err != nil || at.Port() == 0 {
			return nil, fmt.Errorf("-embedded-etcd-listen %q: must be an address, such as 127.0.0.1 or 192.168.14.21:2379", s)
		}
		all = append(all, at)
	}
	return all, nil
}

// checkFlannel checks those of flannel's flags that need it, and compiles
// -iface-regex.
func (f *flags) checkFlannel() error {
	var errs []error
	for _, text := range f.ifaceRegexes {
		pattern, err := regexp.Compile(text)
		if err != nil {
			errs = append(errs, fmt.Errorf("-iface-regex: %w", err))
		}
		f.ifacePattern = append(f.ifacePattern, pattern)
	}
	if f.canReach.IsValid() && !f.canReach.Is4() {
		errs = append(errs, fmt.Errorf("-iface-can-reach %s: must be an IPv4 address", f.canReach))
	}
	if f.publicIPv6.IsValid() && (!f.publicIPv6.Is6() || f.publicIPv6.Is4In6() || f.publicIPv6.IsLinkLocalUnicast()) {
		errs = append(errs, fmt.Errorf("-public-ipv6 %s: must be an IPv6 address, and not link-local", f.publicIPv6))
	}
	if f.renewMargin < 1 || f.renewMargin > 1439 {
		errs = append(errs, fmt.Errorf("-subnet-lease-renew-margin %d: must be from 1 to 1439 minutes, since a lease lasts a day", f.renewMargin))
	}
	if (f.etcd.CertFile == "") != (f.etcd.KeyFile == "") {
		errs = append(errs, errors.New("-etcd-certfile and -etcd-keyfile: give both or neither"))
	}
	return errors.Join(errs...)
}

func (f *flags) options(log io.Writer) daemon.Options {
	level := slog.LevelInfo
	if f.verbosity > 0 {
		level = slog.LevelDebug
	}
	o := daemon.Options{
		Etcd: f.etcd, EmbeddedEtcd: f.embedded, StateDir: f.stateDir, SubnetFile: f.subnetFile, CNIConfig: f.cniConfig,
		Health: netip.AddrPortFrom(f.healthIP, uint16(f.healthPort)), ControlSocket: f.socket, MustControl: f.mustControl,
		Overlay:       overlay.Options{Workers: f.workers, Driver: device.Driver(f.driver), AnySource: !f.sourceCheck, HugePages: f.hugePages},
		ProbeInterval: f.probeInterval,
		Logger:        slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: level})),
	}
	if f.kube.on {
		o.Kube = &f.kube.options
	}
	o.EmbeddedEtcdListen, _ = listenAddresses(f.etcdListen) // checked before
	if f.offload != "off" {
		disabled, _ := offload.Parse(f.noOffload) // checked before
		o.Overlay.Offloads, o.Overlay.MustOffload = offload.All&^disabled, f.offload == "on"
	}
	o.Overlay.FastPath, _ = attach.ParseMode(f.fastPath) // checked before
	o.Overlay.SysctlDir = f.sysctlDir
	o.Overlay.FastPathCheck = time.Duration(f.iptablesResync) * time.Second
	o.Firewall = daemon.FirewallOptions{
		Masquerade: f.ipMasq, RandomFully: !f.notRandomFully, Forward: f.forwardRules,
		Resync: time.Duration(f.iptablesResync) * time.Second,
	}
	o.Etcd.Endpoints = strings.Split(f.endpoints, ",")
	o.Interface.Names, o.Interface.PublicIP, o.Interface.PublicIPv6 = f.ifaces, f.publicIP, f.publicIPv6
	o.Interface.Patterns, o.Interface.CanReach = f.ifacePattern, f.canReach
	o.TakeOver = f.takeOver
	o.UseExpired = f.expired == "use"
	o.RenewMargin, o.Blackhole = time.Duration(f.renewMargin)*time.Minute, f.blackhole
	return o
}
