package firewall

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// messageBuffer holds the longest report; the kernel's are below 32 KiB.
	messageBuffer = 64 << 10
	// generic is the length of the header that nfnetlink puts before the
	// attributes (linux/netfilter/nfnetlink.h, struct nfgenmsg).
	generic = 4
)

// watch reports on the channel that our table has changed, or may have, until
// ctx ends; wg waits for what does it. It sees our own changes as well.
func (n *nfTables) watch(ctx context.Context, wg *sync.WaitGroup) (<-chan struct{}, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (unix.NFNLGRP_NFTABLES - 1)}); err != nil {
		return nil, errors.Join(fmt.Errorf("subscribe to nftables' events: %w", err), unix.Close(fd))
	}
	socket := os.NewFile(uintptr(fd), "nftables events")
	context.AfterFunc(ctx, func() { socket.Close() })
	events := make(chan struct{}, 1)
	wg.Go(func() { n.read(socket, events) })
	return events, nil
}

func (n *nfTables) read(socket *os.File, events chan<- struct{}) {
	buf := make([]byte, messageBuffer)
	for {
		size, err := socket.Read(buf)
		lost := errors.Is(err, unix.ENOBUFS) // more than the socket holds
		if err != nil && !lost {
			return
		}
		if !lost && !n.concerns(buf[:size]) {
			continue
		}
		select {
		case events <- struct{}{}:
		default: // one is waiting already
		}
	}
}

// concerns tells whether messages are about our table.
func (n *nfTables) concerns(b []byte) bool {
	messages, err := syscall.ParseNetlinkMessage(b)
	if err != nil {
		return true
	}
	for _, m := range messages {
		if m.Header.Type>>8 == unix.NFNL_SUBSYS_NFTABLES && len(m.Data) >= generic &&
			m.Data[0] == byte(n.table.Family) && tableName(m.Data[generic:]) == n.table.Name {
			return true
		}
	}
	return false
}

// tableName is the table that a table, chain or rule is reported of: the
// attribute has the same number in each.
func tableName(attributes []byte) string {
	for len(attributes) >= unix.SizeofNlAttr {
		length := int(binary.NativeEndian.Uint16(attributes))
		if length < unix.SizeofNlAttr || length > len(attributes) {
			return ""
		}
		if binary.NativeEndian.Uint16(attributes[2:]) == unix.NFTA_TABLE_NAME {
			return unix.ByteSliceToString(attributes[unix.SizeofNlAttr:length])
		}
		attributes = attributes[min((length+3)&^3, len(attributes)):]
	}
	return ""
}
