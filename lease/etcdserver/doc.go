// Package etcdserver runs a single-member etcd inside the process: for a first
// node, a trial on one machine, and tests against the real thing.
package etcdserver
