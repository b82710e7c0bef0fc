package probe

import (
	"fmt"
	"net/netip"
)

// ICMPError says why a request was not delivered, and who says so: a router on the
// way, the host that was asked, or this host, where there is no route or nobody
// answers ARP.
type ICMPError struct {
	From netip.Addr
	// Type and Code are those of ICMP (RFC 792, RFC 1812) or, if From is an IPv6
	// address, of ICMPv6 (RFC 4443).
	Type, Code uint8
	// MTU is how long a packet may be, in bytes, if this one was too long; 0 if it
	// wasn't, or if the router doesn't say.
	MTU int
}

const (
	codeFragmentationNeeded = 4
	codeProhibitedV6        = 1
)

// TooBig tells whether the packet was too long for the way and may not be fragmented.
func (e *ICMPError) TooBig() bool {
	if e.From.Is4() {
		return e.Type == typeUnreachable && e.Code == codeFragmentationNeeded
	}
	return e.Type == typeTooBigV6
}

// Prohibited tells whether somebody's rules refuse the packet, as a firewall's do.
func (e *ICMPError) Prohibited() bool {
	if e.From.Is4() {
		return e.Type == typeUnreachable && (e.Code == 9 || e.Code == 10 || e.Code == 13)
	}
	return e.Type == typeUnreachableV6 && e.Code == codeProhibitedV6
}

// setMTU takes the MTU from the second word of an error's header (RFC 1191, section
// 4; RFC 4443, section 3.2).
func (e *ICMPError) setMTU(word uint32) {
	switch {
	case !e.TooBig():
	case e.From.Is4():
		e.MTU = int(uint16(word))
	default:
		e.MTU = int(min(word, maxSize))
	}
}

// Error names who says what, such as "192.0.2.1 says: host unreachable".
func (e *ICMPError) Error() string { return fmt.Sprintf("%s says: %s", e.From, e.words()) }

func (e *ICMPError) words() string {
	if e.TooBig() {
		if e.MTU == 0 {
			return "packet too big"
		}
		return fmt.Sprintf("packet too big, the MTU is %d", e.MTU)
	}
	names := namesV4
	if !e.From.Is4() {
		names = namesV6
	}
	if name, ok := names[[2]uint8{e.Type, e.Code}]; ok {
		return name
	}
	return fmt.Sprintf("ICMP type %d, code %d", e.Type, e.Code)
}

// namesV4 and namesV6 are the names of types and codes.
var (
	namesV4 = map[[2]uint8]string{
		{typeUnreachable, 0}: "network unreachable", {typeUnreachable, 1}: "host unreachable",
		{typeUnreachable, 2}: "protocol unreachable", {typeUnreachable, 3}: "port unreachable",
		{typeUnreachable, 6}: "network unknown", {typeUnreachable, 7}: "host unknown",
		{typeUnreachable, 9}: "network administratively prohibited", {typeUnreachable, 10}: "host administratively prohibited",
		{typeUnreachable, 13}: "administratively prohibited",
		{typeTimeExceeded, 0}: "TTL exceeded, the packets loop", {typeTimeExceeded, 1}: "fragments are missing",
		{typeBadParameter, 0}: "bad header",
	}
	namesV6 = map[[2]uint8]string{
		{typeUnreachableV6, 0}: "no route", {typeUnreachableV6, codeProhibitedV6}: "administratively prohibited",
		{typeUnreachableV6, 2}: "beyond scope of the source address", {typeUnreachableV6, 3}: "address unreachable",
		{typeUnreachableV6, 4}: "port unreachable", {typeUnreachableV6, 5}: "source address refused",
		{typeUnreachableV6, 6}:  "route rejects it",
		{typeTimeExceededV6, 0}: "hop limit exceeded, the packets loop", {typeTimeExceededV6, 1}: "fragments are missing",
		{typeBadParameterV6, 0}: "bad header",
	}
)
