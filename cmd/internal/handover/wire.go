package handover

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"golang.org/x/sys/unix"

	"uvxlan/tunnel/fastpath"
)

// wire is a connection between a daemon that offers its place and the process that
// takes it. The taker says hello, the daemon answers with its state; the taker says
// stop, the daemon answers once it carries no packets any longer. Or the taker says
// quit, and the daemon ends. Whoever dies says nothing.
type wire struct{ conn *net.UnixConn }

// message is one of these, in JSON, its length before it. An answer with an Error
// is a refusal.
type message struct {
	Error string `json:"error,omitempty"`
	// Of a hello, and of the answer to it.
	Format  int    `json:"format,omitempty"`
	Version string `json:"version,omitempty"`
	PID     int    `json:"pid,omitempty"`
	Netns   string `json:"netns,omitempty"` // of a hello
	// Of the answer to stop: the descriptors by which a fast path stays attached.
	FastPath *fastpath.Descriptors `json:"fast_path,omitempty"`
	Stop     bool                  `json:"stop,omitempty"`
	Quit     bool                  `json:"quit,omitempty"`
	// More says that a message follows, which has more of the descriptors.
	More bool `json:"more,omitempty"`
}

const (
	// maxRights is how many descriptors one message may carry (SCM_MAX_FD in
	// include/net/scm.h).
	maxRights = 253
	// maxMessage bounds a message's text, in bytes.
	maxMessage = 64 << 10
)

// errTooLong refuses a message that isn't one of ours.
var errTooLong = fmt.Errorf("a message of more than %d bytes", maxMessage)

// send sends a message with copies of the descriptors.
func (w wire) send(m message, fds ...int) error {
	if err := w.conn.SetWriteDeadline(time.Now().Add(messageTime)); err != nil {
		return err
	}
	for {
		part := fds[:min(len(fds), maxRights)]
		fds = fds[len(part):]
		m.More = len(fds) > 0
		text, err := json.Marshal(m)
		if err != nil {
			return err
		}
		if len(text) > maxMessage {
			return errTooLong
		}
		var rights []byte
		if len(part) > 0 {
			rights = unix.UnixRights(part...)
		}
		text = append(binary.BigEndian.AppendUint32(nil, uint32(len(text))), text...)
		// The descriptors come with the first byte.
		n, _, err := w.conn.WriteMsgUnix(text, rights, nil)
		if err == nil && n < len(text) {
			_, err = w.conn.Write(text[n:])
		}
		if err != nil || !m.More {
			return err
		}
		m = message{}
	}
}

// receive waits for a message until ctx ends. The limit is for the whole of it; 0 is
// none. The descriptors are the caller's, unless there is an error. io.EOF means that
// the other process has ended.
func (w wire) receive(ctx context.Context, limit time.Duration) (m message, fds []int, err error) {
	var until time.Time
	if limit > 0 {
		until = time.Now().Add(limit)
	}
	if err := w.conn.SetReadDeadline(until); err != nil {
		return m, nil, err
	}
	defer context.AfterFunc(ctx, func() { _ = w.conn.SetReadDeadline(time.Unix(1, 0)) })()
	defer func() {
		if err != nil {
			closeAll(fds)
			fds = nil
		}
	}()
	for first := true; ; first = false {
		part, more, err := w.receiveOne()
		fds = append(fds, more...)
		if err != nil {
			return m, fds, err
		}
		if first {
			m = part
		}
		if !part.More {
			m.More = false
			return m, fds, nil
		}
	}
}

func (w wire) receiveOne() (m message, fds []int, err error) {
	var length [4]byte
	rights := make([]byte, unix.CmsgSpace(4*maxRights))
	n, oob, flags, _, err := w.conn.ReadMsgUnix(length[:], rights)
	if err != nil {
		return m, nil, err
	}
	if n == 0 {
		return m, nil, io.EOF
	}
	if fds, err = parseRights(rights[:oob]); err != nil {
		return m, fds, err
	}
	if flags&unix.MSG_CTRUNC != 0 {
		return m, fds, errors.New("descriptors were lost: too many open files")
	}
	if _, err := io.ReadFull(w.conn, length[n:]); err != nil {
		return m, fds, err
	}
	size := binary.BigEndian.Uint32(length[:])
	if size > maxMessage {
		return m, fds, errTooLong
	}
	text := make([]byte, size)
	if _, err := io.ReadFull(w.conn, text); err != nil {
		return m, fds, err
	}
	return m, fds, json.Unmarshal(text, &m)
}

// hasEnded tells whether the other process has, whatever it has sent before.
func (w wire) hasEnded() bool {
	raw, err := w.conn.SyscallConn()
	if err != nil {
		return true
	}
	ended := true
	err = raw.Control(func(fd uintptr) {
		fds := []unix.PollFd{{Fd: int32(fd)}}
		_, err := unix.Poll(fds, 0)
		ended = err == nil && fds[0].Revents&unix.POLLHUP != 0
	})
	return err != nil || ended
}

// keepOpen has the connection end with this process, and no earlier: the collector
// closes what nobody uses.
func (w wire) keepOpen() {
	if raw, err := w.conn.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _, _ = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) })
	}
}

func parseRights(oob []byte) (fds []int, err error) {
	if len(oob) == 0 {
		return nil, nil
	}
	all, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	for i := range all {
		some, err := unix.ParseUnixRights(&all[i])
		fds = append(fds, some...)
		if err != nil {
			return fds, err
		}
	}
	return fds, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}
