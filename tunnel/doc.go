// Package tunnel moves packets between a TUN device and VXLAN peers (RFC 7348)
// in user space.
//
// A [Router] owns one TUN device and one set of UDP sockets. Each of its workers
// is a goroutine locked to an OS thread that serves one queue of the device and
// one receiving socket, in both directions, and runs to completion: nothing is
// handed from one goroutine to another. What the workers share is the peer
// table, which they read without a lock, and which [Router.Apply]
// replaces as leases come and go.
//
// # Use
//
// [Open] makes a router of a device and sockets of its own. Where they come from
// elsewhere, [New] makes one of a [device.Device] and an [underlay.Underlay], with as
// many queues of the one as workers of the other. Peers are given by hand
// ([Router.ReplacePeers], [Router.UpdatePeers]) or as a watch of leases reports them
// ([Router.Apply]; the example of uvxlan/lease/etcd is the whole of it), before or
// while the router runs. [Router.Run] moves packets until its context ends.
// [Router.Close] gives everything back; a router is used once. Any number of them fit
// into a process, each on a port or an address of its own.
//
// The module is not on any proxy. A go.mod names a checkout of it:
//
//	require uvxlan v0.0.0
//	replace uvxlan => ../uvxlan
//
// The packages of the data path:
//
//   - tunnel: the router, its peers and workers
//   - tunnel/device: TUN devices, opened, adopted or wrapped
//   - tunnel/link: what the device's interface needs: addresses, routes, MTU
//   - tunnel/underlay: the UDP sockets, or a network in memory in their place
//   - tunnel/fastpath: plain packets carried in the kernel, by eBPF
//   - tunnel/onlink: which peers are on-link, and their path without VXLAN
//   - tunnel/hostgw: host-gw, kernel routes alone
//   - tunnel/tunnelprom: a router's statistics as a Prometheus collector
//   - tunnel/tunneltest: a device in memory, for tests without privileges
//   - encap: bytes: frames, headers, checksums, superpackets
//   - lease, lease/etcd: who owns which subnet, and where that is kept
//
// Without tunnelprom and lease/etcd a program links no etcd client, gRPC, Prometheus or
// TCP/IP stack. The least program that opens and runs a router has 5.3 MB,
// 3.5 MB stripped (go build with CGO_ENABLED=0, and with -ldflags="-s -w", linux/amd64).
//
// # What it needs
//
//   - [device.Open] and [link.Configure]: CAP_NET_ADMIN, be it in a user namespace of
//     its own, /dev/net/tun and a writable /proc/sys/net.
//   - [underlay.Listen]: nothing. It asks for large buffers: 8 MiB to receive, 128 KiB
//     to 2 MiB to send, as the link takes it. With CAP_NET_ADMIN of the host it has
//     them, else what net.core.rmem_max and wmem_max allow.
//   - [uvxlan/tunnel/fastpath.Attach]: CAP_NET_ADMIN and CAP_BPF.
//   - [onlink.Open]: CAP_NET_RAW with [onlink.Socket], and CAP_NET_ADMIN for the
//     kernel to look for peers' MACs when nothing else does; CAP_NET_ADMIN with
//     [onlink.Route], as for [uvxlan/tunnel/hostgw.Open].
//   - [device.WrapWireGuard] with a TCP/IP stack in the process, the device of
//     uvxlan/tunnel/tunneltest and [underlay.Memory]: nothing. The program
//     uvxlan/tunnel/examples/netstack joins an overlay that way, without root.
//
// What opens something does so in the network namespace of the calling thread, so a
// goroutine that has entered another must be locked to its thread. What is open stays
// where it was opened. The device may be in one namespace and the sockets in another,
// as rootless containers need it: [Inside] opens them elsewhere, [device.Adopt],
// [underlay.Adopt] and [onlink.Open] take descriptors that somebody else has opened,
// and need no privilege. The router owns what it is given and closes it; after an
// error it is still the caller's. [Router.Release] stops a router between two packets
// and gives its descriptors back.
//
// All else is the caller's: the context, the logger (without one nothing is logged),
// signals and GOMAXPROCS. Each worker holds a thread, and under load a CPU, so
// GOMAXPROCS should exceed the number of workers by at least 2; where it doesn't
// exceed it, a packet that comes alone costs more CPU and time as well.
//
// # Errors
//
// Those that a caller may want to tell apart are variables, to be found with
// [errors.Is]; after [device.ErrGone] and [underlay.ErrGone] a new router can go on
// with the peers of the old one. What goes wrong with single packets is counted
// by reason ([Stats], [DropReason]) and never ends a router.
//
// # Inside
//
// To follow a packet: outbound.go from the device to the wire, inbound.go from
// the wire to the device, worker.go for the loop around both.
//
// The package runs on Linux. It has no state but its routers', logs only to the
// logger it is given and starts nothing before [Router.Run].
package tunnel
