// Package kube runs a real Kubernetes cluster on a lab: two nodes with containerd,
// kubelet and kube-proxy, and a control plane with etcd in the lab's router. The
// programs of Kubernetes are those that `make kube-tools` builds; containerd, runc,
// etcd and the CNI plugins are the machine's.
//
//	kb-router 192.168.14.1: etcd, kube-apiserver, -controller-manager, -scheduler
//	   +-- kb21 192.168.14.21 --+
//	   +-- kb22 192.168.14.22 --+ containerd, kubelet, kube-proxy, pods
//
// A node is a network namespace of the lab and a mount namespace: what its programs
// and pods write below /etc, /opt, /run and /var is its own. All its processes are in
// the lab's namespaces or in its control group, so that the lab's Close ends them, and
// the mounts go with the last of them.
package kube
