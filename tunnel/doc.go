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
// The device is the kernel's, by one of several drivers (see [OpenDevice]), or
// anything else that is a [Device].
//
// To follow a packet: outbound.go from the device to the wire, inbound.go from
// the wire to the device, worker.go for the loop around both.
//
// The package runs on Linux. It has no globals that change, logs only to the
// logger it is given and starts nothing before [Router.Run].
package tunnel
