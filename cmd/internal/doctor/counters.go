package doctor

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// counters are the kernel's, of the network namespace, by names such as
// "Udp.InCsumErrors" (Documentation/networking/snmp_counter.rst).
type counters map[string]uint64

// The counters that tell something.
const (
	udpChecksums    = "Udp.InCsumErrors"
	tcpChecksums    = "Tcp.InCsumErrors"
	icmpChecksums   = "Icmp.InCsumErrors"
	reversePathDrop = "TcpExt.IPReversePathFilter"
)

// readCounters reads the calling thread's namespace's.
func readCounters() (counters, error) {
	c := counters{}
	for _, file := range []string{"snmp", "netstat"} {
		text, err := os.ReadFile("/proc/thread-self/net/" + file)
		if err != nil {
			return nil, fmt.Errorf("read the kernel's counters: %w", err)
		}
		c.add(string(text))
	}
	return c, nil
}

// add reads pairs of lines: names, then numbers, both behind the group's name.
func (c counters) add(text string) {
	lines := strings.Split(text, "\n")
	for i := 0; i+1 < len(lines); i += 2 {
		group, names, _ := strings.Cut(lines[i], ": ")
		_, numbers, _ := strings.Cut(lines[i+1], ": ")
		values := strings.Fields(numbers)
		for j, name := range strings.Fields(names) {
			if j >= len(values) {
				break
			}
			if n, err := strconv.ParseUint(values[j], 10, 64); err == nil {
				c[group+"."+name] = n
			}
		}
	}
}

// since is how much a counter has grown.
func (c counters) since(before counters, name string) uint64 {
	now, then := c[name], before[name]
	return now - min(then, now)
}
