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
// ([Router.Apply]), before or while the router runs. [Router.Run] moves packets until
// its context ends. [Router.Close] gives everything back; a router is used once. Any
// number of them fit into a process, each on a port or an address of its own.
//
// Hosts of one layer-2 network may do without VXLAN, peer by peer (package
// uvxlan/tunnel/onlink), or altogether (uvxlan/tunnel/hostgw).
//
// # What it needs
//
// Opening and configuring a device needs CAP_NET_ADMIN, and the direct modes need
// what [onlink.Mode] says; the UDP sockets need nothing. What opens something does so
// in the network namespace of the calling thread, so a goroutine that has entered
// another must be locked to its thread. What is open stays where it was opened.
//
// The device is the kernel's, by one of several drivers (see [device.Open]), or
// anything else that is a [device.Device]: [device.WrapWireGuard] makes one of a TCP/IP
// stack in the process, and package uvxlan/tunnel/tunneltest has one in memory. Nor
// need the underlay be sockets: [underlay.Memory] is a network in memory. Those take
// no privilege.
//
// Workers that are busy never block, and GOMAXPROCS counts them: it should be
// greater than their number by what the rest of the program needs.
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
