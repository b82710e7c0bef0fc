package firewall

import (
	"fmt"

	"uvxlan/cmd/internal/firewall/trace"
)

// Tunnel is the datagrams that the overlay's packets travel in.
type Tunnel = trace.Tunnel

// Bypass tells what the host's rules do with the overlay's datagrams. None of that
// happens to datagrams that don't meet the rules: those that a program on the
// interface takes and sends. Only one goroutine at a time may use it. The zero
// value is ready.
type Bypass struct{ datagrams trace.Datagrams }

// Hazards returns in words, for each rule or policy, what it does with the
// datagrams of t beyond accepting them; none if they pass the rules as if there
// were none. It looks at the calling thread's network namespace. With an error,
// which says what could not be read, there may be more.
func (b *Bypass) Hazards(t Tunnel) (words []string, err error) {
	concerns, err := b.datagrams.Concerns(t)
	for _, c := range concerns {
		words = append(words, hazard(c))
	}
	return words, err
}

// hazard is a concern in words.
func hazard(c trace.Concern) string {
	by := "the policy"
	if c.Rule != "" {
		by = fmt.Sprintf("the rule %q", c.Rule)
	}
	may := ""
	if c.May {
		may = "may "
	}
	does := map[trace.Effect][2]string{
		trace.Dropped: {"drops", "drop"}, trace.Diverted: {"diverts", "divert"},
		trace.Translated: {"translates", "translate"}, trace.Named: {"is for", "be for"},
	}[c.Effect]
	word := does[0]
	if c.May {
		word = does[1]
	}
	return fmt.Sprintf("%s of %s %s%s VXLAN datagrams", by, placeOf(c.Drop), may, word)
}
