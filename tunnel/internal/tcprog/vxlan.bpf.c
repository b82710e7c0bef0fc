//go:build ignore

// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//
// VXLAN for the plain packets of a TUN device, in the kernel: egress runs on what
// is routed into the device and encapsulates it, ingress runs on what arrives at
// the underlay's interface and decapsulates it. Neither judges a packet. What
// isn't certainly right and cheap passes on as it came, to the workers, who drop,
// answer, count and log: the programs return TC_ACT_UNSPEC, so that others which are
// attached behind them see it.
//
// The helpers need Linux 5.10 (bpf_redirect_neigh with a next hop) and, for flags
// that user space probes, later ones.

#include <linux/types.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#ifndef BPF_F_ADJ_ROOM_ENCAP_L2_ETH
#define BPF_F_ADJ_ROOM_ENCAP_L2_ETH (1ULL << 6)
#endif
#ifndef BPF_F_ADJ_ROOM_DECAP_L3_IPV4
#define BPF_F_ADJ_ROOM_DECAP_L3_IPV4 (1ULL << 7)
#define BPF_F_ADJ_ROOM_DECAP_L3_IPV6 (1ULL << 8)
#endif
#ifndef BPF_F_ADJ_ROOM_DECAP_L4_UDP
#define BPF_F_ADJ_ROOM_DECAP_L4_UDP (1ULL << 10)
#endif

#define AF_INET 2
#define PACKET_HOST 0
#define AF_INET6 10
#define MAX_IP_LEN 65535
#define IP_FRAGMENT 0x3fff /* more fragments, or an offset */
#define IP_OFFSET 0x1fff
#define VXLAN_HAS_VNI 0x08000000
#define ECN_MASK 3

#define TCP_FLAGS 13 /* where they are in the header */
#define TCP_SYN 0x02

/* ICMP errors that tell how long packets may be: RFC 1191 and RFC 4443, section 3.2 */
#define ICMP_UNREACHABLE 3
#define ICMP_FRAGMENTATION_NEEDED 4
#define ICMPV6_PACKET_TOO_BIG 2

struct header6 {
	__be32 start; /* version, traffic class, flow label */
	__be16 len;
	__u8 proto, limit;
	__be32 src[4], dst[4];
};

/* The headers of a frame: RFC 7348, section 5. Those of an IPv4 underlay begin later, so
 * that both have the rest in the same place. The fields around them align them. */
struct frame {
	union {
		struct {
			__u16 before6;
			struct ethhdr eth6; /* FRAME6_LEN bytes from here */
			struct header6 ip6;
		};
		struct {
			__u16 before4[11];
			struct ethhdr eth4; /* FRAME4_LEN bytes from here */
			struct iphdr ip4;
		};
	};
	struct udphdr udp;
	__be32 vxlan_flags;
	__be32 vxlan_vni; /* in the upper 24 bits */
	struct ethhdr inner;
	__u16 after;
};

#define FRAME6_LEN (sizeof(struct frame) - 4)
#define FRAME4_LEN (FRAME6_LEN - 20)
#define ROOM6 (FRAME6_LEN - ETH_HLEN)
#define ROOM4 (FRAME4_LEN - ETH_HLEN)

_Static_assert(ROOM6 == 70 && ROOM4 == 50, "the headers lie close together");
#define MAX_PORTS 64
#define FLOWLETS 32768

/* What may be done where user space found it possible. */
#define SUPERPACKETS 1 /* the underlay passes tunnels' superpackets of TCP unsplit */
#define DECAP_L4_UDP 2 /* decapsulation clears the marks of a UDP tunnel */
#define DECAP_OTHER 4  /* decapsulation may change the protocol */
#define ON 8           /* anything at all */
#define ENCAP_ETH 16   /* encapsulation can be told of the inner Ethernet header */
#define FLOW_LABELS 32 /* datagrams over IPv6 have one */

struct settings {
	__u32 device;   /* index of the TUN */
	__u32 underlay; /* index of the interface that frames leave and arrive by */
	__be32 local4;  /* outer source address over IPv4 */
	__be32 vni;     /* as in the frame */
	__u64 guard;    /* ns for which a flow stays with the workers at most */
	__u64 since;    /* when all flows were theirs at last: CLOCK_MONOTONIC, or to come */
	__u32 options;
	__u32 bulk;     /* length of TCP packets that workers join; 0 for none */
	__be16 port;    /* VXLAN's */
	__u16 ports4;   /* how many source_ports4 there are */
	__u8 mac[ETH_ALEN];
	__u16 ports6;
	__be16 source_ports4[MAX_PORTS];
	__be16 source_ports6[MAX_PORTS];
	__be32 local6[4]; /* outer source address over IPv6 */
	__u32 mtu; /* of the device; 0 if it doesn't matter */
	__u32 relay; /* index of the interface that leads to the relay; 0 if there is none */
	__u8 has4, has6; /* there is such a source address */
	__u8 pad[2];
};

/* A peer, found by its subnet. */
struct peer {
	__be32 address[4]; /* of its datagrams; the first for IPv4 */
	__u32 id;       /* of its counters */
	__u32 longest;  /* packet that travels in one piece, in bytes; 0 if it is the workers' */
	__u32 link;     /* index of the interface it is on-link by, 0 for VXLAN */
	__u8 mac[ETH_ALEN];    /* its VTEP's */
	__u8 target[ETH_ALEN]; /* the host's on the link */
	__u8 source[ETH_ALEN]; /* ours on the link */
	__u8 v6;               /* its address is IPv6 */
	__u8 pad;
	__u64 since; /* when its flows were the workers' at last: CLOCK_MONOTONIC */
};

struct prefix4 {
	__u32 bits;
	__be32 address;
};

struct prefix6 {
	__u32 bits;
	__be32 address[4];
};

/* What was carried for a peer. Packets of a superpacket count one by one. */
struct traffic {
	__u64 tx_packets, tx_bytes, tx_direct;
	__u64 rx_packets, rx_bytes;
	__u64 rx_seen; /* CLOCK_MONOTONIC */
};

/* What was carried in all: superpackets as one, and datagrams on the wire. */
struct totals {
	__u64 tx_packets, tx_datagrams, tx_bytes, tx_direct;
	__u64 rx_packets, rx_datagrams, rx_bytes;
};

/* Which packets an entry of flowlets is for. */
enum kin {
	FLOW,      /* those of the inner flow */
	ADDRESSES, /* those with its addresses and protocol: of a fragment, that is all one knows */
	WAY,       /* those from the same outer address and port: datagrams are joined by them */
	KINDS,
};

