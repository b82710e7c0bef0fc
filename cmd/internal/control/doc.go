// Package control tells how a running daemon is: the operator's command by a
// unix socket, and whoever watches the host by HTTP. Both read what a [Source]
// says at that moment, and change nothing.
package control
