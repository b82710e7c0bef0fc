package lease

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
)

// problems gathers what is wrong with a configuration.
type problems []error

// add notes a problem; value is the field's JSON text, empty if it is absent.
func (p *problems) add(field string, value json.RawMessage, rule string) {
	if len(value) == 0 {
		value = json.RawMessage("missing")
	}
	*p = append(*p, fmt.Errorf("%s %s: %s", field, value, rule))
}

// absent reports whether a field keeps its default; null does as well.
func absent(raw json.RawMessage) bool { return len(raw) == 0 || string(raw) == "null" }

func decodeBool(p *problems, field string, raw json.RawMessage, to *bool) {
	if absent(raw) {
		return
	}
	if json.Unmarshal(raw, to) != nil {
		p.add(field, raw, "must be true or false")
	}
}

// decodeString reports whether the field is a string or absent.
func decodeString(p *problems, field string, raw json.RawMessage, to *string) bool {
	if absent(raw) {
		return true
	}
	if json.Unmarshal(raw, to) != nil {
		p.add(field, raw, "must be a string")
		return false
	}
	return true
}

// decodeInt reads a whole number from low to high and reports whether it did.
func decodeInt(p *problems, field string, raw json.RawMessage, low, high int, to *int) bool {
	if absent(raw) {
		return false
	}
	var n int
	if json.Unmarshal(raw, &n) != nil || n < low || n > high {
		p.add(field, raw, fmt.Sprintf("must be a whole number from %d to %d", low, high))
		return false
	}
	*to = n
	return true
}

func decodePrefix(raw json.RawMessage) (netip.Prefix, error) {
	var s string
	if err := json.Unmarshal(raw, &s); err != nil {
		return netip.Prefix{}, err
	}
	n, err := netip.ParsePrefix(s)
	return n.Masked(), err
}

func decodeAddr(raw json.RawMessage) (netip.Addr, error) {
	var s string
	if err := json.Unmarshal(raw, &s); err != nil {
		return netip.Addr{}, err
	}
	return netip.ParseAddr(s)
}

// syntaxHint says after a comma what is probably wrong with a text that isn't JSON.
func syntaxHint(text string) string {
	switch {
	case strings.Contains(text, `\"`):
		return `, but has backslashes before its quotes, as a log shows them: leave them out`
	case strings.ContainsAny(text, "\u201c\u201d\u201e\u2018\u2019"): // of a page or a text
		return `, but has quotes of another kind than JSON's "`
	case strings.HasPrefix(strings.TrimSpace(text), "{") && !strings.Contains(text, `"`):
		return `, but has no quotes: the shell leaves them if all of it stands between ' and '`
	}
	return ""
}