/* Why a packet was left to the workers; user space has the names. */
enum reason {
	CARRIED,
	LEFT_NOT_IP,      /* neither IPv4 nor IPv6, or not all of it */
	LEFT_OPTIONS,     /* IPv4 options */
	LEFT_FRAGMENT,    /* inner, or the first of an outer packet's */
	LEFT_PROTOCOL,    /* not TCP, UDP or ICMP; extension headers; neighbour discovery */
	LEFT_NO_PEER,     /* nobody's address, or that of a peer of the workers' */
	LEFT_SYN,         /* workers learn a flow's segment size from it */
	LEFT_PATH_MTU,    /* an ICMP error, from which they learn it too */
	LEFT_SUPERPACKET, /* of TCP, which the underlay would not pass unsplit */
	LEFT_UDP_SUPERPACKET,
	LEFT_TOO_LONG,    /* for the path */
	LEFT_CHECKSUM,    /* none that could be relied on */
	LEFT_FLOWLET,     /* others of its flow went to the workers just before, or may have */
	LEFT_NO_ROUTE,    /* to the peer, or none that is plain */
	LEFT_OTHER_LINK,  /* the route leaves by another interface */
	LEFT_NO_NEIGHBOUR, /* not resolved */
	LEFT_FOREIGN_VNI,
	LEFT_INNER_MAC,
	LEFT_INNER_SOURCE, /* not the peer's whose address the frame came from */
	LEFT_ECN,          /* a mark to be carried inward */
	LEFT_AGGREGATE,    /* datagrams that were joined, or padding */
	LEFT_BULK,         /* of TCP, which workers join */
	LEFT_ERROR,        /* a helper refused */
	LOST,              /* a helper refused half-way: the packet is dropped */
	REASONS,
};

enum direction { TX, RX };

/* Behind those of both directions: when packets of a flow were relayed. */
#define RELAYED 2
#define RELAYED_FOR 200000000LL /* ns for which its next one is, too */

/* The relay rids superpackets of the marks of a tunnel where no flag of a helper does:
 * of all that the kernel has without tunnel devices, a route of SRv6 with End.DX2 does
 * (RFC 8986, section 4.9; Documentation/networking/seg6-sysctl.rst). It is in a network
 * namespace of its own, so that nobody's firewall and routes have a say. It sends what
 * is in a segment out by the interface that this came by, a veth, and so back. */
#define RELAY_MAC { 0x02, 'u', 'v', 'x', 'l', 1 } /* of the interface in this namespace */
#define RELAY_ADDRESS { bpf_htonl(0xfd000000), 0, 0, bpf_htonl(1) } /* the route's */
#define RELAY_SOURCE { bpf_htonl(0xfd000000), 0, 0, bpf_htonl(2) }
#define IPPROTO_ETHERNET_FRAME 143 /* RFC 8986, section 10.1 */

/* The packets that have gone to the relay and that have come back. */
struct relayed {
	__u64 out, back;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct settings);
	__uint(max_entries, 1);
} config SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__type(key, struct prefix4);
	__type(value, struct peer);
	__uint(max_entries, 1 << 20);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} peers4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__type(key, struct prefix6);
	__type(value, struct peer);
	__uint(max_entries, 1 << 20);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} peers6 SEC(".maps");

/* By the peer's id. An entry is made at its first packet. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__type(key, __u32);
	__type(value, struct traffic);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct totals);
	__uint(max_entries, 1);
} sums SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 2 * REASONS);
} left SEC(".maps");

/* When packets were last left to the workers, and when they were relayed: CLOCK_MONOTONIC,
 * by direction and a hash of what the packets have in common. Those that share an entry by
 * chance only take the long way more often. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 3 * FLOWLETS);
} flowlets SEC(".maps");

/* The moment before which packets came to the workers that they have passed on by now. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 1);
} passed SEC(".maps");

/* The TUN and the way to the relay, for as long as there are such: the kernel takes an
 * interface that goes out of this kind of map. A filter may outlive it. (Lookups are
 * allowed since Linux 5.3.) */
#define DEVICE_TUN 0
#define DEVICE_RELAY 1
struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 2);
} devices SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct relayed);
	__uint(max_entries, 1);
} relayed SEC(".maps");

/* Interfaces that take superpackets which still bear the marks of a UDP tunnel. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} tolerant SEC(".maps");

/* An inner packet, as far as it was looked at. */
struct packet {
	__u32 len;
	__u32 hash[KINDS]; /* that of the flow is FlowHash of package encap */
	__u32 headers; /* their length */
	__be16 type;   /* Ethernet's */
	__u8 proto;
	__u8 ecn;
	__u8 tcp_flags;
	__u8 has_sum;  /* it has a checksum of its transport */
	__u8 tells_mtu; /* ICMP: how long other packets may be */
	__be32 dst4, src4;
	__be32 dst6[4], src6[4];
	/* What the packet sums to from its transport header on, if that has a right
	 * checksum: the complement of its pseudo-header. The IPv4 header sums to 0. */
	__u16 sum;
};

/* What a program works with. It isn't on the stack: without CAP_PERFMON verifiers
 * before Linux 6.13 refuse stores of less than eight bytes to where there was a
 * number of eight, and the compiler chooses what shares a place. */
struct scratch {
	__u32 busy;
	__u32 zero; /* always */
	__u32 key;
	union {
		struct iphdr ip4;
		struct header6 ip6;
		__be32 words[10];
	} h; /* the inner network header */
	__u8 transport[20];
	struct prefix4 prefix4;
	struct prefix6 prefix6;
	struct packet p;
	struct frame f;
	struct ethhdr eth;
	/* A segment's headers, with the fields around them that align them. */
	struct {
		__u16 before;
		struct ethhdr eth; /* SEGMENT_LEN bytes from here */
		struct header6 ip6;
		struct ethhdr inner;
		__u16 after[2];
	} segment;
	struct bpf_fib_lookup to;
	struct bpf_redir_neigh next;
	struct traffic none; /* all zero */
};

/* One for each CPU. Programs run with softirqs off, so that none runs on a CPU while
 * another does; should a kernel think otherwise, busy tells. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct scratch);
	__uint(max_entries, 1);
} scratches SEC(".maps");

static __always_inline void count(struct scratch *x, enum direction d, enum reason r)
{
	__u64 *n;

	x->key = d * REASONS + r;
	n = bpf_map_lookup_elem(&left, &x->key);
	if (n)
		*n += 1;
}

static __always_inline __u64 mix(__u64 x)
{
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ULL;
	x = (x ^ x >> 27) * 0x94d049bb133111ebULL;
	return x ^ x >> 31;
}

static __always_inline __u64 *flowlet(struct scratch *x, enum direction d, enum kin k)
{
	x->key = d * FLOWLETS + (x->p.hash[k] & (FLOWLETS - 1));
	return bpf_map_lookup_elem(&flowlets, &x->key);
}

/* Leaves a packet, and those of its kin that follow soon, to the workers. */
static __always_inline int leave_kin(struct scratch *x, enum direction d, enum kin k, enum reason r)
{
	__u64 *left_at = flowlet(x, d, k);

	if (left_at)
		*left_at = bpf_ktime_get_ns();
	count(x, d, r);
	return TC_ACT_UNSPEC;
}

static __always_inline int leave_flow(struct scratch *x, enum direction d, enum reason r)
{
	return leave_kin(x, d, FLOW, r);
}

static __always_inline int leave(struct scratch *x, enum direction d, enum reason r)
{
	count(x, d, r);
	return TC_ACT_UNSPEC;
}

