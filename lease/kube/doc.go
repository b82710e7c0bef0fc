// Package kube takes leases from Kubernetes, as flannel does with
// -kube-subnet-mgr: a Node is a lease, its podCIDRs are the subnets, and its
// annotations carry what the other hosts need to know. Hosts that run flannel and
// hosts that run uvxlan share a cluster.
//
// [Open] makes a [Registry], which a [lease.Manager] uses. Its methods may be called
// at the same time, and their errors are package lease's. When the API server doesn't
// answer, or refuses, they give up with [lease.ErrUnavailable]; it is the manager that
// tries again.
//
// All Nodes are read once. From then on only their metadata are watched, since a Node
// changes every few minutes and is large. A podCIDR never changes as long as its Node
// lives, so it is asked for only with a Node that is new. All Nodes are read again
// only if the API server has forgotten what happened since (HTTP status 410).
package kube
