package lease

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"uvxlan/internal/nearest"
)

// UnknownField is a field of a configuration that nobody reads, mostly a slip
// of the pen. [ParseConfig] ignores it as flannel does.
type UnknownField struct {
	// Field is its name, with "Backend." before it if it is one of the backend's.
	Field string `json:"field"`
	// Suggestion is the known field that was perhaps meant, empty if none is like
	// it.
	Suggestion string `json:"suggestion,omitempty"`
}

// String describes the field in words.
func (f UnknownField) String() string {
	if f.Suggestion == "" {
		return fmt.Sprintf("unknown field %q has no effect", f.Field)
	}
	return fmt.Sprintf("unknown field %q has no effect: did you mean %q?", f.Field, f.Suggestion)
}

// flannelsOwn are fields that only flannel knows: those of vxlan on Windows,
// and those of its other backends.
var flannelsOwn = []string{
	"Backend.Name", "Backend.MacPrefix",
	"Backend.DNSServerList", "Backend.ApiVersion", // host-gw on Windows
	"Backend.ListenPort", "Backend.PSK", "Backend.PersistentKeepaliveInterval", "Backend.Mode", // wireguard
	"Backend.UDPEncap", "Backend.ESPProposal", // ipsec
}

// UnknownFields names the fields of a configuration that [ParseConfig] ignores, in
// order. Data that isn't a configuration has none.
func UnknownFields(data []byte) (unknown []UnknownField) {
	var top map[string]json.RawMessage
	if json.Unmarshal(data, &top) != nil {
		return nil
	}
	known := slices.Concat(fieldsOf("", configFields{}), fieldsOf("Backend.", backendFields{}), flannelsOwn)
	look := func(prefix string, fields map[string]json.RawMessage) {
		for _, name := range slices.Sorted(maps.Keys(fields)) {
			name = prefix + name
			if !slices.ContainsFunc(known, func(k string) bool { return strings.EqualFold(k, name) }) {
				unknown = append(unknown, UnknownField{name, suggest(prefix, name, known)})
			}
		}
	}
	look("", top)
	for name, value := range top {
		var backend map[string]json.RawMessage
		if strings.EqualFold(name, "Backend") && json.Unmarshal(value, &backend) == nil {
			look("Backend.", backend)
		}
	}
	return unknown
}

func fieldsOf(prefix string, of any) (names []string) {
	for f := range reflect.TypeOf(of).Fields() {
		names = append(names, prefix+f.Name)
	}
	return names
}

// suggest finds a known field of that name at the other place. Else it finds
// the field of the same place that takes the fewest changes.
func suggest(prefix, name string, known []string) string {
	bare := strings.TrimPrefix(name, prefix)
	var same []string
	for _, k := range known {
		at, field := "", k
		if rest, ok := strings.CutPrefix(k, "Backend."); ok {
			at, field = "Backend.", rest
		}
		if strings.EqualFold(field, bare) {
			return k
		}
		if at == prefix {
			same = append(same, field)
		}
	}
	if field := nearest.Name(bare, same); field != "" {
		return prefix + field
	}
	return ""
}
