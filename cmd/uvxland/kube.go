package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"

	"uvxlan/cmd/internal/daemon"
)

// Defaults of flannel's.
const (
	annotationPrefix = "flannel.alpha.coreos.com"
	netConfigPath    = "/etc/kube-flannel/net-conf.json"
)

// kubeFlags are flannel's for leases in Kubernetes.
type kubeFlags struct {
	on           bool
	options      daemon.KubeOptions
	setCondition bool
}

func (k *kubeFlags) define(fs *flag.FlagSet) {
	fs.BoolVar(&k.on, "kube-subnet-mgr", false, "take leases from Kubernetes: subnets are the nodes' podCIDRs; NODE_NAME in the environment names this one, or POD_NAME and POD_NAMESPACE a pod on it")
	fs.StringVar(&k.options.URL, "kube-api-url", "", "`URL` of the API server (default: the kubeconfig's, or in a pod the service's)")
	fs.StringVar(&k.options.Kubeconfig, "kubeconfig-file", "", "kubeconfig `file` that says how to get in (default: by the pod's service account)")
	fs.StringVar(&k.options.AnnotationPrefix, "kube-annotation-prefix", annotationPrefix, "`prefix` of the nodes' annotations")
	fs.StringVar(&k.options.ConfigFile, "net-config-path", netConfigPath, "`file` of the network configuration, with -kube-subnet-mgr")
	fs.BoolVar(&k.setCondition, "set-node-network-unavailable", true, "keep the node's condition NetworkUnavailable False, with -kube-subnet-mgr")
}

// check takes the node's name from the environment, as flannel does.
func (k *kubeFlags) check(fs *flag.FlagSet) error {
	if !k.on {
		return k.withoutEffect(fs)
	}
	if f := fs.Lookup("embedded-etcd"); f.Value.String() == "true" {
		return errors.New("-embedded-etcd and -kube-subnet-mgr: leases are in etcd or in Kubernetes: give one of them")
	}
	o := &k.options
	o.Node, o.Pod, o.PodNamespace = os.Getenv("NODE_NAME"), os.Getenv("POD_NAME"), os.Getenv("POD_NAMESPACE")
	o.LeaveCondition = !k.setCondition
	if daemon.HasKube && o.Node == "" && (o.Pod == "" || o.PodNamespace == "") {
		return errors.New("-kube-subnet-mgr: set NODE_NAME in the environment, or POD_NAME and POD_NAMESPACE")
	}
	if err := o.Check(); err != nil {
		return fmt.Errorf("-kube-subnet-mgr: %w", err)
	}
	return nil
}

// withoutEffect refuses flags that ask for Kubernetes. The node's condition is a thing
// of -kube-subnet-mgr alone, and asks for nothing without it.
func (*kubeFlags) withoutEffect(fs *flag.FlagSet) error {
	var asked []string
	for _, name := range []string{"kube-api-url", "kubeconfig-file", "kube-annotation-prefix", "net-config-path"} {
		f := fs.Lookup(name)
		if !slices.Contains([]string{"", f.DefValue}, f.Value.String()) {
			asked = append(asked, "-"+name)
		}
	}
	if len(asked) == 0 {
		return nil
	}
	return fmt.Errorf("%s: has no effect without -kube-subnet-mgr", strings.Join(asked, ", "))
}