/* Leaves a packet that couldn't be carried for what its network header says. */
static __always_inline int leave_unparsed(struct scratch *x, enum direction d, enum reason r)
{
	if (r == LEFT_FRAGMENT || r == LEFT_OPTIONS)
		return leave_kin(x, d, ADDRESSES, r);
	return leave(x, d, r);
}

/* Tells whether packets that were left at a moment may still be on their way through a
 * worker. It may be to come: another CPU has looked at the clock since this one did. */
static __always_inline int pending(struct scratch *x, __u64 moment, __u64 now, __u64 guard)
{
	__u64 *before;

	if ((__s64)(now - moment) >= (__s64)guard)
		return 0;
	before = bpf_map_lookup_elem(&passed, &x->zero);
	return !before || (__s64)(moment - *before) >= 0;
}

static __always_inline int kin_pending(struct scratch *x, enum direction d, enum kin k, __u64 now, __u64 guard)
{
	__u64 *left_at = flowlet(x, d, k);

	return left_at && pending(x, *left_at, now, guard);
}

/* Tells whether packets that must stay before this one may still be on their way
 * through a worker. Then it is left, too. */
static __always_inline int held(struct scratch *x, enum direction d, __u64 now, struct settings *s, struct peer *peer)
{
	__u64 *left_at = flowlet(x, d, FLOW);

	if (!left_at)
		return 0;
	if (!pending(x, *left_at, now, s->guard) && !pending(x, s->since, now, s->guard) &&
	    !pending(x, peer->since, now, s->guard) && !kin_pending(x, d, ADDRESSES, now, s->guard) &&
	    !(d == RX && kin_pending(x, d, WAY, now, s->guard)))
		return 0;
	*left_at = now;
	return 1;
}

static __always_inline __u64 pair(__be32 first, __be32 second)
{
	return (__u64)bpf_ntohl(first) << 32 | bpf_ntohl(second);
}

static __always_inline __u16 fold(__u64 s)
{
	s = (s & 0xffffffff) + (s >> 32);
	s = (s & 0xffff) + ((s >> 16) & 0xffff) + (s >> 32);
	s = (s & 0xffff) + (s >> 16);
	s = (s & 0xffff) + (s >> 16);
	return s;
}

static __always_inline __u64 sum_ip(struct iphdr *h)
{
	__u16 *w = (__u16 *)h;
	__u64 s = 0;

#pragma unroll
	for (int i = 0; i < 10; i++)
		s += w[i];
	return s;
}

/* Looks at the transport header at an offset; the network header is read. */
static __always_inline enum reason parse_transport(struct __sk_buff *skb, __u32 at, struct scratch *x, __u64 pseudo, __u64 hash, __u32 network)
{
	struct packet *p = &x->p;
	__u8 *h = x->transport;
	__u64 last = p->proto;
	__u32 need = p->proto == IPPROTO_TCP ? 20 : 8;

	if (p->len < network + need)
		return LEFT_NOT_IP;
	if (p->proto == IPPROTO_TCP) {
		if (bpf_skb_load_bytes(skb, at, h, 20) < 0)
			return LEFT_NOT_IP;
		p->headers = network + (h[12] >> 4) * 4;
		p->tcp_flags = h[TCP_FLAGS];
		if (p->headers < network + 20 || p->headers > p->len)
			return LEFT_NOT_IP;
	} else {
		if (bpf_skb_load_bytes(skb, at, h, 8) < 0)
			return LEFT_NOT_IP;
		p->headers = network + 8;
	}
	p->has_sum = 1;
	switch (p->proto) {
	case IPPROTO_UDP:
		p->has_sum = h[6] | h[7];
		if ((__u32)h[4] << 8 != ((p->len - network) & 0xff00) || h[5] != ((p->len - network) & 0xff))
			return LEFT_NOT_IP;
		/* fall through */
	case IPPROTO_TCP:
		last |= ((__u64)h[0] << 24 | (__u64)h[1] << 16 | (__u64)h[2] << 8 | h[3]) << 8;
		break;
	case IPPROTO_ICMP:
		pseudo = 0;
		p->tells_mtu = h[0] == ICMP_UNREACHABLE && h[1] == ICMP_FRAGMENTATION_NEEDED;
		break;
	case IPPROTO_ICMPV6:
		p->tells_mtu = h[0] == ICMPV6_PACKET_TOO_BIG;
		if (h[0] >= 133 && h[0] <= 137) /* neighbour discovery: RFC 4861 */
			return LEFT_PROTOCOL;
		break;
	}
	p->sum = ~fold(pseudo);
	p->hash[FLOW] = mix(hash ^ last) >> 32;
	return CARRIED;
}

#define HASH_SEED 0x9e3779b97f4a7c15ULL

/* Another hash than that of any flow, by what FlowHash has of the addresses. */
static __always_inline __u32 hash_addresses(__u64 hash, __u8 proto)
{
	return mix(~hash ^ proto) >> 32;
}

static __always_inline enum reason parse4(struct __sk_buff *skb, __u32 at, struct scratch *x)
{
	struct packet *p = &x->p;
	struct iphdr *h = &x->h.ip4;
	__u64 hash;

	if (bpf_skb_load_bytes(skb, at, h, sizeof(*h)) < 0 || h->version != 4)
		return LEFT_NOT_IP;
	hash = mix(HASH_SEED ^ pair(h->saddr, h->daddr));
	p->hash[ADDRESSES] = hash_addresses(hash, h->protocol);
	if (h->ihl != 5)
		return LEFT_OPTIONS;
	if (h->frag_off & bpf_htons(IP_FRAGMENT))
		return LEFT_FRAGMENT;
	if (h->protocol != IPPROTO_TCP && h->protocol != IPPROTO_UDP && h->protocol != IPPROTO_ICMP)
		return LEFT_PROTOCOL;
	if (fold(sum_ip(h)) != 0xffff)
		return LEFT_CHECKSUM;
	p->type = bpf_htons(ETH_P_IP);
	p->len = bpf_ntohs(h->tot_len);
	p->proto = h->protocol;
	p->ecn = h->tos & ECN_MASK;
	p->src4 = h->saddr;
	p->dst4 = h->daddr;
	return parse_transport(skb, at + sizeof(*h), x,
			       (__u64)h->saddr + h->daddr + bpf_htons(h->protocol) + bpf_htons(p->len - sizeof(*h)),
			       hash, sizeof(*h));
}

