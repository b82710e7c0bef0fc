// Package trace follows a packet, which is described and not sent, through the
// rules in the kernel, and tells where they drop it. The rules are those of all
// nftables tables, including the ones that iptables' nftables variant makes,
// and those of iptables-legacy's tables, which exist beside them.
//
// A description leaves some fields open. So a rule surely matches it, surely
// doesn't, or perhaps does, and a finding is certain or not.
package trace
