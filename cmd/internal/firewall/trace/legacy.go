package trace

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The structures of iptables-legacy's tables, as the kernel hands them out
// (linux/netfilter_ipv4/ip_tables.h, linux/netfilter_ipv6/ip6_tables.h,
// linux/netfilter/x_tables.h).
type (
	getInfo struct {
		Name       [32]byte
		ValidHooks uint32
		HookEntry  [5]uint32
		Underflow  [5]uint32
		NumEntries uint32
		Size       uint32
	}
	getEntries struct {
		Name    [32]byte
		Size    uint32
		Entries [0]uint64
	}
	entry4 struct {
		Src, Dst, SrcMask, DstMask [4]byte
		In, Out, InMask, OutMask   [nameSize]byte
		Protocol                   uint16
		Flags, Invert              uint8
		Cache                      uint32
		TargetOffset, NextOffset   uint16
		ComeFrom                   uint32
		Packets, Bytes             uint64
	}
	entry6 struct {
		Src, Dst, SrcMask, DstMask [16]byte
		In, Out, InMask, OutMask   [nameSize]byte
		Protocol                   uint16
		TOS, Flags, Invert         uint8
		Cache                      uint32
		TargetOffset, NextOffset   uint16
		ComeFrom                   uint32
		Packets, Bytes             uint64
	}
	extension struct { // struct xt_entry_match, and xt_entry_target
		Size     uint16
		Name     [29]byte
		Revision uint8
	}
)

const (
	optGetInfo, optGetEntries = 64, 65 // IPT_SO_GET_INFO, IPT_SO_GET_ENTRIES; ip6tables' are the same
	errorTarget               = "ERROR"
	// Bits of invflags in struct ipt_ip and struct ip6t_ip6.
	invertIn, invertOut, invertSrc, invertDst, invertFragment, invertProtocol = 0x01, 0x02, 0x08, 0x10, 0x20, 0x40
	flagFragment, flagGoto4, flagGoto6                                        = 0x01, 0x02, 0x04
	xtReturn                                                                  = -5
)

// legacyTables are the tables whose chains may drop forwarded packets.
var legacyTables = []string{"raw", "mangle", "filter", "security"}

// legacyNAT is the table that translates addresses.
const legacyNAT = "nat"

// legacyBases returns the base chains of iptables-legacy at some hooks, in those of
// the tables that there are. It makes no table that isn't there.
func legacyBases(v6 bool, hooks []hook, tables []string) (bases []base, err error) {
	list := "/proc/thread-self/net/ip_tables_names"
	if v6 {
		list = "/proc/thread-self/net/ip6_tables_names"
	}
	names, err := os.ReadFile(list)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list the tables of iptables-legacy: %w", err)
	}
	var errs []error
	for name := range strings.FieldsSeq(string(names)) {
		if !slices.Contains(tables, name) {
			continue
		}
		t, err := readLegacy(name, v6)
		if err != nil {
			errs = append(errs, fmt.Errorf("read table %s of iptables-legacy: %w", name, err))
			continue
		}
		for _, h := range hooks {
			if t.has(h) {
				bases = append(bases, t.base(h))
			}
		}
	}
	return bases, errors.Join(errs...)
}

// legacyTable is a table as the kernel has it: entries at their offsets.
type legacyTable struct {
	name    string
	v6      bool
	entries []legacyRule // in order
	info    getInfo
}

// legacyRule is an entry of a table.
type legacyRule struct {
	table                      *legacyTable
	at, next                   int
	src, dst, srcMask, dstMask []byte
	in, out, inMask, outMask   []byte
	protocol                   uint16
	flags, invert              uint8
	matches                    []part
	target                     part
}

// part is a match or a target.
type part struct {
	name     string
	revision uint32
	info     []byte
}

func readLegacy(name string, v6 bool) (*legacyTable, error) {
	family, level := unix.AF_INET, unix.IPPROTO_IP
	if v6 {
		family, level = unix.AF_INET6, unix.IPPROTO_IPV6
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	for range tries {
		var info getInfo
		copy(info.Name[:], name)
		if err := option(fd, level, optGetInfo, unsafe.Slice((*byte)(unsafe.Pointer(&info)), unsafe.Sizeof(info))); err != nil {
			return nil, err
		}
		const begin = unsafe.Offsetof(getEntries{}.Entries)
		buf := make([]byte, int(begin)+int(info.Size))
		copy(buf, name)
		binary.NativeEndian.PutUint32(buf[len(info.Name):], info.Size)
		err := option(fd, level, optGetEntries, buf)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINVAL) {
			continue // the table has changed in between
		}
		if err != nil {
			return nil, err
		}
		t := &legacyTable{name: name, v6: v6, info: info}
		return t, t.parse(buf[begin:])
	}
	return nil, errors.New("it changes all the time")
}