static __always_inline enum reason parse6(struct __sk_buff *skb, __u32 at, struct scratch *x)
{
	struct packet *p = &x->p;
	struct header6 *h = &x->h.ip6;
	__u64 pseudo = 0, hash = HASH_SEED;
	__u32 n;

	if (bpf_skb_load_bytes(skb, at, h, sizeof(*h)) < 0 || bpf_ntohl(h->start) >> 28 != 6)
		return LEFT_NOT_IP;
	hash = mix(hash ^ pair(h->src[0], h->src[1]));
	hash = mix(hash ^ pair(h->src[2], h->src[3]));
	hash = mix(hash ^ pair(h->dst[0], h->dst[1]));
	hash = mix(hash ^ pair(h->dst[2], h->dst[3]));
	if (h->proto == IPPROTO_FRAGMENT) {
		if (bpf_skb_load_bytes(skb, at + sizeof(*h), x->transport, 1) < 0)
			return LEFT_NOT_IP;
		p->hash[ADDRESSES] = hash_addresses(hash, x->transport[0]);
		return LEFT_FRAGMENT;
	}
	if (h->proto != IPPROTO_TCP && h->proto != IPPROTO_UDP && h->proto != IPPROTO_ICMPV6)
		return LEFT_PROTOCOL;
	p->hash[ADDRESSES] = hash_addresses(hash, h->proto);
	n = bpf_ntohs(h->len);
	p->type = bpf_htons(ETH_P_IPV6);
	p->len = n + sizeof(*h);
	p->proto = h->proto;
	p->ecn = bpf_ntohl(h->start) >> 20 & ECN_MASK;
#pragma unroll
	for (int i = 0; i < 4; i++) {
		p->src6[i] = h->src[i];
		p->dst6[i] = h->dst[i];
		pseudo += (__u64)h->src[i] + h->dst[i];
	}
	return parse_transport(skb, at + sizeof(*h), x, pseudo + bpf_htons(h->proto) + bpf_htons(n), hash, sizeof(*h));
}

static __always_inline struct peer *find4(struct scratch *x, __be32 a)
{
	x->prefix4.bits = 32;
	x->prefix4.address = a;
	return bpf_map_lookup_elem(&peers4, &x->prefix4);
}

static __always_inline struct peer *find6(struct scratch *x, __be32 *a)
{
	x->prefix6.bits = 128;
#pragma unroll
	for (int i = 0; i < 4; i++)
		x->prefix6.address[i] = a[i];
	return bpf_map_lookup_elem(&peers6, &x->prefix6);
}

/* The counters of a peer, NULL if there is no memory for them. */
static __always_inline struct traffic *traffic_of(struct scratch *x, struct peer *p)
{
	struct traffic *t;

	x->key = p->id;
	t = bpf_map_lookup_elem(&counters, &x->key);
	if (!t) {
		bpf_map_update_elem(&counters, &x->key, &x->none, BPF_NOEXIST);
		t = bpf_map_lookup_elem(&counters, &x->key);
	}
	return t;
}

/* How many packets a packet of the device stands for. */
static __always_inline __u32 segments(__u32 gso_size, struct packet *p)
{
	if (!gso_size || p->len <= p->headers)
		return 1;
	return (p->len - p->headers + gso_size - 1) / gso_size;
}

/* What the outer pseudo-header sums to. */
static __always_inline __u64 sum_pseudo(struct frame *f, int v6)
{
	__u64 s = (__u64)bpf_htons(IPPROTO_UDP) + f->udp.len;

	if (!v6)
		return s + f->ip4.saddr + f->ip4.daddr;
#pragma unroll
	for (int i = 0; i < 4; i++)
		s += (__u64)f->ip6.src[i] + f->ip6.dst[i];
	return s;
}

/* What the outer checksum has to be, never 0. The inner packet isn't read: it has a
 * checksum of its own. */
static __always_inline __u16 outer_sum(struct scratch *x, int v6)
{
	struct packet *p = &x->p;
	__u64 s = sum_pseudo(&x->f, v6) + p->sum;
	__u16 *w = (__u16 *)&x->f.udp;
	__u16 c;

#pragma unroll
	for (int i = 0; i < 15; i++) /* UDP 8, VXLAN 8 and Ethernet 14 bytes */
		if (i != 3)
			s += w[i];
	/* The sum of an IPv6 header is its own; that of IPv4's is 0. */
	if (p->type == bpf_htons(ETH_P_IPV6)) {
#pragma unroll
		for (int i = 0; i < 10; i++)
			s += x->h.words[i];
	}
	c = ~fold(s);
	return c ? c : 0xffff;
}

static __always_inline void count_tx(struct scratch *x, struct traffic *t, __u32 n, __u32 bytes, __u32 direct)
{
	struct totals *all = bpf_map_lookup_elem(&sums, &x->zero);

	t->tx_packets += n;
	t->tx_bytes += bytes;
	t->tx_direct += direct ? n : 0;
	if (all) {
		all->tx_packets += 1;
		all->tx_datagrams += direct ? 0 : n;
		all->tx_bytes += bytes;
		all->tx_direct += direct;
	}
}

/* The datagrams and frames of workers have neither, whatever the packet has. */
static __always_inline void clear_marks(struct __sk_buff *skb)
{
	skb->mark = 0;
	skb->priority = 0;
}

/* Sends a packet as it is to a peer on the same Ethernet. */
static __always_inline int send_direct(struct __sk_buff *skb, struct scratch *x, struct peer *peer, struct traffic *t)
{
	__u32 link = peer->link, n = segments(skb->gso_size, &x->p);

	__builtin_memcpy(x->eth.h_dest, peer->target, ETH_ALEN);
	__builtin_memcpy(x->eth.h_source, peer->source, ETH_ALEN);
	x->eth.h_proto = x->p.type;
	if (bpf_skb_change_head(skb, sizeof(x->eth), 0) < 0)
		return leave_flow(x, TX, LEFT_ERROR);
	if (bpf_skb_store_bytes(skb, 0, &x->eth, sizeof(x->eth), 0) < 0) {
		count(x, TX, LOST);
		return TC_ACT_SHOT;
	}
	clear_marks(skb);
	count_tx(x, t, n, x->p.len, 1);
	return bpf_redirect(link, 0);
}

/* Makes the outer headers of a frame over IPv4, but for the checksum. */
static __always_inline void outer4(struct settings *s, struct scratch *x, struct peer *peer)
{
	struct packet *p = &x->p;
	struct frame *f = &x->f;

	f->eth4.h_proto = bpf_htons(ETH_P_IP);
	f->ip4.version = 4;
	f->ip4.ihl = 5;
	f->ip4.tos = p->ecn;
	f->ip4.tot_len = bpf_htons(p->len + ROOM4);
	f->ip4.id = bpf_get_prandom_u32();
	f->ip4.ttl = 64;
	f->ip4.protocol = IPPROTO_UDP;
	f->ip4.saddr = s->local4;
	f->ip4.daddr = peer->address[0];
	f->ip4.check = ~fold(sum_ip(&f->ip4));
	f->udp.len = bpf_htons(p->len + ROOM4 - sizeof(f->ip4));
}

/* Likewise over IPv6. The flow label is the inner flow's (RFC 6438), of those for
 * whoever keeps no state of it (RFC 6437): the kernel's own ones have a secret. */
static __always_inline void outer6(struct settings *s, struct scratch *x, struct peer *peer)
{
	struct packet *p = &x->p;
	struct frame *f = &x->f;
	__u32 label = s->options & FLOW_LABELS ? p->hash[FLOW] >> 13 | 0x80000 : 0;

	f->eth6.h_proto = bpf_htons(ETH_P_IPV6);
	f->ip6.start = bpf_htonl(6U << 28 | (__u32)p->ecn << 20 | label);
	f->ip6.len = bpf_htons(p->len + ROOM6 - sizeof(f->ip6));
	f->ip6.proto = IPPROTO_UDP;
	f->ip6.limit = 64;
	__builtin_memcpy(f->ip6.src, s->local6, sizeof(f->ip6.src));
	__builtin_memcpy(f->ip6.dst, peer->address, sizeof(f->ip6.dst));
	f->udp.len = f->ip6.len;
}

