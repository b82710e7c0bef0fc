package firewall

import (
	"fmt"
	"net/netip"
	"strings"

	"uvxlan/cmd/internal/firewall/trace"
)

// Obstacle is a rule or policy of the host's that is in the way of the overlay's
// datagrams between the host and others.
type Obstacle struct {
	// What it does, in words, and what the operator can do about it.
	What, Remedy string
	// Out says that it concerns datagrams that go out, not those that come in.
	Out bool
	// Sure says that it concerns all of them; otherwise it may concern some.
	Sure bool
	// Drops says that they are dropped; otherwise they are changed or diverted.
	Drops bool
}

// Obstacles are the rules in the way of the datagrams of t. It looks at the calling
// thread's network namespace. With an error, which says what could not be read, there
// may be more.
func Obstacles(t Tunnel) (all []Obstacle, err error) {
	var d trace.Datagrams
	concerns, err := d.Concerns(t)
	for _, c := range concerns {
		if c.Effect == trace.Named {
			continue
		}
		all = append(all, Obstacle{
			What: datagrams(c), Remedy: letPass(c, t), Out: c.Out, Sure: !c.May, Drops: c.Effect == trace.Dropped,
		})
	}
	return all, err
}

// datagrams tells what happens to datagrams at a concern.
func datagrams(c trace.Concern) string {
	by := "the policy of"
	if c.Rule != "" {
		by = fmt.Sprintf("the rule %q in", c.Rule)
	}
	does := map[trace.Effect]string{trace.Dropped: "drops", trace.Diverted: "diverts", trace.Translated: "gives another address or port to"}[c.Effect]
	if c.May {
		does = map[trace.Effect]string{trace.Dropped: "may drop", trace.Diverted: "may divert", trace.Translated: "may give another address or port to"}[c.Effect]
	}
	what := "the VXLAN datagrams that come in"
	if c.Out {
		what = "the VXLAN datagrams that go out"
	}
	return fmt.Sprintf("%s %s %s %s", by, placeOf(c.Drop), does, what)
}

// letPass is a command that lets the datagrams pass before the concern's rule.
func letPass(c trace.Concern, t Tunnel) string {
	family := FamilyOf(netip.PrefixFrom(t.Local, t.Local.BitLen()))
	switch {
	case c.Table == "firewalld":
		return fmt.Sprintf("firewall-cmd --permanent --add-port=%d/udp && firewall-cmd --reload", t.Port)
	case strings.HasPrefix(c.Chain, "ufw"):
		way := "in"
		if c.Out {
			way = "out"
		}
		return fmt.Sprintf("ufw allow %s %d/udp", way, t.Port)
	case !c.Legacy && !isIPTables(c.Drop):
		return fmt.Sprintf("nft insert rule %s %s %s udp dport %d accept", c.Family, c.Table, c.Base, t.Port)
	}
	table := ""
	if c.Table != "filter" {
		table = " -t " + c.Table
	}
	return fmt.Sprintf("%s%s -I %s -p udp --dport %d -j ACCEPT", family.command(c.Legacy), table, c.Base, t.Port)
}
