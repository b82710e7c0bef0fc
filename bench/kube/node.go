package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"uvxlan/bench/lab"
)

// plugins is where Debian has the CNI plugins.
const plugins = "/usr/lib/cni"

// socket is containerd's, in a node's mount namespace.
const socket = "/run/containerd/containerd.sock"

// script makes what a node writes its own and runs containerd. $1 is the node's
// folder, $2 that for the logs of pods. Mounts that pods make must be seen by the
// kubelet, and those of the kubelet by pods.
const script = `set -eu
mount -t tmpfs none /run
mount --bind "$1/var" /var
mount --bind "$2" /var/log/pods
mount --bind "$1/opt" /opt
mount -t overlay none -o "lowerdir=/etc,upperdir=$1/etc,workdir=$1/etc-work" /etc
mount --make-rshared /
exec containerd --config "$1/containerd.toml"
`

// again runs a program for ever.
const again = `while :; do "$@"; sleep 1; done`

// containerdConfig is that of a machine whose processes may not raise their
// oom_score_adj, as those of a container or of this lab may not.
const containerdConfig = `version = 2
[plugins."io.containerd.grpc.v1.cri"]
  restrict_oom_score_adj = true
  sandbox_image = "` + pauseImage + `"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
`

// Node is a machine of the cluster. Its network is that of the lab's host.
type Node struct {
	*lab.Host

	cluster    *Cluster
	dir        string
	containerd *lab.Cmd
	kubelet    *lab.Cmd
}

// Path is where a file of the node's /etc, /opt or /var is on this machine.
func (n *Node) Path(path string) string { return filepath.Join(n.dir, path) }