static __always_inline int store_frame(struct __sk_buff *skb, struct frame *f, int v6)
{
	if (v6)
		return bpf_skb_store_bytes(skb, 0, &f->eth6, FRAME6_LEN, 0);
	return bpf_skb_store_bytes(skb, 0, &f->eth4, FRAME4_LEN, 0);
}

/* Sends a packet in VXLAN, whose longest segment has a length. */
static __always_inline int encapsulate(struct __sk_buff *skb, struct settings *s, struct scratch *x, struct peer *peer, __u32 longest,
				       int v6)
{
	struct bpf_fib_lookup *to = &x->to;
	struct packet *p = &x->p;
	struct frame *f = &x->f;
	struct traffic *t;
	__u32 gso = skb->gso_size, room = v6 ? ROOM6 : ROOM4;
	__u64 flags = BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET | BPF_F_ADJ_ROOM_ENCAP_L4_UDP |
		      BPF_F_ADJ_ROOM_ENCAP_L2(ETH_HLEN);

	if (gso) {
		if (p->proto != IPPROTO_TCP)
			return leave_flow(x, TX, LEFT_UDP_SUPERPACKET);
		/* Over IPv6 its segments must have an outer checksum each (RFC 8200, section
		 * 8.1), which the kernel can't be told to fill in. */
		if (v6 || !(s->options & SUPERPACKETS) || !(s->options & ENCAP_ETH) || p->len + room > MAX_IP_LEN)
			return leave_flow(x, TX, LEFT_SUPERPACKET);
	} else if (!p->has_sum) {
		return leave_flow(x, TX, LEFT_CHECKSUM);
	}
	if (!(v6 ? s->has6 : s->has4))
		return leave_flow(x, TX, LEFT_NO_ROUTE);
	if (held(x, TX, bpf_ktime_get_ns(), s, peer))
		return leave(x, TX, LEFT_FLOWLET);

	/* The kernel's routing decides, with what it has learnt of the path's MTU. The
	 * MTU of a route, which doesn't count for what is forwarded unless it is locked,
	 * is part of peer->longest. */
	__builtin_memset(to, 0, sizeof(*to));
	to->l4_protocol = IPPROTO_UDP;
	to->dport = s->port;
	to->tot_len = longest + room;
	to->ifindex = s->device;
	to->sport = s->port;
	if (v6) {
		to->family = AF_INET6;
		to->flowinfo = bpf_htonl((__u32)p->ecn << 20);
		__builtin_memcpy(to->ipv6_src, s->local6, sizeof(to->ipv6_src));
		__builtin_memcpy(to->ipv6_dst, peer->address, sizeof(to->ipv6_dst));
		if (s->ports6)
			to->sport = s->source_ports6[(p->hash[FLOW] % s->ports6) & (MAX_PORTS - 1)];
	} else {
		to->family = AF_INET;
		to->tos = p->ecn;
		to->ipv4_src = s->local4;
		to->ipv4_dst = peer->address[0];
		if (s->ports4)
			to->sport = s->source_ports4[(p->hash[FLOW] % s->ports4) & (MAX_PORTS - 1)];
	}
	__builtin_memset(f, 0, sizeof(*f));
	f->udp.source = to->sport;
	switch (bpf_fib_lookup(skb, to, sizeof(*to), 0)) {
	case BPF_FIB_LKUP_RET_SUCCESS:
		break;
	case BPF_FIB_LKUP_RET_FRAG_NEEDED:
		return leave_flow(x, TX, LEFT_TOO_LONG);
	case BPF_FIB_LKUP_RET_NO_NEIGH:
		return leave_flow(x, TX, LEFT_NO_NEIGHBOUR);
	default:
		return leave_flow(x, TX, LEFT_NO_ROUTE);
	}
	if (to->ifindex != s->underlay)
		return leave_flow(x, TX, LEFT_OTHER_LINK);
	if (to->family != (v6 ? AF_INET6 : AF_INET))
		return leave_flow(x, TX, LEFT_NO_ROUTE);
	t = traffic_of(x, peer);
	if (!t)
		return leave_flow(x, TX, LEFT_ERROR);

	f->udp.dest = s->port;
	f->vxlan_flags = bpf_htonl(VXLAN_HAS_VNI);
	f->vxlan_vni = s->vni;
	__builtin_memcpy(f->inner.h_dest, peer->mac, ETH_ALEN);
	__builtin_memcpy(f->inner.h_source, s->mac, ETH_ALEN);
	f->inner.h_proto = p->type;
	if (v6)
		outer6(s, x, peer);
	else
		outer4(s, x, peer);
	/* A superpacket's segments go without: the kernel can't be told to fill theirs
	 * in, and a peer must take them (RFC 7348, section 4.1). Others have one, or
	 * their receivers could not join them. */
	if (!gso)
		f->udp.check = outer_sum(x, v6);

	/* Only whoever segments it must know of the inner Ethernet header. */
	if (gso)
		flags |= BPF_F_ADJ_ROOM_ENCAP_L2_ETH;
	flags |= v6 ? BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 : BPF_F_ADJ_ROOM_ENCAP_L3_IPV4;
	if (bpf_skb_adjust_room(skb, room, BPF_ADJ_ROOM_MAC, flags) < 0)
		return leave_flow(x, TX, LEFT_ERROR); /* such as: it is a tunnel's already */
	/* The TUN has no link-layer header, and redirection takes one away. */
	if (bpf_skb_change_head(skb, ETH_HLEN, 0) < 0 || store_frame(skb, f, v6) < 0) {
		count(x, TX, LOST);
		return TC_ACT_SHOT;
	}
	clear_marks(skb);
	count_tx(x, t, segments(gso, p), p->len, 0);
	__builtin_memset(&x->next, 0, sizeof(x->next));
	x->next.nh_family = to->family;
	/* The gateway, or the peer itself. */
	if (v6)
		__builtin_memcpy(x->next.ipv6_nh, to->ipv6_dst, sizeof(x->next.ipv6_nh));
	else
		x->next.ipv4_nh = to->ipv4_dst;
	return bpf_redirect_neigh(to->ifindex, &x->next, sizeof(x->next), 0);
}

/* Not inlined: where both families' ways meet, the compiler would choose among pointers,
 * which verifiers refuse without CAP_PERFMON. */
static __noinline int encapsulate4(struct __sk_buff *skb, struct settings *s, struct scratch *x, struct peer *peer, __u32 longest)
{
	return encapsulate(skb, s, x, peer, longest, 0);
}

static __noinline int encapsulate6(struct __sk_buff *skb, struct settings *s, struct scratch *x, struct peer *peer, __u32 longest)
{
	return encapsulate(skb, s, x, peer, longest, 1);
}

