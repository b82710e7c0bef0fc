// Package version says which uvxlan this is.
package version

import "runtime/debug"

// Version is set by the linker; a plain `go build` leaves it to String.
var Version string

// String is the release or commit, "unknown" where the build recorded none.
func String() string {
	if Version != "" {
		return Version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}