// startNode starts a node's programs and waits until it has registered.
func (c *Cluster) startNode(ctx context.Context, h *lab.Host) (*Node, error) {
	n := &Node{Host: h, cluster: c, dir: c.path(h.Name)}
	for _, step := range []func(context.Context) error{
		n.prepare, n.makeGroups, n.startContainerd, n.StartKubelet, n.startProxy, n.awaitRegistration,
	} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// podLogs is the folder for what the node's pods write.
func (n *Node) podLogs() string { return filepath.Join(n.cluster.opts.Logs, n.Name+"-pods") }

// prepare writes the node's files.
func (n *Node) prepare(context.Context) error {
	var errs []error
	for _, dir := range []string{
		"etc/cni/net.d", "etc-work", "opt/cni/bin", "var/log/pods", "var/log/containers", "var/tmp",
		"var/lib/kubelet", "var/lib/containerd", "var/lib/cni",
	} {
		errs = append(errs, os.MkdirAll(n.Path(dir), 0o755))
	}
	errs = append(errs, os.MkdirAll(n.podLogs(), 0o755), os.Symlink("/run", n.Path("var/run")),
		os.WriteFile(n.Path("containerd.toml"), []byte(containerdConfig), 0o644))
	programs, err := os.ReadDir(plugins)
	errs = append(errs, err)
	for _, p := range programs {
		errs = append(errs, os.Symlink(filepath.Join(plugins, p.Name()), n.Path("opt/cni/bin/"+p.Name())))
	}
	a := n.cluster.authority
	errs = append(errs, a.issue(n.Name, "system:node:"+n.Name, "system:nodes", n.Name, n.Address.String()))
	_, err = a.kubeconfig(n.Name, n.cluster.apiURL())
	errs = append(errs, err, n.writeJSON("kubelet.json", n.kubeletConfig()), n.writeJSON("proxy.json", n.proxyConfig()))
	// As kubeadm has it checked before a node joins.
	errs = append(errs, n.Sysctl("ipv4/ip_forward", "1"))
	return errors.Join(errs...)
}

func (n *Node) writeJSON(name string, value any) error {
	text, err := json.Marshal(value)
	return errors.Join(err, os.WriteFile(n.Path(name), text, 0o644))
}

// group is the control group of the node's pods.
func (n *Node) group() string { return filepath.Join("/", lab.ControlGroup, n.Name) }

func (n *Node) kubeletConfig() map[string]any {
	a := n.cluster.authority
	return map[string]any{
		"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
		"containerRuntimeEndpoint": "unix://" + socket,
		"address":                  n.Address.String(), "healthzPort": 0,
		"tlsCertFile": a.file(n.Name + ".crt"), "tlsPrivateKeyFile": a.file(n.Name + ".key"),
		"authentication": map[string]any{
			"anonymous": map[string]bool{"enabled": false}, "webhook": map[string]bool{"enabled": false},
			"x509": map[string]string{"clientCAFile": a.file("ca.crt")},
		},
		"authorization": map[string]string{"mode": "AlwaysAllow"},
		// Control groups of version 1 are what some machines of tests have.
		"failCgroupV1": false, "cgroupDriver": "cgroupfs", "cgroupRoot": n.group(),
		"enforceNodeAllocatable": []string{}, "failSwapOn": false,
		// The disk and memory are the machine's, which others fill too.
		"evictionHard":                map[string]string{"memory.available": "50Mi", "nodefs.available": "0%", "imagefs.available": "0%", "nodefs.inodesFree": "0%"},
		"imageGCHighThresholdPercent": 100, "imageGCLowThresholdPercent": 99, "localStorageCapacityIsolation": false,
	}
}

func (n *Node) proxyConfig() map[string]any {
	return map[string]any{
		"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration", "mode": "nftables",
		"clientConnection": map[string]string{"kubeconfig": n.cluster.authority.file("proxy.kubeconfig")},
		"clusterCIDR":      PodNetwork, "hostnameOverride": n.Name,
		"conntrack": map[string]int{"maxPerCore": 0},
	}
}

// makeGroups makes the node's control group in each hierarchy, where the kubelet
// makes those of pods.
func (n *Node) makeGroups(context.Context) error {
	mounts, err := lab.Hierarchies()
	for _, mount := range mounts {
		err = errors.Join(err, os.MkdirAll(filepath.Join(mount, n.group()), 0o755))
	}
	return err
}

// run starts a process in the node's namespaces that runs until it is killed.
func (n *Node) run(ctx context.Context, log string, argv ...string) (*lab.Cmd, error) {
	return n.cluster.launch(ctx, n.Node, n.Name+"-"+log, n.enter(argv)...)
}

// enter makes a command line run in the node's mount namespace.
func (n *Node) enter(argv []string) []string {
	return append([]string{"nsenter", "--mount=/proc/" + strconv.Itoa(n.containerd.Process.Pid) + "/ns/mnt", "--"}, argv...)
}

// Exec runs a command in the node's namespaces and returns what it wrote.
func (n *Node) Exec(ctx context.Context, argv ...string) (string, error) {
	argv = n.enter(argv)
	out, err := n.Run(ctx, argv[0], argv[1:]...)
	return string(out), err
}

// Ctr runs containerd's command among the pods' containers and images.
func (n *Node) Ctr(ctx context.Context, args ...string) (string, error) {
	return n.Exec(ctx, append([]string{"ctr", "--address", socket, "--namespace", "k8s.io"}, args...)...)
}

// Import gives the node an image out of an archive.
func (n *Node) Import(ctx context.Context, archive string) error {
	if _, err := n.Ctr(ctx, "images", "import", archive); err != nil {
		return fmt.Errorf("import an image into %s: %w", n.Name, err)
	}
	return nil
}

func (n *Node) startContainerd(ctx context.Context) (err error) {
	n.containerd, err = n.cluster.launch(ctx, n.Node, n.Name+"-containerd",
		"unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", n.dir, n.podLogs())
	if err != nil {
		return err
	}
	return Await(ctx, func() error {
		_, err := n.Ctr(ctx, "version")
		return err
	})
}

// StartKubelet starts the kubelet, which registers the node if need be.
func (n *Node) StartKubelet(ctx context.Context) (err error) {
	n.kubelet, err = n.run(ctx, "kubelet", n.cluster.program("kubelet"), "--config="+n.Path("kubelet.json"),
		"--kubeconfig="+n.cluster.authority.file(n.Name+".kubeconfig"), "--hostname-override="+n.Name, "--node-ip="+n.Address.String())
	return err
}

// StopKubelet stops the kubelet. Pods run on.
func (n *Node) StopKubelet(ctx context.Context) error { return n.kubelet.Stop(ctx) }

// startProxy keeps kube-proxy running, as its DaemonSet does elsewhere: it ends when its
// Node is deleted, to begin afresh with the next one.
func (n *Node) startProxy(ctx context.Context) error {
	_, err := n.run(ctx, "proxy", "sh", "-c", again, "sh", n.cluster.program("kube-proxy"), "--config="+n.Path("proxy.json"))
	return err
}

func (n *Node) awaitRegistration(ctx context.Context) error {
	return Await(ctx, func() error {
		select {
		case <-n.kubelet.Done():
			return fmt.Errorf("the kubelet has ended: %s", n.cluster.Tail(n.Name+"-kubelet", 3))
		default:
		}
		_, err := n.PodCIDR(ctx)
		return err
	})
}

// PodCIDR is the subnet that the node has been given; an error if it has none.
func (n *Node) PodCIDR(ctx context.Context) (string, error) {
	cidr, err := n.cluster.Kubectl(ctx, "get", "node", n.Name, "-o", "jsonpath={.spec.podCIDR}")
	if err == nil && cidr == "" {
		err = fmt.Errorf("node %s has no podCIDR", n.Name)
	}
	return cidr, err
}

// Annotations are the node's.
func (n *Node) Annotations(ctx context.Context) (map[string]string, error) {
	text, err := n.cluster.Kubectl(ctx, "get", "node", n.Name, "-o", "jsonpath={.metadata.annotations}")
	if err != nil {
		return nil, err
	}
	var all map[string]string
	return all, json.Unmarshal([]byte(text), &all)
}

// AwaitNetwork waits until containers get addresses of a subnet by uvxlan's
// configuration of CNI.
func (n *Node) AwaitNetwork(ctx context.Context, subnet string) error {
	return Await(ctx, func() error {
		text, err := os.ReadFile(n.Path("etc/cni/net.d/10-uvxlan.conflist"))
		if err == nil && !strings.Contains(string(text), strconv.Quote(subnet)) {
			err = fmt.Errorf("containers of %s get no addresses of %s yet: %s", n.Name, subnet, text)
		}
		return err
	})
}

// AwaitReady waits until the node is ready, as it is once it has a network.
func (n *Node) AwaitReady(ctx context.Context) error {
	return Await(ctx, func() error {
		said, err := n.cluster.Kubectl(ctx, "get", "node", n.Name, "-o",
			`jsonpath={range .status.conditions[?(@.type=="Ready")]}{.status} {.message}{end}`)
		if err == nil && !strings.HasPrefix(said, "True ") {
			err = fmt.Errorf("node %s isn't ready: %s", n.Name, said)
		}
		return err
	})
}
