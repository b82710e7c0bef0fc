// Package etcd keeps leases in etcd v3, under flannel's keys and in flannel's
// form: <prefix>/config and <prefix>/subnets/10.5.52.0-24. Hosts that run
// flannel and hosts that run uvxlan share them.
package etcd