static __always_inline int egress(struct __sk_buff *skb, struct settings *s, struct scratch *x)
{
	struct packet *p = &x->p;
	struct traffic *t;
	struct peer *peer;
	enum reason why;
	__u32 gso = skb->gso_size, longest;

	if (skb->protocol == bpf_htons(ETH_P_IP))
		why = parse4(skb, 0, x);
	else if (skb->protocol == bpf_htons(ETH_P_IPV6))
		why = parse6(skb, 0, x);
	else
		why = LEFT_NOT_IP;
	if (why != CARRIED)
		return leave_unparsed(x, TX, why);
	if (p->len != skb->len)
		return leave_flow(x, TX, LEFT_NOT_IP);
	peer = p->type == bpf_htons(ETH_P_IP) ? find4(x, p->dst4) : find6(x, p->dst6);
	if (!peer || !peer->longest)
		return leave(x, TX, LEFT_NO_PEER);
	if (p->proto == IPPROTO_TCP && p->tcp_flags & TCP_SYN)
		return leave(x, TX, LEFT_SYN);
	if (p->tells_mtu)
		return leave(x, TX, LEFT_PATH_MTU);

	/* A link takes what is longer than its MTU and drops it. */
	longest = gso ? p->headers + gso : p->len;
	if (longest > peer->longest)
		return leave_flow(x, TX, LEFT_TOO_LONG);
	if (!peer->link)
		return peer->v6 ? encapsulate6(skb, s, x, peer, longest) : encapsulate4(skb, s, x, peer, longest);
	if (held(x, TX, bpf_ktime_get_ns(), s, peer))
		return leave(x, TX, LEFT_FLOWLET);
	t = traffic_of(x, peer);
	if (!t)
		return leave_flow(x, TX, LEFT_ERROR);
	return send_direct(skb, x, peer, t);
}

/* The CPU's scratch, NULL if it is in use. */
static __always_inline struct scratch *take_scratch(void)
{
	__u64 zero = 0; /* eight bytes: see struct scratch */
	struct scratch *x = bpf_map_lookup_elem(&scratches, &zero);

	if (!x || x->busy)
		return NULL;
	x->busy = 1;
	__builtin_memset(&x->p, 0, sizeof(x->p));
	return x;
}

SEC("tc")
int vxlan_egress(struct __sk_buff *skb)
{
	__u64 zero = 0;
	struct settings *s = bpf_map_lookup_elem(&config, &zero);
	struct scratch *x;
	int action;

	if (!s || !(s->options & ON))
		return TC_ACT_UNSPEC;
	x = take_scratch();
	if (!x)
		return TC_ACT_UNSPEC;
	action = egress(skb, s, x);
	x->busy = 0;
	return action;
}

/* For each inner ECN field four bits, by the outer one: set where decapsulation leaves
 * the inner field as it is (RFC 6040, figure 4). */
#define ECN_STAYS 0xf577

static __always_inline int ecn_stays(__u8 inner, __u8 outer)
{
	return ECN_STAYS >> ((inner & ECN_MASK) << 2 | (outer & ECN_MASK)) & 1;
}

/* Tells whether the way to a packet's destination takes superpackets which still
 * bear the marks of a UDP tunnel. */
static __always_inline int is_tolerant(struct __sk_buff *skb, struct settings *s, struct scratch *x)
{
	struct bpf_fib_lookup *to = &x->to;
	struct packet *p = &x->p;

	__builtin_memset(to, 0, sizeof(*to));
	to->ifindex = s->device;
	to->l4_protocol = p->proto;
	to->tot_len = 0;
	if (p->type == bpf_htons(ETH_P_IP)) {
		to->family = AF_INET;
		to->ipv4_src = p->src4;
		to->ipv4_dst = p->dst4;
	} else {
		to->family = AF_INET6;
#pragma unroll
		for (int i = 0; i < 4; i++) {
			to->ipv6_src[i] = p->src6[i];
			to->ipv6_dst[i] = p->dst6[i];
		}
	}
	switch (bpf_fib_lookup(skb, to, sizeof(*to), 0)) {
	case BPF_FIB_LKUP_RET_SUCCESS:
	case BPF_FIB_LKUP_RET_NO_NEIGH:
	case BPF_FIB_LKUP_RET_FRAG_NEEDED: /* by the whole's length, which isn't a segment's */
		x->key = to->ifindex;
		return bpf_map_lookup_elem(&tolerant, &x->key) != NULL;
	case BPF_FIB_LKUP_RET_NOT_FWDED:
	case BPF_FIB_LKUP_RET_FWD_DISABLED:
		return 1; /* it stays on this host */
	}
	return 0;
}

/* Tells whether a datagram's checksum holds, as far as that doesn't take its
 * payload: the inner packet has a checksum of its own. */
static __always_inline int sum_holds(struct __sk_buff *skb, struct scratch *x, int v6)
{
	struct frame *f = &x->f;

	if (!f->udp.check)
		return !v6; /* which must have one: RFC 8200, section 8.1 */
	if (bpf_csum_level(skb, BPF_CSUM_LEVEL_QUERY) >= 0)
		return 1; /* the NIC has verified it */
	/* A host on this machine leaves it to a NIC that there isn't: the field has
	 * the pseudo-header's. */
	if (f->udp.check == fold(sum_pseudo(f, v6)))
		return 1;
	return x->p.has_sum && f->udp.check == outer_sum(x, v6);
}

/* What a packet of the underlay's is. */
enum sort {
	FOREIGN,  /* nothing for us */
	FIRST,    /* the first fragment of a datagram for us */
	DATAGRAM, /* a whole one */
};

/* Reads the headers of a datagram over IPv4. */
static __always_inline enum sort read4(struct __sk_buff *skb, struct settings *s, struct scratch *x)
{
	struct frame *f = &x->f;

	if (!s->has4 || bpf_skb_load_bytes(skb, 0, &f->eth4, FRAME4_LEN) < 0 || f->ip4.version != 4 || f->ip4.ihl != 5 ||
	    f->ip4.protocol != IPPROTO_UDP || f->ip4.daddr != s->local4 || f->ip4.frag_off & bpf_htons(IP_OFFSET) ||
	    f->udp.dest != s->port)
		return FOREIGN;
	x->p.hash[WAY] = mix(HASH_SEED ^ pair(f->ip4.saddr, f->udp.source)) >> 32;
	return f->ip4.frag_off & bpf_htons(IP_FRAGMENT) ? FIRST : DATAGRAM;
}

static __always_inline int same6(__be32 *a, __be32 *b)
{
	return !((a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]));
}

