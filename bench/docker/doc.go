// Package docker runs Docker on the hosts of a lab as users run it beside
// flannel: a dockerd on each host, whose bridge has the subnet and the MTU of
// uvxland's subnet file, and containers that serve HTTP to each other. The lab
// must be one with Options.Bare, since Docker brings its own bridge.
//
// An engine's data, sockets and mounts are apart from those of every other, of
// the machine's own Docker too: it has a mount namespace in which what all of
// them share is hidden, and its containers are in the lab's control group. The
// docker command reaches it by [Engine.Socket].
package docker
