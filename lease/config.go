package lease

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
)

// Config is the cluster's configuration, the value of the key <prefix>/config.
type Config struct {
	// EnableIPv4 is always true in a parsed Config: a lease has an IPv4 subnet.
	EnableIPv4 bool
	// EnableIPv6 gives each host an IPv6 subnet beside its IPv4 subnet.
	EnableIPv6 bool
	// EnableNFTables selects nftables over iptables for masquerading rules.
	EnableNFTables bool

	// Network is the IPv4 range of all containers, host bits cleared.
	Network netip.Prefix
	// SubnetLen is the prefix length of one host's subnet.
	SubnetLen int
	// SubnetMin and SubnetMax are the first address of the lowest and of the
	// highest subnet that may be allocated.
	SubnetMin, SubnetMax netip.Addr

	// The IPv6 fields mean the same; they are zero unless EnableIPv6 is set.
	IPv6Network                  netip.Prefix
	IPv6SubnetLen                int
	IPv6SubnetMin, IPv6SubnetMax netip.Addr

	// Backend says how packets travel between hosts.
	Backend Backend
}

// ConfigError is all that is wrong with a configuration. It has one error for
// each problem, which names the field, its value and the rule.
type ConfigError []error

// Error puts all problems on one line.
func (e ConfigError) Error() string {
	parts := make([]string, len(e))
	for i, err := range e {
		parts[i] = err.Error()
	}
	return strings.Join(parts, "; ")
}

// Unwrap gives errors.Is and errors.As each problem.
func (e ConfigError) Unwrap() []error { return e }

// configFields are left raw so that a wrong type in one doesn't hide the
// problems of the others.
type configFields struct {
	EnableIPv4, EnableIPv6, EnableNFTables   json.RawMessage
	Network, SubnetLen, SubnetMin, SubnetMax json.RawMessage
	IPv6Network, IPv6SubnetLen               json.RawMessage
	IPv6SubnetMin, IPv6SubnetMax             json.RawMessage
	Backend                                  json.RawMessage
}

// ParseConfig reads a configuration by flannel's rules and fills in flannel's
// defaults. There are two exceptions: the port's default is [DefaultPort], and
// the backend must be named. Keys match in any case, and unknown keys are
// ignored. Its error is a [ConfigError] with every problem at once.
func ParseConfig(data []byte) (*Config, error) {
	var raw configFields
	if err := json.Unmarshal(data, &raw); err != nil {
		return nil, ConfigError{fmt.Errorf("config: must be one JSON object%s: %w", syntaxHint(string(data)), err)}
	}
	c := &Config{EnableIPv4: true}
	var p problems
	decodeBool(&p, "EnableIPv4", raw.EnableIPv4, &c.EnableIPv4)
	decodeBool(&p, "EnableIPv6", raw.EnableIPv6, &c.EnableIPv6)
	decodeBool(&p, "EnableNFTables", raw.EnableNFTables, &c.EnableNFTables)
	if !c.EnableIPv4 {
		p.add("EnableIPv4", raw.EnableIPv4, "must be true, since each host has an IPv4 subnet; for both families add \"EnableIPv6\":true")
	}
	c.setNetworks(&p, raw)
	c.Backend = parseBackend(&p, raw.Backend, c.EnableIPv6)
	if len(p) > 0 {
		return nil, ConfigError(p)
	}
	return c, nil
}

func (c *Config) setNetworks(p *problems, raw configFields) {
	v4 := ipv4Rules.parse(p, networkFields{raw.Network, raw.SubnetLen, raw.SubnetMin, raw.SubnetMax})
	c.Network, c.SubnetLen, c.SubnetMin, c.SubnetMax = v4.network, v4.bits, v4.first, v4.last
	if !c.EnableIPv6 {
		return
	}
	v6 := ipv6Rules.parse(p, networkFields{raw.IPv6Network, raw.IPv6SubnetLen, raw.IPv6SubnetMin, raw.IPv6SubnetMax})
	c.IPv6Network, c.IPv6SubnetLen, c.IPv6SubnetMin, c.IPv6SubnetMax = v6.network, v6.bits, v6.first, v6.last
}

// Compatible reports whether the lease's subnets are ones that this
// configuration could have allocated.
func (c *Config) Compatible(l Lease) bool {
	if !c.ipv4().contains(l.Subnet) {
		return false
	}
	if !c.EnableIPv6 {
		return !l.IPv6Subnet.IsValid()
	}
	return c.ipv6().contains(l.IPv6Subnet)
}

func (c *Config) ipv4() pool {
	return pool{c.Network, c.SubnetLen, c.SubnetMin, c.SubnetMax}
}

func (c *Config) ipv6() pool {
	return pool{c.IPv6Network, c.IPv6SubnetLen, c.IPv6SubnetMin, c.IPv6SubnetMax}
}
