// Package trace follows a packet that is only described, not sent, through the
// rules that the kernel has: nftables' of all tables, among them those that
// iptables' nftables variant makes, and the tables of iptables-legacy, which stand
// beside them. It tells where the rules drop such a packet.
//
// A description leaves things open, so that a rule may match surely, surely not,
// or perhaps; what is found is therefore certain or not.
package trace
