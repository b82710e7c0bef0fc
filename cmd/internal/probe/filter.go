package probe

import (
	"golang.org/x/sys/unix"

	"uvxlan/encap"
)

// filter is a program of a socket filter that passes on what parse takes: echo
// replies to an ID, and errors that quote an echo request of it. A raw IPv4 socket's
// packets begin with the IP header, an IPv6 one's with ICMPv6's
// (Documentation/networking/filter.rst).
func (f *format) filter(id uint16) []unix.SockFilter {
	if f == formatV4 {
		return filterV4(id)
	}
	return filterV6(id)
}

const (
	drop = 0
	pass = 1<<32 - 1
)

func filterV4(id uint16) []unix.SockFilter {
	const (
		quoted   = echoHeaderLen // where the quoted packet begins, from the ICMP header on
		protocol = 9
	)
	return []unix.SockFilter{
		/*  0 */ {Code: unix.BPF_LDX | unix.BPF_B | unix.BPF_MSH, K: 0}, // X = the IP header's length
		/*  1 */ {Code: unix.BPF_LD | unix.BPF_B | unix.BPF_IND, K: 0}, // the type
		/*  2 */ {Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: typeUnreachable, Jt: 5},
		/*  3 */ {Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: typeTimeExceeded, Jt: 4},
		/*  4 */ {Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: typeBadParameter, Jt: 3},
		/*  5 */ {Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: typeEchoReply, Jf: 14},
		/*  6 */ {Code: unix.BPF_LD | unix.BPF_H | unix.BPF_IND, K: 4},
		/*  7 */ {Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: uint32(id), Jt: 11, Jf: 12},
		/*  8 */ {Code: unix.BPF_LD | unix.BPF_B | unix.BPF_IND, K: quoted + protocol},
		/*  9 */ {Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.IPPROTO_ICMP, Jf: 10},
		/* 10 */ {Code: unix.BPF_LD | unix.BPF_B | unix.BPF_IND, K: quoted},
		/* 11 */ {Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: 0xf},
		/* 12 */ {Code: unix.BPF_ALU | unix.BPF_LSH | unix.BPF_K, K: 2},
		/* 13 */ {Code: unix.BPF_ALU | unix.BPF_ADD | unix.BPF_X},
		/* 14 */ {Code: unix.BPF_MISC | unix.BPF_TAX}, // X = both IP headers' lengths
		/* 15 */ {Code: unix.BPF_LD | unix.BPF_B | unix.BPF_IND, K: quoted},
		/* 16 */ {Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: typeEcho, Jf: 3},
		/* 17 */ {Code: unix.BPF_LD | unix.BPF_H | unix.BPF_IND, K: quoted + 4},
		/* 18 */ {Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: uint32(id), Jf: 1},
		/* 19 */ {Code: unix.BPF_RET | unix.BPF_K, K: pass},
		/* 20 */ {Code: unix.BPF_RET | unix.BPF_K, K: drop},
	}
}

func filterV6(id uint16) []unix.SockFilter {
	const (
		quoted     = echoHeaderLen
		nextHeader = 6
		header     = quoted + encap.IPv6HeaderLen // what follows the quoted IPv6 header
		fragment   = 8                            // the length of a fragment header
	)
	return []unix.SockFilter{
		/*  0 */ {Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 0}, // the type
		/*  1 */ {Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: typeEchoReplyV6, Jf: 2},
		/*  2 */ {Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: 4},
		/*  3 */ {Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: uint32(id), Jt: 12, Jf: 13},
		/*  4 */ {Code: unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K, K: typeBadParameterV6, Jt: 12}, // no error
		/*  5 */ {Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: quoted + nextHeader},
		/*  6 */ {Code: unix.BPF_LDX | unix.BPF_W | unix.BPF_IMM, K: 0},
		/*  7 */ {Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.IPPROTO_ICMPV6, Jt: 4},
		/*  8 */ {Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.IPPROTO_FRAGMENT, Jf: 8},
		/*  9 */ {Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: header}, // what follows the fragment header
		/* 10 */ {Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.IPPROTO_ICMPV6, Jf: 6},
		/* 11 */ {Code: unix.BPF_LDX | unix.BPF_W | unix.BPF_IMM, K: fragment},
		/* 12 */ {Code: unix.BPF_LD | unix.BPF_B | unix.BPF_IND, K: header},
		/* 13 */ {Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: typeEchoV6, Jf: 3},
		/* 14 */ {Code: unix.BPF_LD | unix.BPF_H | unix.BPF_IND, K: header + 4},
		/* 15 */ {Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: uint32(id), Jf: 1},
		/* 16 */ {Code: unix.BPF_RET | unix.BPF_K, K: pass},
		/* 17 */ {Code: unix.BPF_RET | unix.BPF_K, K: drop},
	}
}
