package doctor

import (
	"slices"

	"golang.org/x/sys/unix"

	"uvxlan/encap"
)

// tapFilter passes ICMP messages of both families, and VXLAN frames to the ports with
// such messages or ARP inside (Documentation/networking/filter.rst). Packets begin with the
// IP header.
func tapFilter(ports []uint16) []unix.SockFilter {
	const (
		protocol  = 0xfffff000 // SKF_AD_OFF + SKF_AD_PROTOCOL
		load      = unix.BPF_LD | unix.BPF_ABS
		loadX     = unix.BPF_LD | unix.BPF_IND
		toInner   = udpHeaderLen + encap.FrameHeaderLen
		etherType = toInner - 2
	)
	var a assembler
	a.op(load|unix.BPF_H, protocol)
	a.is(uint32(encap.EtherTypeIPv4), "v4")
	a.is(uint32(encap.EtherTypeIPv6), "v6")
	a.to("drop")
	a.label("v4")
	a.op(load|unix.BPF_B, 9)
	a.is(unix.IPPROTO_ICMP, "pass")
	a.only(unix.IPPROTO_UDP)
	a.op(unix.BPF_LDX|unix.BPF_B|unix.BPF_MSH, 0) // X = the IP header's length
	a.to("udp")
	a.label("v6")
	a.op(load|unix.BPF_B, 6)
	a.is(unix.IPPROTO_ICMPV6, "pass")
	a.is(unix.IPPROTO_FRAGMENT, "fragment")
	a.only(unix.IPPROTO_UDP)
	a.op(unix.BPF_LDX|unix.BPF_W|unix.BPF_IMM, encap.IPv6HeaderLen)
	a.to("udp")
	a.label("fragment")
	a.op(load|unix.BPF_B, encap.IPv6HeaderLen)
	a.is(unix.IPPROTO_ICMPV6, "pass")
	a.only(unix.IPPROTO_UDP)
	a.op(unix.BPF_LDX|unix.BPF_W|unix.BPF_IMM, encap.IPv6HeaderLen+8)
	a.label("udp")
	a.op(loadX|unix.BPF_H, 2)
	for _, p := range slices.Compact(slices.Sorted(slices.Values(ports))) {
		a.is(uint32(p), "frame")
	}
	a.to("drop")
	a.label("frame")
	a.op(loadX|unix.BPF_H, etherType)
	a.is(uint32(encap.EtherTypeIPv6), "inner6")
	a.is(uint32(encap.EtherTypeARP), "pass")
	a.only(uint32(encap.EtherTypeIPv4))
	a.op(loadX|unix.BPF_B, toInner+9)
	a.is(unix.IPPROTO_ICMP, "pass")
	a.to("drop")
	a.label("inner6")
	a.op(loadX|unix.BPF_B, toInner+6)
	a.is(unix.IPPROTO_ICMPV6, "pass")
	a.is(unix.IPPROTO_FRAGMENT, "pass")
	a.label("drop")
	a.op(unix.BPF_RET|unix.BPF_K, 0)
	a.label("pass")
	a.op(unix.BPF_RET|unix.BPF_K, 1<<32-1)
	return a.program()
}

// assembler makes a filter program whose jumps lead forward to labels.
type assembler struct {
	code   []unix.SockFilter
	jumps  map[int]string
	labels map[string]int
}

func (a *assembler) op(code uint16, k uint32) {
	a.code = append(a.code, unix.SockFilter{Code: code, K: k})
}

func (a *assembler) label(name string) {
	if a.labels == nil {
		a.labels = map[string]int{}
	}
	a.labels[name] = len(a.code)
}

func (a *assembler) jump(code uint16, k uint32, label string) {
	if a.jumps == nil {
		a.jumps = map[int]string{}
	}
	a.jumps[len(a.code)] = label
	a.op(code, k)
}

// is jumps if the accumulator is k.
func (a *assembler) is(k uint32, label string) {
	a.jump(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, k, label)
}

// only drops the packet unless the accumulator is k.
func (a *assembler) only(k uint32) {
	a.op(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, k)
	a.code[len(a.code)-1].Jt = 1
	a.to("drop")
}

// to jumps in any case.
func (a *assembler) to(label string) { a.jump(unix.BPF_JMP|unix.BPF_JA, 0, label) }

func (a *assembler) program() []unix.SockFilter {
	for at, label := range a.jumps {
		distance := a.labels[label] - at - 1
		if a.code[at].Code == unix.BPF_JMP|unix.BPF_JA {
			a.code[at].K = uint32(distance)
		} else {
			a.code[at].Jt = uint8(distance)
		}
	}
	return a.code
}