// option reads a socket option into b. The content of b is part of the request.
func option(fd, level, name int, b []byte) error {
	size := uint32(len(b))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name),
		uintptr(unsafe.Pointer(&b[0])), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return os.NewSyscallError("getsockopt", errno)
	}
	return nil
}

var errShort = errors.New("an entry is cut off")

func (t *legacyTable) parse(b []byte) error {
	for at := 0; at < len(b); {
		r, target, err := t.entry(b[at:])
		if err != nil {
			return err
		}
		r.table, r.at = t, at
		size := int(unsafe.Sizeof(entry4{}))
		if t.v6 {
			size = int(unsafe.Sizeof(entry6{}))
		}
		whole := b[at : at+r.next]
		r.next += at
		for m := size; m < target; {
			p, n, err := parsePart(whole[m:target])
			if err != nil {
				return err
			}
			r.matches = append(r.matches, p)
			m += n
		}
		if r.target, _, err = parsePart(whole[target:]); err != nil {
			return err
		}
		t.entries = append(t.entries, r)
		at = r.next
	}
	return nil
}

// entry reads the fields that all entries have. The field next is relative to
// the entry.
func (t *legacyTable) entry(b []byte) (r legacyRule, target int, err error) {
	if t.v6 {
		var e entry6
		if len(b) < int(unsafe.Sizeof(e)) {
			return r, 0, errShort
		}
		copy(unsafe.Slice((*byte)(unsafe.Pointer(&e)), unsafe.Sizeof(e)), b)
		r = legacyRule{
			next: int(e.NextOffset), src: e.Src[:], dst: e.Dst[:], srcMask: e.SrcMask[:], dstMask: e.DstMask[:],
			in: e.In[:], out: e.Out[:], inMask: e.InMask[:], outMask: e.OutMask[:], protocol: e.Protocol, flags: e.Flags, invert: e.Invert,
		}
		target = int(e.TargetOffset)
	} else {
		var e entry4
		if len(b) < int(unsafe.Sizeof(e)) {
			return r, 0, errShort
		}
		copy(unsafe.Slice((*byte)(unsafe.Pointer(&e)), unsafe.Sizeof(e)), b)
		r = legacyRule{
			next: int(e.NextOffset), src: e.Src[:], dst: e.Dst[:], srcMask: e.SrcMask[:], dstMask: e.DstMask[:],
			in: e.In[:], out: e.Out[:], inMask: e.InMask[:], outMask: e.OutMask[:], protocol: e.Protocol, flags: e.Flags, invert: e.Invert,
		}
		target = int(e.TargetOffset)
	}
	if r.next == 0 || r.next > len(b) || target >= r.next {
		return r, 0, errShort
	}
	return r, target, nil
}

func parsePart(b []byte) (p part, size int, err error) {
	const head = int(unsafe.Sizeof(extension{}))
	if len(b) < head {
		return p, 0, errShort
	}
	size = int(binary.NativeEndian.Uint16(b))
	if size < head || size > len(b) {
		return p, 0, errShort
	}
	return part{unix.ByteSliceToString(b[2 : head-1]), uint32(b[head-1]), b[head:size]}, size, nil
}

// has tells whether the table has a chain at a hook.
func (t *legacyTable) has(h hook) bool { return t.info.ValidHooks&(1<<h) != 0 }

func (t *legacyTable) base(h hook) base {
	b := base{hook: h, drop: Drop{Legacy: true, Family: families[unix.NFPROTO_IPV4], Table: t.name, Base: h.chain()}}
	begin, policy := int(t.info.HookEntry[h]), int(t.info.Underflow[h])
	if t.v6 {
		b.drop.Family = families[unix.NFPROTO_IPV6]
	}
	b.chain = func(name string) ([]rule, error) {
		for i, e := range t.entries {
			if e.target.name == errorTarget && unix.ByteSliceToString(e.target.info) == name {
				return t.from(i+1, -1), nil
			}
		}
		return nil, fmt.Errorf("chain %s is gone", name)
	}
	for i, e := range t.entries {
		if e.at == begin {
			b.rules = t.from(i, policy)
		}
		if e.at == policy && len(e.target.info) >= 4 && int32(binary.NativeEndian.Uint32(e.target.info)) == -nfDrop-1 {
			b.policy = drops
		}
	}
	return b
}

// from returns the rules of a chain, beginning with entry i. It leaves out the
// chain's policy, which is the entry at offset policy.
func (t *legacyTable) from(i, policy int) (rules []rule) {
	for _, e := range t.entries[i:] {
		if e.target.name == errorTarget || e.at == policy {
			break
		}
		rules = append(rules, e)
	}
	return rules
}

