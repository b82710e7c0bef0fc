// Package lease says which host owns which container subnet.
//
// It holds the cluster's configuration and its leases in flannel's forms, the
// rules by which a host gets a subnet, and a [Manager]. The manager takes a
// lease, renews it and follows everybody else's. Where leases are stored is
// behind the [Registry] interface, which the packages uvxlan/lease/etcd and
// uvxlan/lease/kube implement.
//
// A host reads the configuration ([Manager.Config]), takes a lease
// ([Manager.Acquire]) and keeps it ([Manager.Run]). Run also reports the other
// hosts' leases as [Update] values, which are just what a router's Apply takes.
// All three wait while the registry doesn't answer, until their context ends. A
// lease outlives the process that took it, so that a host gets its subnet
// again.
package lease
