// Package kroute keeps a set of kernel routes, each to a subnet via a gateway,
// equal to what is wanted.
//
// All is about the main table of one network namespace. Routes are ours if they
// have our protocol number (rtnetlink(7), rtm_protocol) and a gateway, and lead into
// one of the networks of [Set.Limit] where that was called: another program may
// keep routes of the same protocol to others. Only ours are changed or removed. Somebody else's route to a wanted subnet counts
// as ours would if it goes the same way, and is an [ErrForeign] otherwise.
//
// The package starts no goroutine: whoever owns a [Set] calls [Set.Restore] when
// the kernel reports that routes, links or addresses have changed. (It reports
// no IPv4 route that goes because its interface went down.)
package kroute
