package kroute

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// Reasons of an [Error].
var (
	// ErrUnreachable says that the kernel doesn't take the gateway: it isn't
	// on-link, or the interface is down or gone. The route stays wanted, and
	// [Set.Restore] tries again.
	ErrUnreachable = errors.New("the kernel refuses the gateway")
	// ErrForeign says that somebody else's route to the subnet goes another
	// way. It is left alone; remove it, and [Set.Restore] puts ours there.
	ErrForeign = errors.New("the subnet has a route that isn't ours")
)

// Error is what keeps one route out of the kernel. Errors of several routes
// come joined.
type Error struct {
	// Route is the one that is wanted.
	Route Route
	// Reason is [ErrUnreachable], [ErrForeign], or what else is wrong.
	Reason error
	device string // its interface's name, if known
}

// Error names the route, its interface and the reason.
func (e *Error) Error() string {
	return fmt.Sprintf("route %s via %s dev %s: %v", e.Route.Subnet, e.Route.Via, cmp.Or(e.device, strconv.Itoa(e.Route.Link)), e.Reason)
}

// Unwrap returns the reason.
func (e *Error) Unwrap() error { return e.Reason }

// refused puts a refusal that is about one route into words. Other errors come
// back as they are. The kernel's own reason is the same for most, whatever is
// wrong with the interface.
func (k kernel) refused(r Route, err error) error {
	var words string
	link, linkErr := k.handle.LinkByIndex(r.Link)
	switch {
	case !isRefusal(err):
		return err
	case linkErr != nil:
		words = "the interface is gone"
	case link.Attrs().Flags&net.FlagUp == 0:
		words = "the interface is down"
	case errors.Is(err, unix.EINVAL):
		words = "it or the source address can't be used on this host"
	default:
		words = "it is not on-link"
	}
	return fmt.Errorf("%w: %s: %w", ErrUnreachable, words, err)
}

func isRefusal(err error) bool {
	return slices.ContainsFunc([]unix.Errno{unix.ENETUNREACH, unix.EHOSTUNREACH, unix.ENETDOWN, unix.ENODEV, unix.EINVAL},
		func(e unix.Errno) bool { return errors.Is(err, e) })
}
