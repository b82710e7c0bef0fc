// Package firewall puts flannel's rules on the host and keeps them there: those
// that give what containers send out of the overlay the host's address, and
// those that let the overlay's packets be forwarded. It writes them by the
// iptables command or straight into the kernel's nftables, as the network's
// configuration says. It tells of rules of others that drop the overlay's packets
// all the same.
//
// Others may have rules in the same tables and even in the same chains, another
// daemon's network among them: each rule that is put or removed is compared
// whole, and no chain is emptied but to remove it.
package firewall
