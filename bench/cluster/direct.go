package cluster

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"uvxlan/bench/lab"
)

// DirectNow is what a daemon that has direct routes says of a peer that it
// reaches without VXLAN from then on.
const DirectNow = "peer is direct now"

// Direct returns nil if the daemon, by its own words, reaches the host's
// containers without VXLAN at the moment.
func (d *Daemon) Direct(to *lab.Host) error {
	text, err := os.ReadFile(d.LogFile())
	if err != nil {
		return err
	}
	if direct, words := isDirect(string(text), to.Subnet); !direct {
		return fmt.Errorf("uvxland on %s doesn't reach %s directly: %s", d.Host.Name, to.Name, words)
	}
	return nil
}

// isDirect returns what the log tells last of the way to the subnet.
func isDirect(log string, subnet netip.Prefix) (direct bool, words string) {
	lines := strings.Split(log, "\n")
	for _, line := range slices.Backward(lines) {
		if !strings.Contains(line, "subnet="+subnet.String()+" ") {
			continue
		}
		for _, c := range []struct {
			words  string
			direct bool
		}{
			{DirectNow, true},
			{"route to peer is there now", true},
			{"no route to peer", false},
			{"peer is back to vxlan", false},
			{"peer can't be reached", false},
		} {
			if strings.Contains(line, c.words) {
				return c.direct, line
			}
		}
	}
	return false, "its log doesn't tell of a way"
}