/* Likewise over IPv6. Of extension headers there may be that of a fragment. */
static __always_inline enum sort read6(struct __sk_buff *skb, struct settings *s, struct scratch *x)
{
	struct frame *f = &x->f;
	__u8 *h = x->transport;
	enum sort is = DATAGRAM;

	if (!s->has6 || bpf_skb_load_bytes(skb, 0, &f->eth6, FRAME6_LEN) < 0 || bpf_ntohl(f->ip6.start) >> 28 != 6 ||
	    !same6(f->ip6.dst, s->local6))
		return FOREIGN;
	if (f->ip6.proto == IPPROTO_FRAGMENT) {
		if (bpf_skb_load_bytes(skb, ETH_HLEN + sizeof(f->ip6), h, 8) < 0 ||
		    bpf_skb_load_bytes(skb, ETH_HLEN + sizeof(f->ip6) + 8, &f->udp, sizeof(f->udp)) < 0 ||
		    h[0] != IPPROTO_UDP || h[2] | (h[3] & 0xf8)) /* the offset */
			return FOREIGN;
		is = FIRST;
	} else if (f->ip6.proto != IPPROTO_UDP) {
		return FOREIGN;
	}
	if (f->udp.dest != s->port)
		return FOREIGN;
	x->p.hash[WAY] = mix(mix(mix(HASH_SEED ^ pair(f->ip6.src[0], f->ip6.src[1])) ^ pair(f->ip6.src[2], f->ip6.src[3])) ^
			     f->udp.source) >> 32;
	return is;
}

/* Tells whether a frame came from a peer's address. */
static __always_inline int is_from(struct frame *f, struct peer *peer, int v6)
{
	if (v6)
		return peer->v6 && same6(f->ip6.src, peer->address);
	return !peer->v6 && f->ip4.saddr == peer->address[0];
}

static __always_inline void count_rx(struct scratch *x, struct traffic *t, __u32 n, __u64 now)
{
	struct totals *all = bpf_map_lookup_elem(&sums, &x->zero);

	t->rx_packets += n;
	t->rx_bytes += x->p.len;
	t->rx_seen = now;
	if (all) {
		all->rx_packets += 1;
		all->rx_datagrams += n;
		all->rx_bytes += x->p.len;
	}
}

static __always_inline int has_relay(struct settings *s, struct scratch *x)
{
	x->key = DEVICE_RELAY;
	return s->relay && s->options & DECAP_OTHER && bpf_map_lookup_elem(&devices, &x->key) != NULL;
}

/* Tells whether packets of a packet's flow were relayed just before: it would overtake
 * them. */
static __always_inline int follows_relayed(struct scratch *x, __u64 now)
{
	__u64 *at = flowlet(x, RELAYED, FLOW);

	return at && (__s64)(now - *at) < RELAYED_FOR;
}

static __always_inline void note_relayed(struct scratch *x, __u64 now)
{
	__u64 *at = flowlet(x, RELAYED, FLOW);

	if (at)
		*at = now;
}

#define SEGMENT_LEN (2 * ETH_HLEN + sizeof(struct header6))
_Static_assert(SEGMENT_LEN == 68, "the headers lie close together");

/* Has a packet leave its frame by the relay. */
static __always_inline int relay(struct __sk_buff *skb, struct settings *s, struct scratch *x, __u32 room, __u64 flags, __be16 type)
{
	const __u8 mac[ETH_ALEN] = RELAY_MAC;
	const __be32 src[4] = RELAY_SOURCE, dst[4] = RELAY_ADDRESS;
	struct relayed *n;

	__builtin_memset(&x->segment, 0, sizeof(x->segment));
	x->segment.eth.h_proto = bpf_htons(ETH_P_IPV6);
	x->segment.ip6.start = bpf_htonl(6U << 28);
	x->segment.ip6.len = bpf_htons(x->p.len + ETH_HLEN);
	x->segment.ip6.proto = IPPROTO_ETHERNET_FRAME;
	x->segment.ip6.limit = 64;
	__builtin_memcpy(x->segment.ip6.src, src, sizeof(src));
	__builtin_memcpy(x->segment.ip6.dst, dst, sizeof(dst));
	__builtin_memcpy(x->segment.inner.h_dest, mac, ETH_ALEN);
	x->segment.inner.h_proto = x->p.type;
	/* In two steps, since only taking away changes the kernel's idea of the protocol. */
	if (type != bpf_htons(ETH_P_IPV6))
		flags |= BPF_F_ADJ_ROOM_DECAP_L3_IPV6;
	if (bpf_skb_adjust_room(skb, -(__s32)room, BPF_ADJ_ROOM_MAC, flags) < 0)
		return leave_flow(x, RX, LEFT_ERROR);
	bpf_csum_level(skb, BPF_CSUM_LEVEL_DEC);
	if (bpf_skb_adjust_room(skb, SEGMENT_LEN - ETH_HLEN, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET) < 0 ||
	    bpf_skb_store_bytes(skb, 0, &x->segment.eth, SEGMENT_LEN, 0) < 0) {
		count(x, RX, LOST);
		return TC_ACT_SHOT;
	}
	n = bpf_map_lookup_elem(&relayed, &x->zero);
	if (n)
		n->out += 1;
	return bpf_redirect_peer(s->relay, 0);
}

