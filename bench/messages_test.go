package main_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"uvxlan/tunnel"
)

// section is the part of a document below a heading of the given level.
func section(t *testing.T, text, heading string) string {
	t.Helper()
	_, below, ok := strings.Cut(text, "\n"+heading+"\n")
	if !ok {
		t.Fatalf("there is no heading %q", heading)
	}
	level, _, _ := strings.Cut(heading, " ")
	for i := len(level); i > 0; i-- {
		below, _, _ = strings.Cut(below, "\n"+strings.Repeat("#", i)+" ")
	}
	return below
}

// daemonManual is what the users of uvxland read.
func daemonManual(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../cmd/uvxland/README.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

var (
	firstCell = regexp.MustCompile("(?m)^\\| (`[^|]+`) \\|")
	quoted    = regexp.MustCompile("`([^`]+)`")
)

// The messages that the manual explains are those of the code, but for what an
// ellipsis stands for.
func TestManualQuotesTheCode(t *testing.T) {
	code, checked := sources(t), 0
	for _, row := range firstCell.FindAllStringSubmatch(section(t, daemonManual(t), "## Faults and their messages"), -1) {
		for _, message := range quoted.FindAllStringSubmatch(row[1], -1) {
			for part := range strings.SplitSeq(message[1], "…") {
				if part = strings.TrimSpace(part); part == "" {
					continue
				}
				if checked++; !strings.Contains(code, part) {
					t.Errorf("nothing says %q", part)
				}
			}
		}
	}
	if checked < 40 {
		t.Errorf("the manual has %d messages", checked)
	}
}

// The manual explains each reason for which packets are dropped.
func TestManualHasDropReasons(t *testing.T) {
	text := section(t, daemonManual(t), "### What is dropped")
	for _, reason := range tunnel.DropReasons() {
		if !strings.Contains(text, "`"+reason.String()+"`") {
			t.Errorf("the manual has no %s", reason)
		}
	}
}

// said are texts of the system's and of constants, which no string of the code has
// as a whole.
var said = []string{"no /dev/net/tun", "too many open files", "read-only file system", "the embedded etcd keeps 150 descriptors for itself"}

// sources is the programs' code, and what else they say.
func sources(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	for _, room := range []string{"../cmd", "../lease", "../tunnel"} {
		err := filepath.WalkDir(room, func(path string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			text, err := os.ReadFile(path)
			all.Write(text)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return all.String() + strings.Join(said, "\n")
}

// The manual's numbers of open files are the daemon's.
func TestManualHasTheFilesOfAWorker(t *testing.T) {
	text, err := os.ReadFile("../cmd/internal/daemon/explain.go")
	if err != nil {
		t.Fatal(err)
	}
	number := func(name string) string {
		match := regexp.MustCompile(name + ` +=? *(\d+)`).FindSubmatch(text)
		if match == nil {
			t.Fatalf("the daemon has no %s", name)
		}
		if _, err := strconv.Atoi(string(match[1])); err != nil {
			t.Fatal(err)
		}
		return string(match[1])
	}
	want := "A worker needs " + number("filesOfWorker") + ", or " + number("filesOfWorkerV6") + " with IPv6, and all else " + number("filesOfRest")
	if !strings.Contains(daemonManual(t), want) {
		t.Errorf("the manual doesn't say: %s", want)
	}
}

var metric = regexp.MustCompile("`uvxlan_([a-z_]+)[`{]")

// The metrics that the manual names are there.
func TestManualNamesMetrics(t *testing.T) {
	code := sources(t)
	named := metric.FindAllStringSubmatch(daemonManual(t), -1)
	for _, m := range named {
		if !strings.Contains(code, `"uvxlan_`+m[1]+`"`) && !strings.Contains(code, `"`+m[1]+`"`) {
			t.Errorf("there is no metric uvxlan_%s", m[1])
		}
	}
	if len(named) == 0 {
		t.Error("the manual names none")
	}
}
