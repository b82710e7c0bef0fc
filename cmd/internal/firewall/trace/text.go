package trace

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// unknown stands for the parts of a rule that aren't put into words.
const unknown = "…"

// field is what a register was loaded with, in nft's words.
type field struct {
	words string
	mask  []byte
}

// text returns the rule much as nft writes it.
func (r *nftRule) text() string {
	var words []string
	regs := map[uint32]field{}
	for _, e := range r.expressions {
		switch e.name {
		case "meta":
			regs[e.number(unix.NFTA_META_DREG)] = field{words: metaWords[e.number(unix.NFTA_META_KEY)]}
		case "ct":
			regs[e.number(unix.NFTA_CT_DREG)] = field{words: ctWords[e.number(unix.NFTA_CT_KEY)]}
		case "payload":
			regs[e.number(unix.NFTA_PAYLOAD_DREG)] = field{words: payloadWords(e, r.family)}
		case "fib":
			regs[e.number(unix.NFTA_FIB_DREG)] = field{}
		case "bitwise":
			f := regs[e.number(unix.NFTA_BITWISE_SREG)]
			f.mask = e.value(unix.NFTA_BITWISE_MASK)
			regs[e.number(unix.NFTA_BITWISE_DREG)] = f
		case "byteorder":
			regs[e.number(unix.NFTA_BYTEORDER_DREG)] = regs[e.number(unix.NFTA_BYTEORDER_SREG)]
		case "cmp":
			words = append(words, regs[e.number(unix.NFTA_CMP_SREG)].compared(e))
		case "lookup":
			words = append(words, regs[e.number(unix.NFTA_LOOKUP_SREG)].lookedUp(e))
		case "range":
			words = append(words, unknown)
		case "match":
			if n := e.text(unix.NFTA_MATCH_NAME); n != "comment" {
				words = append(words, matchWords(n, e.number(unix.NFTA_MATCH_REV), e.get(unix.NFTA_MATCH_INFO)))
			}
		case "target":
			words = append(words, "-j "+e.text(unix.NFTA_TARGET_NAME))
		case "immediate":
			words = append(words, verdictWords(e)...)
		case "reject", "limit", "quota", "log", "queue":
			words = append(words, e.name)
		case "counter":
		default:
			words = append(words, unknown)
		}
	}
	return strings.Join(words, " ")
}

// matchWords returns an iptables match in words: the ports, as far as it compares
// those alone.
func matchWords(name string, revision uint32, info []byte) string {
	words := "-m " + name
	option := func(not bool, name, value string) {
		if not {
			words += " !"
		}
		words += " " + name + " " + value
	}
	switch {
	case name == "udp" && len(info) >= 9:
		for i, name := range []string{"--sport", "--dport"} {
			if ports := portsAt(info, 4*i); !ports.all() {
				option(info[8]&(1<<i) != 0, name, portWords(ports))
			}
		}
	case name == "multiport" && revision == 1 && len(info) >= 2+3*mostPorts+1 && int(info[1]) <= mostPorts:
		var all []string
		for _, ports := range multiportPorts(info) {
			all = append(all, portWords(ports))
		}
		option(info[2+3*mostPorts] != 0, [...]string{"--sports", "--dports", "--ports"}[min(info[0], 2)], strings.Join(all, ","))
	default:
		words += " " + unknown
	}
	return words
}

func portWords(s span) string {
	from, to := binary.BigEndian.Uint16(s.lo), binary.BigEndian.Uint16(s.hi)
	if from == to {
		return fmt.Sprint(from)
	}
	return fmt.Sprintf("%d:%d", from, to)
}

var metaWords = map[uint32]string{
	unix.NFT_META_IIFNAME: "iifname", unix.NFT_META_OIFNAME: "oifname", unix.NFT_META_IIF: "iif", unix.NFT_META_OIF: "oif",
	unix.NFT_META_L4PROTO: "meta l4proto", unix.NFT_META_NFPROTO: "meta nfproto", unix.NFT_META_MARK: "meta mark",
}

var ctWords = map[uint32]string{unix.NFT_CT_STATE: "ct state", unix.NFT_CT_STATUS: "ct status", unix.NFT_CT_MARK: "ct mark"}

