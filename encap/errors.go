package encap

import "errors"

// Decoders return these sentinels unwrapped. The input was written by someone
// else: count the packet under the matching reason and drop it.
var (
	// ErrShort means the buffer ends before the headers do, or before the
	// length that they announce.
	ErrShort = errors.New("encap: short buffer")
	// ErrVersion means the IP version nibble is not the one asked for.
	ErrVersion = errors.New("encap: wrong IP version")
	// ErrHeader means length fields that contradict each other.
	ErrHeader = errors.New("encap: malformed header lengths")
)
