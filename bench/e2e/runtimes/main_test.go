package runtimes_test

import (
	"os"
	"testing"

	"uvxlan/bench/e2e"
	"uvxlan/bench/flannelcni"
)

func TestMain(m *testing.M) {
	if os.Getenv(flannelcni.Variable) != "" {
		os.Exit(flannelcni.Serve())
	}
	e2e.Main(m)
}