func payloadWords(e expression, family byte) string {
	at, n := e.number(unix.NFTA_PAYLOAD_OFFSET), e.number(unix.NFTA_PAYLOAD_LEN)
	if e.number(unix.NFTA_PAYLOAD_BASE) == unix.NFT_PAYLOAD_TRANSPORT_HEADER {
		return map[uint32]string{0: "th sport", 2: "th dport"}[at]
	}
	if family == unix.NFPROTO_IPV4 || family == unix.NFPROTO_INET && n <= 4 && (at == 12 || at == 16) {
		return map[uint32]string{12: "ip saddr", 16: "ip daddr"}[at]
	}
	return map[uint32]string{8: "ip6 saddr", 24: "ip6 daddr"}[at]
}

// compared returns a comparison in words: the field and what it must be.
func (f field) compared(e expression) string {
	data, op := e.value(unix.NFTA_CMP_DATA), e.number(unix.NFTA_CMP_OP)
	if f.words == "" || len(data) == 0 || op > unix.NFT_CMP_NEQ {
		return unknown
	}
	differs := op == unix.NFT_CMP_NEQ
	if strings.HasPrefix(f.words, "ct s") && f.mask != nil && zero(data) {
		differs = !differs // any of the bits
		data = f.mask
	}
	is := f.words + " "
	if differs {
		is += "!= "
	}
	return is + f.data(data)
}

func (f field) data(b []byte) string {
	switch {
	case strings.HasSuffix(f.words, "ifname"):
		n := unix.ByteSliceToString(b)
		if len(n) == len(b) && len(b) < nameSize {
			n += "*"
		}
		return fmt.Sprintf("%q", n)
	case strings.HasPrefix(f.words, "ip"):
		return f.address(b)
	case strings.HasPrefix(f.words, "th ") && len(b) == 2:
		return fmt.Sprint(binary.BigEndian.Uint16(b))
	case f.words == "ct state" && len(b) == 4:
		return states(binary.NativeEndian.Uint32(b))
	case f.words == "meta l4proto" && len(b) == 1:
		if p, is := protocols[b[0]]; is {
			return p
		}
		return fmt.Sprint(b[0])
	}
	return unknown
}

var protocols = map[byte]string{unix.IPPROTO_ICMP: "icmp", unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp", unix.IPPROTO_ICMPV6: "ipv6-icmp"}

// address returns an address in words. It returns a prefix if there is a mask,
// or if b holds only the first bytes.
func (f field) address(b []byte) string {
	size := 4
	if strings.HasPrefix(f.words, "ip6") {
		size = 16
	}
	if len(b) > size {
		return unknown
	}
	ones := len(b) * 8
	if f.mask != nil {
		ones = 0
		for _, m := range f.mask {
			ones += bits.OnesCount8(m)
		}
	}
	a, _ := netip.AddrFromSlice(append(append([]byte{}, b...), make([]byte, size-len(b))...))
	p := netip.PrefixFrom(a, ones)
	if p.IsSingleIP() {
		return a.String()
	}
	return p.String()
}

func states(mask uint32) string {
	var words []string
	for bit, w := range map[uint32]string{1: "invalid", 2: "established", 4: "related", stateNew: "new", 64: "untracked"} {
		if mask&bit != 0 {
			words = append(words, w)
		}
	}
	return strings.Join(slices.Sorted(slices.Values(words)), ",")
}

func (f field) lookedUp(e expression) string {
	name := e.text(unix.NFTA_LOOKUP_SET)
	if strings.HasPrefix(name, "__") { // without a name of its own
		name = "{" + unknown + "}"
	} else {
		name = "@" + name
	}
	if e.has(unix.NFTA_LOOKUP_DREG) {
		name = "vmap " + name
	}
	if e.number(unix.NFTA_LOOKUP_FLAGS)&lookupInvert != 0 {
		name = "!= " + name
	}
	if f.words == "" {
		return unknown + " " + name
	}
	return f.words + " " + name
}

func verdictWords(e expression) []string {
	v := e.get(unix.NFTA_IMMEDIATE_DATA).get(unix.NFTA_DATA_VERDICT)
	if v == nil {
		return nil
	}
	switch int32(v.number(unix.NFTA_VERDICT_CODE)) {
	case nfDrop:
		return []string{"drop"}
	case nfAccept:
		return []string{"accept"}
	case nftJump:
		return []string{"jump " + v.text(unix.NFTA_VERDICT_CHAIN)}
	case nftGoto:
		return []string{"goto " + v.text(unix.NFTA_VERDICT_CHAIN)}
	case nftReturn:
		return []string{"return"}
	}
	return []string{unknown}
}
