package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"uvxlan/cmd/internal/attach"
	"uvxlan/cmd/internal/flagenv"
	"uvxlan/internal/cli"
	"uvxlan/tunnel/device"
)

// flannelFlags are flannel's, with its defaults and a value that may be given.
var flannelFlags = []struct{ name, value, given string }{
	{"etcd-endpoints", "http://127.0.0.1:4001,http://127.0.0.1:2379", "http://192.0.2.1:2379"},
	{"etcd-prefix", "/coreos.com/network", "/other"},
	{"etcd-keyfile", "", "/key.pem"},
	{"etcd-certfile", "", "/cert.pem"},
	{"etcd-cafile", "", "/ca.pem"},
	{"etcd-username", "", "somebody"},
	{"etcd-password", "", "secret"},
	{"iface", "", "eth7"},
	{"iface-regex", "", `^10\.|^eth`},
	{"iface-can-reach", "", "192.0.2.9"},
	{"public-ip", "", "192.0.2.7"},
	{"public-ipv6", "", ""},
	{"subnet-file", "/run/flannel/subnet.env", "/other.env"},
	{"subnet-lease-renew-margin", "60", "1439"},
	{"ip-blackhole-route", "false", "true"},
	{"kube-subnet-mgr", "false", "false"},
	{"kube-api-url", "", ""},
	{"kubeconfig-file", "", ""},
	{"kube-annotation-prefix", "flannel.alpha.coreos.com", "flannel.alpha.coreos.com"},
	{"net-config-path", "/etc/kube-flannel/net-conf.json", "/etc/kube-flannel/net-conf.json"},
	{"set-node-network-unavailable", "true", "false"},
	{"version", "false", "false"},
	{"v", "0", "1"},
	{"vmodule", "", "manager=2"},
	{"log_backtrace_at", "", "manager.go:7"},
}

func TestFlannelFlags(t *testing.T) {
	_, fs := define()
	for _, f := range flannelFlags {
		if got := fs.Lookup(f.name); got == nil || got.DefValue != f.value || got.Usage == "" {
			t.Errorf("-%s is %+v, want the default %q", f.name, got, f.value)
		}
	}
}

// Every flag is taken from the command line, with one dash or two, and from its
// variable.
func TestFlannelFlagsGiven(t *testing.T) {
	var args []string
	for i, f := range flannelFlags {
		args = append(args, "--"[i%2:]+f.name+"="+f.given)
	}
	ways := map[string][]string{"command line": args, "environment": nil}
	for way, args := range ways {
		t.Run(way, func(t *testing.T) {
			for _, f := range flannelFlags {
				if args == nil {
					t.Setenv(flagenv.Name("FLANNELD_", f.name), f.given)
				} else {
					t.Setenv(flagenv.Name("FLANNELD_", f.name), "")
				}
			}
			f, err := parse(args)
			if err != nil {
				t.Fatal(err)
			}
			o := f.options(io.Discard)
			if o.Etcd.Endpoints[0] != "http://192.0.2.1:2379" || o.Etcd.Prefix != "/other" || o.Etcd.Username != "somebody" || o.Etcd.Password != "secret" ||
				o.Etcd.CAFile != "/ca.pem" || o.Etcd.CertFile != "/cert.pem" || o.Etcd.KeyFile != "/key.pem" {
				t.Errorf("etcd: %+v", o.Etcd)
			}
			i := o.Interface
			if !slices.Equal(i.Names, []string{"eth7"}) || len(i.Patterns) != 1 || i.Patterns[0].String() != `^10\.|^eth` ||
				i.CanReach.String() != "192.0.2.9" || i.PublicIP.String() != "192.0.2.7" {
				t.Errorf("interface: %+v", i)
			}
			if o.SubnetFile != "/other.env" || o.RenewMargin != 1439*time.Minute || !o.Blackhole {
				t.Errorf("options: %+v", o)
			}
		})
	}
}

