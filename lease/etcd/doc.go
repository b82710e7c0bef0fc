// Package etcd keeps leases in etcd v3, under flannel's keys and in flannel's
// form: <prefix>/config and <prefix>/subnets/10.5.52.0-24. Hosts that run
// flannel and hosts that run uvxlan share them.
//
// [Open] makes a [Registry], which a [lease.Manager] uses. Its methods may be
// called at the same time, and their errors are package lease's. When etcd doesn't
// answer they give up with [lease.ErrUnavailable]; it is the manager that tries
// again.
package etcd
