package system

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestAll(t *testing.T) {
	builds := []Daemon{{Label: "new", help: "  -offload value\n", direct: true}, {Label: "old", Path: "/old"}}
	var names []string
	for _, s := range All(t.Context(), Env{Daemons: builds}) {
		names = append(names, s.Name)
		if s.About == "" || s.Start == nil {
			t.Errorf("%s is incomplete", s.Name)
		}
		switch s.Name {
		case "uvxlan:new", "uvxlan:old", "uvxlan-off:new", "uvxlan-direct:new", Kernel:
			if s.Missing != "" {
				t.Errorf("%s is missing: %s", s.Name, s.Missing)
			}
		case "uvxlan-off:old", "uvxlan-water:new", "uvxlan-direct:old", "uvxlan-route:old", "uvxlan-host-gw:old":
			if s.Missing == "" {
				t.Errorf("%s isn't missing", s.Name)
			}
		}
	}
	want := []string{
		"uvxlan:new", "uvxlan:old", "uvxlan-no-fastpath:new", "uvxlan-no-fastpath:old", "uvxlan-direct:new", "uvxlan-direct:old",
		"uvxlan-direct-no-fastpath:new", "uvxlan-direct-no-fastpath:old", "uvxlan-route:new", "uvxlan-route:old",
		"uvxlan-host-gw:new", "uvxlan-host-gw:old", "uvxlan-off:new", "uvxlan-off:old", "uvxlan-no-udp:new", "uvxlan-no-udp:old",
		"uvxlan-1-worker:new", "uvxlan-1-worker:old", "uvxlan-2-workers:new", "uvxlan-2-workers:old",
		"uvxlan-8-workers:new", "uvxlan-8-workers:old", "uvxlan-wireguard:new", "uvxlan-wireguard:old",
		"uvxlan-water:new", "uvxlan-water:old", "kernel", "host-gw", "kernel-to-uvxlan:new", "uvxlan-to-kernel:new",
		"kernel-to-uvxlan:old", "uvxlan-to-kernel:old", "flannel-udp", "flannel-vxlan", "wireguard-go",
	}
	if !slices.Equal(names, want) {
		t.Errorf("systems are %q, want %q", names, want)
	}
}

func TestHas(t *testing.T) {
	d := Daemon{help: "Usage of uvxland:\n  -offload auto\n    \tuse -workers with it\n  -embedded-etcd\n"}
	for flag, want := range map[string]bool{"offload": true, "embedded-etcd": true, "off": false, "workers": false} {
		if got := d.has(flag); got != want {
			t.Errorf("has -%s: %t", flag, got)
		}
	}
}

// Settle waits for what a system requires, and Check asks for it later.
func TestSettle(t *testing.T) {
	var s Site
	wrong, asked := errors.New("by VXLAN"), 0
	s.require(func() error { return nil })
	s.require(func() error {
		if asked++; asked == 3 {
			return nil
		}
		return wrong
	})
	if err := s.Settle(t.Context()); err != nil || asked != 3 {
		t.Errorf("settled after %d questions: %v", asked, err)
	}
	if err := s.Check(); !errors.Is(err, wrong) {
		t.Errorf("check: %v, want %v", err, wrong)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Settle(ended); !errors.Is(err, wrong) {
		t.Errorf("settle: %v, want %v", err, wrong)
	}
}

func TestLastWords(t *testing.T) {
	file := filepath.Join(t.TempDir(), "log")
	for text, want := range map[string]string{
		"one\ntwo\n":                            "two",
		"I1123 a\nE1123 no nft\nI1123 stopping": "E1123 no nft",
		"":                                      "",
	} {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if got := lastWords(file); got != want {
			t.Errorf("last words of %q are %q, want %q", text, got, want)
		}
	}
}