func TestRepeatedFlags(t *testing.T) {
	f, err := parse([]string{"-iface=eth0", "-iface", "eth1", "-iface-regex=a", "--iface-regex", "b", "-iface=", "-iface-regex="})
	if err != nil {
		t.Fatal(err)
	}
	i := f.options(io.Discard).Interface
	if !slices.Equal(i.Names, []string{"eth0", "eth1"}) || len(i.Patterns) != 2 || i.Patterns[1].String() != "b" {
		t.Errorf("the interface is %+v", i)
	}
	if f.options(io.Discard).RenewMargin != time.Hour || f.options(io.Discard).Blackhole {
		t.Errorf("the defaults are %+v", f.options(io.Discard))
	}
}

func TestDeviceDriverFlag(t *testing.T) {
	for given, want := range map[string]device.Driver{"": device.DriverAuto, "water": device.DriverWater} {
		t.Setenv("FLANNELD_DEVICE_DRIVER", given)
		f, err := parse(nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := f.options(io.Discard).Overlay.Driver; got != want {
			t.Errorf("%q: the driver is %s, want %s", given, got, want)
		}
	}
}

func TestFastPathFlag(t *testing.T) {
	for given, want := range map[string]attach.Mode{"": attach.Auto, "on": attach.On, "off": attach.Off} {
		t.Setenv("FLANNELD_FAST_PATH", given)
		f, err := parse([]string{"-iptables-resync=7"})
		if err != nil {
			t.Fatal(err)
		}
		if o := f.options(io.Discard).Overlay; o.FastPath != want || o.FastPathCheck != 7*time.Second {
			t.Errorf("%q: the mode is %s, looked at every %s", given, o.FastPath, o.FastPathCheck)
		}
	}
}

func TestFlagsRefused(t *testing.T) {
	const alone = ": has no effect without -kube-subnet-mgr"
	t.Setenv("NODE_NAME", "")
	t.Setenv("POD_NAME", "p")
	for _, c := range []struct {
		args string
		want []string
	}{
		{"-kube-subnet-mgr", []string{"-kube-subnet-mgr: set NODE_NAME in the environment, or POD_NAME and POD_NAMESPACE"}},
		{"-kube-subnet-mgr -embedded-etcd", []string{"-embedded-etcd and -kube-subnet-mgr"}},
		{"-kube-api-url=https://192.0.2.1 -kubeconfig-file=/k", []string{"-kube-api-url, -kubeconfig-file" + alone}},
		{"-kube-annotation-prefix=example.com", []string{"-kube-annotation-prefix" + alone}},
		{"-net-config-path=/n", []string{"-net-config-path" + alone}},
		{"-public-ipv6=192.0.2.1", []string{"-public-ipv6 192.0.2.1", "must be an IPv6 address"}},
		{"-public-ipv6=fe80::1", []string{"-public-ipv6 fe80::1", "not link-local"}},
		{"-public-ip=2001:db8::1", []string{"-public-ip 2001:db8::1", "must be an IPv4 address"}},
		{"-iface-can-reach=2001:db8::1", []string{"-iface-can-reach 2001:db8::1", "must be an IPv4 address"}},
		{"-iface-regex=( -iface-regex=eth0", []string{"-iface-regex", "missing closing )"}},
		{"-subnet-lease-renew-margin=0", []string{"-subnet-lease-renew-margin 0", "from 1 to 1439 minutes"}},
		{"-subnet-lease-renew-margin=1440", []string{"-subnet-lease-renew-margin 1440", "from 1 to 1439 minutes"}},
		{"-fast-path=yes", []string{`-fast-path "yes": must be auto, on or off`}},
		{"-device-driver=tap", []string{`-device-driver: device driver "tap"`, "auto native wireguard water"}},
		{"-etcd-certfile=/c", []string{"-etcd-certfile and -etcd-keyfile: give both or neither"}},
		{"-etcd-keyfile=/k -etcd-cafile=/ca", []string{"-etcd-certfile and -etcd-keyfile: give both or neither"}},
		{"-embedded-etcd -embedded-etcd-listen=eth0", []string{`-embedded-etcd-listen "eth0": must be an address`}},
		{"-embedded-etcd-listen=127.0.0.1", []string{"has no effect without -embedded-etcd"}},
		{"-fastpath=off", []string{"unknown flag -fastpath: did you mean -fast-path?"}},
		{"-probe-interval=10ms", []string{"-probe-interval 10ms", "0 or at least 1s"}},
		{"-workers=many", []string{`-workers "many": must be a whole number`}},
		{"-public-ip=eth0", []string{`-public-ip "eth0": must be an IP address`}},
		{"-etcd-endpoints=ftp://192.0.2.1:2379", []string{"ftp://192.0.2.1:2379"}},
		{"run", []string{`unexpected argument "run": all settings are flags`}},
		{"-subnet-lease-renew-margin=0 -kube-subnet-mgr", []string{"from 1 to 1439", "-kube-subnet-mgr: set NODE_NAME"}},
	} {
		_, err := parse(strings.Fields(c.args))
		if !errors.Is(err, cli.ErrUsage) || strings.Contains(err.Error(), "\n  -") {
			t.Errorf("%s: %v, want a short error of usage", c.args, err)
			continue
		}
		for _, want := range c.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: it doesn't say %q: %v", c.args, want, err)
			}
		}
	}
}

