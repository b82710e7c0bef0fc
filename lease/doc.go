// Package lease says which host owns which container subnet.
//
// It holds the cluster's configuration and its leases in flannel's forms, the
// rules by which a host gets a subnet, and a [Manager] that takes a lease,
// renews it and follows everybody else's. Where leases are stored is behind the
// [Registry] interface; package uvxlan/lease/etcd implements it.
package lease