static __always_inline int ingress(struct __sk_buff *skb, struct settings *s, struct scratch *x, int v6)
{
	struct packet *p = &x->p;
	struct frame *f = &x->f;
	struct traffic *t;
	struct peer *peer;
	enum reason why;
	__u32 gso = skb->gso_size, room = v6 ? ROOM6 : ROOM4;
	int action, relayed = 0;
	__u64 flags = BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET, now;
	__be16 type = v6 ? bpf_htons(ETH_P_IPV6) : bpf_htons(ETH_P_IP);
	enum sort is;
	__u8 ecn;

	is = v6 ? read6(skb, s, x) : read4(skb, s, x);
	if (is == FOREIGN || !bpf_map_lookup_elem(&devices, &x->zero)) /* DEVICE_TUN */
		return TC_ACT_UNSPEC;
	if (is == FIRST)
		return leave_kin(x, RX, WAY, LEFT_FRAGMENT);
	if (!(f->vxlan_flags & bpf_htonl(VXLAN_HAS_VNI)) || (f->vxlan_vni & bpf_htonl(0xffffff00)) != s->vni)
		return leave(x, RX, LEFT_FOREIGN_VNI);
	if (*(__u32 *)f->inner.h_dest != *(__u32 *)s->mac || *(__u16 *)&f->inner.h_dest[4] != *(__u16 *)&s->mac[4])
		return leave(x, RX, LEFT_INNER_MAC);
	if (f->inner.h_proto != type && !(s->options & DECAP_OTHER))
		why = LEFT_PROTOCOL;
	else if (f->inner.h_proto == bpf_htons(ETH_P_IP))
		why = parse4(skb, room + ETH_HLEN, x);
	else if (f->inner.h_proto == bpf_htons(ETH_P_IPV6))
		why = parse6(skb, room + ETH_HLEN, x);
	else
		why = LEFT_NOT_IP;
	if (why != CARRIED)
		return leave_unparsed(x, RX, why);
	peer = p->type == bpf_htons(ETH_P_IP) ? find4(x, p->src4) : find6(x, p->src6);
	if (!peer || !peer->longest || !is_from(f, peer, v6))
		return leave(x, RX, LEFT_INNER_SOURCE);

	if (p->len + room + ETH_HLEN != skb->len || bpf_ntohs(f->udp.len) != p->len + room - (v6 ? sizeof(f->ip6) : sizeof(f->ip4)) ||
	    (v6 ? f->ip6.len != f->udp.len : bpf_ntohs(f->ip4.tot_len) != p->len + ROOM4))
		return leave_kin(x, RX, WAY, LEFT_AGGREGATE); /* of several flows, perhaps */
	ecn = v6 ? bpf_ntohl(f->ip6.start) >> 20 : f->ip4.tos;
	if (!ecn_stays(p->ecn, ecn))
		return leave_flow(x, RX, LEFT_ECN);
	if (!v6 && fold(sum_ip(&f->ip4)) != 0xffff)
		return leave_flow(x, RX, LEFT_CHECKSUM);
	now = bpf_ktime_get_ns();
	if (p->proto == IPPROTO_TCP && has_relay(s, x))
		relayed = follows_relayed(x, now);
	if (gso) {
		if (p->proto != IPPROTO_TCP)
			return leave_flow(x, RX, LEFT_UDP_SUPERPACKET);
		if (!(s->options & SUPERPACKETS))
			return leave_flow(x, RX, LEFT_SUPERPACKET);
		if (v6 && !f->udp.check)
			return leave_flow(x, RX, LEFT_CHECKSUM);
		if (s->options & DECAP_L4_UDP)
			flags |= BPF_F_ADJ_ROOM_DECAP_L4_UDP;
		else if (!relayed && !is_tolerant(skb, s, x)) {
			if (!has_relay(s, x))
				return leave_flow(x, RX, LEFT_SUPERPACKET);
			relayed = 1;
		}
	} else {
		/* Before Linux 5.12 redirection drops it. */
		if (s->mtu && p->len > s->mtu)
			return leave_flow(x, RX, LEFT_TOO_LONG);
		if (s->bulk && p->proto == IPPROTO_TCP && p->len >= s->bulk)
			return leave_flow(x, RX, LEFT_BULK);
		if (!sum_holds(skb, x, v6))
			return leave_flow(x, RX, LEFT_CHECKSUM);
	}
	if (held(x, RX, now, s, peer))
		return leave(x, RX, LEFT_FLOWLET);
	t = traffic_of(x, peer);
	if (!t)
		return leave_flow(x, RX, LEFT_ERROR);

	if (relayed) {
		note_relayed(x, now);
		action = relay(skb, s, x, room, BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET, type);
		if (action == TC_ACT_REDIRECT)
			count_rx(x, t, segments(gso, p), now);
		return action;
	}
	if (p->type != type)
		flags |= v6 ? BPF_F_ADJ_ROOM_DECAP_L3_IPV4 : BPF_F_ADJ_ROOM_DECAP_L3_IPV6;
	if (bpf_skb_adjust_room(skb, -(__s32)room, BPF_ADJ_ROOM_MAC, flags) < 0)
		return leave_flow(x, RX, LEFT_ERROR);
	bpf_csum_level(skb, BPF_CSUM_LEVEL_DEC);
	if (p->type != type && bpf_skb_store_bytes(skb, 12, &p->type, sizeof(p->type), 0) < 0) {
		count(x, RX, LOST);
		return TC_ACT_SHOT;
	}
	count_rx(x, t, segments(gso, p), now);
	return bpf_redirect(s->device, BPF_F_INGRESS);
}

static __noinline int ingress4(struct __sk_buff *skb, struct settings *s, struct scratch *x)
{
	return ingress(skb, s, x, 0);
}

static __noinline int ingress6(struct __sk_buff *skb, struct settings *s, struct scratch *x)
{
	return ingress(skb, s, x, 1);
}

SEC("tc")
int vxlan_ingress(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct settings *s;
	struct scratch *x;
	__u64 zero = 0;
	int action, v6 = 0;

	if (skb->pkt_type != PACKET_HOST || skb->vlan_present)
		return TC_ACT_UNSPEC;
	if (skb->protocol == bpf_htons(ETH_P_IPV6))
		v6 = 1;
	else if (skb->protocol != bpf_htons(ETH_P_IP))
		return TC_ACT_UNSPEC;
	s = bpf_map_lookup_elem(&config, &zero);
	if (!s || !(s->options & ON))
		return TC_ACT_UNSPEC;
	/* Most of what isn't ours. */
	if (v6 && data + sizeof(struct ethhdr) + sizeof(struct header6) + sizeof(struct udphdr) <= end) {
		struct header6 *ip = data + sizeof(struct ethhdr);
		struct udphdr *udp = (void *)(ip + 1);

		if (ip->proto != IPPROTO_FRAGMENT && (ip->proto != IPPROTO_UDP || udp->dest != s->port))
			return TC_ACT_UNSPEC;
	} else if (!v6 && data + sizeof(struct ethhdr) + sizeof(struct iphdr) + sizeof(struct udphdr) <= end) {
		struct iphdr *ip = data + sizeof(struct ethhdr);
		struct udphdr *udp = (void *)(ip + 1);

		if (ip->protocol != IPPROTO_UDP || udp->dest != s->port)
			return TC_ACT_UNSPEC;
	}
	x = take_scratch();
	if (!x)
		return TC_ACT_UNSPEC;
	action = v6 ? ingress6(skb, s, x) : ingress4(skb, s, x);
	x->busy = 0;
	return action;
}

/* Reads the Ethernet header of a frame, and tells whether it is one of the relay's: the
 * kernel itself sends some by its interfaces. */
static __always_inline int is_relayed(struct __sk_buff *skb, __u64 *h)
{
	const __u8 mac[ETH_ALEN] = RELAY_MAC;
	__u8 *b = (__u8 *)h;

	if (bpf_skb_load_bytes(skb, 0, h, ETH_HLEN) < 0)
		return 0;
#pragma unroll
	for (int i = 0; i < ETH_ALEN; i++)
		if (b[i] != mac[i])
			return 0;
	return 1;
}

/* Runs on what the route sends back, before it leaves the relay. The route leaves the
 * kernel's idea of where the network header begins at the Ethernet header's place, with
 * which a superpacket would be dropped. Another header before this one, in its place
 * after it is taken away, sets it right. */
SEC("tc")
int vxlan_relay_out(struct __sk_buff *skb)
{
	__u64 h[2] = {};

	if (!is_relayed(skb, h) || bpf_skb_change_head(skb, ETH_HLEN, 0) < 0 ||
	    bpf_skb_adjust_room(skb, -ETH_HLEN, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET) < 0 ||
	    bpf_skb_store_bytes(skb, 0, h, ETH_HLEN, 0) < 0)
		return TC_ACT_SHOT;
	return TC_ACT_OK;
}

/* Runs on what comes back from the relay. */
SEC("tc")
int vxlan_relay_in(struct __sk_buff *skb)
{
	__u64 zero = 0, h[2] = {};
	struct settings *s = bpf_map_lookup_elem(&config, &zero);
	struct relayed *n;

	if (!s || !is_relayed(skb, h))
		return TC_ACT_SHOT;
	n = bpf_map_lookup_elem(&relayed, &zero);
	if (n)
		n->back += 1;
	return bpf_redirect(s->device, BPF_F_INGRESS);
}

/* bpf_csum_level and others are for GPL-compatible programs only. */
char _license[] SEC("license") = "Dual BSD/GPL";
