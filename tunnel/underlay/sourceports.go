package underlay

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"uvxlan/tunnel/internal/descriptor"
	"uvxlan/tunnel/internal/family"
)

const (
	localRange    = "net.ipv4.ip_local_port_range" // IPv6's too
	reservedPorts = "net.ipv4.ip_local_reserved_ports"
	// portShare is the part of the local range that we take at most: a socket that
	// others have bound to no address can't have our ports.
	portShare = 4
)

// openSenders opens each worker's pool. The workers' pools have the same ports:
// a flow keeps its outer addresses and ports whichever worker sends it. Else the
// two ends could chase each other, since the kernel gives a flow to the queue
// that its answers were written to, and the port it then leaves by decides which
// worker of the peer writes and answers.
//
// Where the host has fewer ports to give, there are fewer, and without any the
// receiving sockets send as well.
func (s *socketSet) openSenders(c Config, address netip.Addr) error {
	s.tx = make([][]int, c.Workers)
	for range min(c.SourcePorts, localPorts()/portShare) {
		pool, err := openPort(address, c.Workers)
		if errors.Is(err, ErrPortInUse) {
			break
		}
		if err != nil {
			return err
		}
		for i, fd := range pool {
			s.tx[i] = append(s.tx[i], fd)
		}
	}
	if len(s.tx[0]) > 0 {
		return nil
	}
	for i, fd := range s.rx {
		if err := setOptions(fd, senderOptions(family.Of(address))); err != nil {
			return err
		}
		s.tx[i] = []int{fd}
	}
	return nil
}

// openPort opens a sending socket for each worker, all on one port that the kernel
// chooses.
func openPort(address netip.Addr, workers int) (pool []int, err error) {
	local := netip.AddrPortFrom(address, 0)
	for i := range workers {
		fd, err := openSender(local, i > 0)
		if err != nil {
			return nil, errors.Join(err, descriptor.CloseAll(pool))
		}
		pool = append(pool, fd)
		if i > 0 || workers == 1 {
			continue
		}
		if local, err = share(fd); err != nil {
			return nil, errors.Join(err, descriptor.CloseAll(pool))
		}
	}
	return pool, nil
}

// sendsByReceivers tells whether the receiving sockets send as well.
func (s *socketSet) sendsByReceivers() bool { return s.tx[0][0] == s.rx[0] }

// fewPorts are pools that are smaller than wanted.
type fewPorts struct{ ports, wanted int }

func (u *UDP) countPorts(c Config) {
	ports := c.SourcePorts
	for _, s := range u.sockets {
		if s != nil {
			ports = min(ports, len(s.tx[0]))
		}
	}
	if ports < c.SourcePorts {
		u.fewPorts = fewPorts{ports, c.SourcePorts}
	}
}

// LogFewPorts warns if there are fewer source ports than wanted.
func (u *UDP) LogFewPorts(log *slog.Logger) {
	if f := u.fewPorts; f.ports < f.wanted {
		log.Warn("packets leave from few source ports, by which the network and the peers spread the flows: widen "+localRange,
			"ports", f.ports, "wanted", f.wanted, "range", strings.Join(strings.Fields(readSysctl(localRange)), "-"))
	}
}

// localPorts is how many ports the kernel has to choose from, in the calling
// thread's network namespace; as many as one may want if that can't be read.
func localPorts() int {
	first, last, ok := parseRange(strings.Join(strings.Fields(readSysctl(localRange)), "-"))
	if !ok {
		return math.MaxInt
	}
	n := last - first + 1
	for r := range strings.SplitSeq(readSysctl(reservedPorts), ",") {
		if from, to, ok := parseRange(r); ok {
			n -= max(min(to, last)-max(from, first)+1, 0)
		}
	}
	return n
}

// parseRange reads a range of ports, or a single one.
func parseRange(s string) (first, last int, ok bool) {
	from, to, several := strings.Cut(strings.TrimSpace(s), "-")
	if !several {
		to = from
	}
	first, err := strconv.Atoi(from)
	if err != nil {
		return 0, 0, false
	}
	last, err = strconv.Atoi(to)
	return first, last, err == nil && first <= last
}

// readSysctl is "" for one that can't be read.
func readSysctl(name string) string {
	b, err := os.ReadFile("/proc/sys/" + strings.ReplaceAll(name, ".", "/"))
	if err != nil {
		return ""
	}
	return string(b)
}

// SourcePorts are the ports that datagrams leave from by a local address. The flow
// hash of a packet modulo their number is the place of its port, unless a send buffer
// is full.
func (u *UDP) SourcePorts(local netip.Addr) (ports []uint16, err error) {
	s := u.sockets[family.Of(local)]
	if s == nil || len(s.tx) == 0 {
		return nil, fmt.Errorf("no sockets send by %s", local)
	}
	for _, fd := range s.tx[0] {
		bound, err := boundTo(fd)
		if err != nil {
			return nil, fmt.Errorf("source port: %w", err)
		}
		ports = append(ports, bound.Port())
	}
	return ports, nil
}
