// Package fastpath has the kernel carry the plain packets of a [tunnel.Router], by tc
// programs at its device and at the underlay's interface: encapsulated, or as they are
// to a host on the same Ethernet, without a wake-up or a copy. Whatever needs
// judgement comes to the workers, who allow, answer, count and log as ever.
//
//	containers -> TUN --egress program--> underlay
//	                \                        |
//	                 workers <-- left alone -+
//	                /                        |
//	containers <- TUN <--ingress program-- underlay
//
// [Attach] works with Linux 5.10 and CAP_NET_ADMIN and CAP_BPF, or CAP_SYS_ADMIN
// instead of CAP_BPF, where nothing forbids it: [ErrUnsupported] says what does.
// Superpackets to peers with an IPv6 address are the workers': each of their segments
// must have an outer checksum (RFC 8200, section 8.1), which the kernel can't be told to
// fill in. What the fast path carries doesn't pass the host's netfilter between the
// tunnel and the wire: rules for the VXLAN port don't apply to it. Routes, neighbours
// and the paths' MTUs are the kernel's, asked for each packet. Peers whose packets IPsec
// policies (ip-xfrm(8)) may cover stay with the workers. Programs that others attach to
// tcx hooks run before these, those that are attached later within a second.
// With classic tc filters of others at the same hooks nothing is carried.
//
// On kernels without BPF_F_ADJ_ROOM_DECAP_L4_UDP, TCP superpackets that arrive keep the
// marks of their tunnel, and the kernel would segment them at a bridge. Where such packets
// may come, as from hosts on the same machine, the fast path has a relay that rids them of
// the marks: an interface "uvxrelay0" (or another number) that leads to a network namespace
// without a name, in which there is nothing but a route of SRv6 (End.DX2 of RFC 8986). That
// takes CAP_SYS_ADMIN, Linux 6.3 and its CONFIG_IPV6_SEG6_LWTUNNEL; without them the
// workers have superpackets for bridges, and [Report] says why. The relay ends with the
// process, or goes to its successor.
//
// Reverse-path filtering (rp_filter) isn't applied to the frames that are carried:
// instead, each must come by the underlay's interface, from the address of the peer
// that owns the inner source.
//
// The programs are under the GPL 2.0 or the two-clause BSD licence, as the kernel
// wants of some of what they call.
package fastpath
