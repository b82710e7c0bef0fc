package device

import "errors"

// ErrGone says that the interface was deleted. A new device can take its place.
var ErrGone = errors.New("the TUN interface was deleted")
