package tutorial_test

import (
	"testing"

	"uvxlan/bench/e2e"
)

func TestMain(m *testing.M) { e2e.Main(m) }
