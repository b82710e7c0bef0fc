package tunnel

import "errors"

// ErrUnderlayGone says that a receiving socket is of no more use, as when it
// was destroyed from outside (ss -K).
var ErrUnderlayGone = errors.New("the underlay's socket is gone")
