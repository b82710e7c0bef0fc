package main

import (
	"fmt"
	"io"

	"uvxlan/internal/cli"
)

// topics are those of the flags. Each flag belongs to one.
func topics() []cli.Group {
	return []cli.Group{
		{Title: "etcd", Flags: []string{
			"etcd-endpoints", "etcd-prefix", "etcd-cafile", "etcd-certfile", "etcd-keyfile", "etcd-username", "etcd-password", "embedded-etcd", "embedded-etcd-listen",
		}},
		{Title: "Kubernetes", Flags: []string{
			"kube-subnet-mgr", "kube-api-url", "kubeconfig-file", "kube-annotation-prefix", "net-config-path", "set-node-network-unavailable",
		}},
		{Title: "The host's lease", Flags: []string{"subnet-file", "cni-conf", "subnet-lease-renew-margin", "stored-lease-expired", "state-dir", "takeover"}},
		{Title: "The interface to the other hosts", Flags: []string{"iface", "iface-regex", "iface-can-reach", "public-ip", "public-ipv6"}},
		{Title: "Firewall and routes", Flags: []string{
			"ip-masq", "ip-masq-fully-random-disable", "iptables-forward-rules", "iptables-resync", "ip-blackhole-route", "proc-sys-net",
		}},
		{Title: "Data path", Flags: []string{
			"fast-path", "workers", "device-driver", "offload", "offload-disable", "source-check", "huge-pages",
		}},
		{Title: "Health, metrics and control", Flags: []string{"healthz-ip", "healthz-port", "probe-interval", "control-socket"}},
		{Title: "Log and version", Flags: []string{"v", "version"}},
		{Title: "For flannel's sake", Flags: []string{
			"vmodule", "log_backtrace_at", "log_dir", "logtostderr", "alsologtostderr", "stderrthreshold",
		}},
	}
}

// printHelp lists the flags by topic.
func printHelp(out io.Writer) {
	fmt.Fprint(out, "uvxland joins this host's containers into one network with those of other hosts.\n\n",
		"usage: uvxland [flags]\n",
		"       uvxland completion bash|zsh|fish   print the script by which a shell completes the flags\n",
		"       uvxland man                        print the manual page\n\n",
		"Each flag may be a variable instead: -public-ip is FLANNELD_PUBLIC_IP. The command line wins.\n")
	_, fs := define()
	cli.PrintFlags(out, fs, topics())
}