// A variable's wrong value is named with what it must be, as a flag's is.
func TestVariableRefused(t *testing.T) {
	t.Setenv("FLANNELD_WORKERS", "many")
	_, err := parse(nil)
	if !errors.Is(err, cli.ErrUsage) || err.Error() != `FLANNELD_WORKERS="many": must be a whole number` {
		t.Error(err)
	}
}

// The help lists each flag once, under a topic.
func TestEachFlagHasATopic(t *testing.T) {
	_, fs := define()
	count := map[string]int{}
	for _, topic := range topics() {
		for _, name := range topic.Flags {
			count[name]++
			if fs.Lookup(name) == nil {
				t.Errorf("%s: there is no -%s", topic.Title, name)
			}
		}
	}
	fs.VisitAll(func(f *flag.Flag) {
		if count[f.Name] != 1 {
			t.Errorf("-%s is listed %d times", f.Name, count[f.Name])
		}
	})
	var out strings.Builder
	printHelp(&out)
	for _, want := range []string{"\netcd:\n  -embedded-etcd\n", "\nData path:\n  -device-driver driver\n", "FLANNELD_PUBLIC_IP"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, &out)
		}
	}
}

// Each shell completes every flag.
func TestCompletionHasEveryFlag(t *testing.T) {
	_, fs := define()
	for shell, form := range map[string]string{"bash": "-%s", "zsh": "'-%s[", "fish": "complete -c uvxland -o %s -d"} {
		var script strings.Builder
		if ok, err := runWord(&script, []string{"completion", shell}); !ok || err != nil {
			t.Fatal(err)
		}
		fs.VisitAll(func(f *flag.Flag) {
			if !strings.Contains(script.String(), fmt.Sprintf(form, f.Name)) {
				t.Errorf("%s completes no -%s", shell, f.Name)
			}
		})
	}
	for _, p := range program().Commands {
		for name := range p.Choices {
			if fs.Lookup(name) == nil {
				t.Errorf("there are choices for -%s", name)
			}
		}
	}
	for _, args := range []string{"completion", "completion tcsh"} {
		if ok, err := runWord(io.Discard, strings.Fields(args)); !ok || cli.ExitCode(err) != 2 {
			t.Errorf("%s: %v", args, err)
		}
	}
	if ok, _ := runWord(io.Discard, []string{"-v", "1"}); ok {
		t.Error("a flag is taken for a word")
	}
}

// Unit files of years ago start the daemon, or are told what took the place of what
// they ask for.
func TestOldFlags(t *testing.T) {
	if _, err := parse(strings.Fields("--logtostderr=true --alsologtostderr -log_dir /var/log/flannel -stderrthreshold=INFO -v=4 -vmodule=x=1")); err != nil {
		t.Error(err)
	}
	for args, want := range map[string]string{
		"--remote=10.4.7.12:8888":  "-remote: flannel's server of leases is no more: give -etcd-endpoints instead",
		"-v 1 -listen 0.0.0.0:888": "-listen: flannel's server of leases is no more: give -etcd-endpoints instead",
		"-networks=a,b":            "-networks: a daemon has one network: start one for each, with an -etcd-prefix, -subnet-file, -state-dir and -control-socket of its own",
	} {
		if _, err := parse(strings.Fields(args)); err == nil || err.Error() != want || cli.ExitCode(err) != 2 {
			t.Errorf("%s: %v, want %s", args, err, want)
		}
	}
}