func (r legacyRule) steps(s *state) ([]step, error) {
	m := r.match(s)
	for _, p := range r.matches {
		if m == no {
			break
		}
		m = m.and(matches(p.name, p.revision, p.info, s))
	}
	s.matched = m
	if m == no {
		return nil, nil
	}
	if r.target.name != "" {
		return target(r.target.name, s, m), nil
	}
	if len(r.target.info) < 4 {
		return nil, errShort
	}
	switch v := int32(binary.NativeEndian.Uint32(r.target.info)); {
	case v == xtReturn:
		return []step{{match: m, verdict: returns}}, nil
	case v == -nfDrop-1:
		return []step{{match: m, verdict: drops}}, nil
	case v == -nfAccept-1:
		return []step{{match: m, verdict: accepts}}, nil
	case v < 0:
		return []step{{match: m, verdict: leaves}}, nil
	case int(v) == r.next:
		return nil, nil // a rule without a target
	default:
		return r.jump(int(v), m)
	}
}

// jump returns the step to the chain whose first entry is at an offset.
func (r legacyRule) jump(to int, m tri) ([]step, error) {
	verdict, flag := jumps, uint8(flagGoto4)
	if r.table.v6 {
		flag = flagGoto6
	}
	if r.flags&flag != 0 {
		verdict = goesTo
	}
	name, err := r.table.chainAt(to)
	return []step{{match: m, verdict: verdict, chain: name}}, err
}

func (t *legacyTable) chainAt(at int) (string, error) {
	for i, e := range t.entries {
		if e.at == at && i > 0 && t.entries[i-1].target.name == errorTarget {
			return unix.ByteSliceToString(t.entries[i-1].target.info), nil
		}
	}
	return "", fmt.Errorf("a rule jumps to %d, where no chain begins", at)
}

// match compares the fields that every entry has.
func (r legacyRule) match(s *state) tri {
	inverted := func(is tri, flag uint8) tri {
		if r.invert&flag != 0 {
			return is.not()
		}
		return is
	}
	compare := func(v value, want, mask []byte) tri {
		if zero(mask) {
			return yes
		}
		return v.masked(mask, make([]byte, len(mask))).is(combine(want, mask, make([]byte, len(mask))))
	}
	is := inverted(compare(s.src, r.src, r.srcMask), invertSrc)
	is = is.and(inverted(compare(s.dst, r.dst, r.dstMask), invertDst))
	is = is.and(inverted(compare(s.in.name, r.in, r.inMask), invertIn))
	is = is.and(inverted(compare(s.out.name, r.out, r.outMask), invertOut))
	if r.protocol != 0 {
		is = is.and(inverted(s.protocol.is([]byte{byte(r.protocol)}), invertProtocol))
	}
	if !r.table.v6 && r.flags&flagFragment != 0 { // all but a first one
		is = is.and(inverted(no, invertFragment))
	}
	return is
}

// text returns the rule much as iptables -S writes it.
func (r legacyRule) text() string {
	var words []string
	add := func(flag uint8, option, value string) {
		if r.invert&flag != 0 {
			option = "! " + option
		}
		words = append(words, option+" "+value)
	}
	if !zero(r.srcMask) {
		add(invertSrc, "-s", addressText(r.src, r.srcMask))
	}
	if !zero(r.dstMask) {
		add(invertDst, "-d", addressText(r.dst, r.dstMask))
	}
	if !zero(r.inMask) {
		add(invertIn, "-i", nameText(r.in, r.inMask))
	}
	if !zero(r.outMask) {
		add(invertOut, "-o", nameText(r.out, r.outMask))
	}
	if r.protocol != 0 {
		p, is := protocols[byte(r.protocol)]
		if !is {
			p = fmt.Sprint(r.protocol)
		}
		add(invertProtocol, "-p", p)
	}
	for _, p := range r.matches {
		if p.name != "comment" {
			words = append(words, matchWords(p.name, p.revision, p.info))
		}
	}
	name := r.target.name
	if name == "" && len(r.target.info) >= 4 {
		switch v := int32(binary.NativeEndian.Uint32(r.target.info)); v {
		case -nfDrop - 1:
			name = "DROP"
		case -nfAccept - 1:
			name = "ACCEPT"
		default:
			name = unknown
		}
	}
	return strings.Join(append(words, "-j "+name), " ")
}

func addressText(b, mask []byte) string {
	return field{words: map[int]string{4: "ip", 16: "ip6"}[len(b)], mask: mask}.address(b)
}

// nameText returns an interface's name, or what the names must begin with and
// "+".
func nameText(name, mask []byte) string {
	n := string(name[:bytes.IndexByte(append(bytes.Clone(mask), 0), 0)])
	if strings.HasSuffix(n, "\x00") {
		return unix.ByteSliceToString(name)
	}
	return n + "+"
}
