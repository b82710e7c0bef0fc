package trace

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// attributes are the attributes of a netlink message, or those nested in
// another attribute.
type attributes []byte

// each calls f for all attributes in order, until it fails.
func (a attributes) each(f func(kind uint16, data []byte) error) error {
	for len(a) > 0 {
		kind, data, rest, ok := a.first()
		if !ok {
			return errShort
		}
		if err := f(kind, data); err != nil {
			return err
		}
		a = rest
	}
	return nil
}

// typeMask takes the flags off an attribute's type (linux/netlink.h,
// NLA_TYPE_MASK).
const typeMask = 1<<14 - 1

func (a attributes) first() (kind uint16, data []byte, rest attributes, ok bool) {
	if len(a) < unix.SizeofNlAttr {
		return 0, nil, nil, false
	}
	n := int(binary.NativeEndian.Uint16(a))
	if n < unix.SizeofNlAttr || n > len(a) {
		return 0, nil, nil, false
	}
	return binary.NativeEndian.Uint16(a[2:]) & typeMask, a[unix.SizeofNlAttr:n], a[min(padded(n), len(a)):], true
}

// get returns the attribute of a type, nil if there is none.
func (a attributes) get(kind uint16) attributes {
	for len(a) > 0 {
		k, data, rest, ok := a.first()
		if !ok {
			return nil
		}
		if k == kind {
			return data
		}
		a = rest
	}
	return nil
}

func (a attributes) has(kind uint16) bool { return a.get(kind) != nil }

func (a attributes) text(kind uint16) string { return unix.ByteSliceToString(a.get(kind)) }

// number returns the 32-bit number in the attribute of a type, 0 if there is
// none.
func (a attributes) number(kind uint16) uint32 {
	if b := a.get(kind); len(b) == 4 {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

// value returns the bytes of an attribute that holds data.
func (a attributes) value(kind uint16) []byte { return a.get(kind).get(unix.NFTA_DATA_VALUE) }

// with returns the attributes and one more, which holds a text.
func (a attributes) with(kind uint16, text string) attributes {
	a = binary.NativeEndian.AppendUint16(a, uint16(unix.SizeofNlAttr+len(text)+1))
	a = append(binary.NativeEndian.AppendUint16(a, kind), text...)
	a = append(a, 0)
	return append(a, make([]byte, padded(len(a))-len(a))...)
}

// message is one message of an answer.
type message struct {
	family byte
	attributes
}

const (
	// header is the length of struct nfgenmsg (linux/netfilter/nfnetlink.h).
	header = 4
	// tries is how many times a dump is requested if changes interrupt it.
	tries = 5
	// receiveBuffer holds the longest message; the kernel's are below 32 KiB.
	receiveBuffer = 64 << 10
	// patience bounds the wait for the kernel's answer, in seconds.
	patience = 5
)

// conversation asks the kernel about nftables.
type conversation struct {
	fd  int
	seq uint32
	buf []byte
}

func openConversation() (*conversation, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	c := &conversation{fd: fd, buf: make([]byte, receiveBuffer)}
	err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	if err == nil {
		err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: patience})
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open netlink socket: %w", err), unix.Close(fd))
	}
	return c, nil
}

func (c *conversation) close() { unix.Close(c.fd) }

// ask sends an nftables request and returns the messages of the answer.
func (c *conversation) ask(kind uint16, family byte, flags uint16, with attributes) (all []message, err error) {
	for range tries {
		if all, err = c.askOnce(kind, family, flags, with); !errors.Is(err, unix.EINTR) {
			return all, err
		}
	}
	return nil, fmt.Errorf("the rules change all the time: %w", err)
}

func (c *conversation) askOnce(kind uint16, family byte, flags uint16, with attributes) ([]message, error) {
	c.seq++
	b := binary.NativeEndian.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+header+len(with)))
	b = binary.NativeEndian.AppendUint16(b, unix.NFNL_SUBSYS_NFTABLES<<8|kind)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST|unix.NLM_F_ACK|flags)
	b = binary.NativeEndian.AppendUint32(b, c.seq)
	b = binary.NativeEndian.AppendUint32(b, 0)
	b = append(append(b, family, unix.NFNETLINK_V0, 0, 0), with...)
	if err := unix.Sendto(c.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, os.NewSyscallError("sendto", err)
	}
	return c.answer(flags&unix.NLM_F_DUMP != 0)
}

// answer reads to the end of a dump, or to the acknowledgement of any other
// request.
func (c *conversation) answer(dump bool) (all []message, err error) {
	var interrupted error
	for {
		n, _, err := unix.Recvfrom(c.fd, c.buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, os.NewSyscallError("recvfrom", err)
		}
		messages, err := syscall.ParseNetlinkMessage(append([]byte(nil), c.buf[:n]...))
		if err != nil {
			return nil, fmt.Errorf("parse the kernel's answer: %w", err)
		}
		for _, m := range messages {
			if m.Header.Seq != c.seq {
				continue // an earlier question's
			}
			if m.Header.Flags&unix.NLM_F_DUMP_INTR != 0 {
				interrupted = unix.EINTR
			}
			switch {
			case m.Header.Type == unix.NLMSG_DONE:
				return all, interrupted
			case m.Header.Type == unix.NLMSG_ERROR && len(m.Data) >= 4:
				if code := int32(binary.NativeEndian.Uint32(m.Data)); code != 0 {
					return nil, syscall.Errno(-code)
				}
				if !dump {
					return all, nil
				}
			case len(m.Data) >= header:
				all = append(all, message{m.Data[0], m.Data[header:]})
			}
		}
	}
}
