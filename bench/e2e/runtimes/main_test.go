package runtimes_test

import (
	"os"
	"testing"

	"uvxlan/bench/e2e"
)

func TestMain(m *testing.M) {
	if os.Getenv(cniPlugin) != "" {
		os.Exit(servePlugin())
	}
	e2e.Main(m)
}
