package kube_test

import (
	"os"
	"testing"

	"uvxlan/bench/flannelcni"
)

func TestMain(m *testing.M) {
	if os.Getenv(flannelcni.Variable) != "" {
		os.Exit(flannelcni.Serve())
	}
	os.Exit(m.Run())
}
