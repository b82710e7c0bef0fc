package main_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// documents are the project's Markdown files, by their paths from the root.
func documents(t *testing.T) map[string]string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md")
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		t.Skipf("git lists no files: %v", err) // as in a tarball
	}
	texts := map[string]string{}
	for name := range strings.Lines(string(out)) {
		name = strings.TrimSpace(name)
		text, err := os.ReadFile(filepath.Join("..", name))
		if err != nil {
			t.Fatal(err)
		}
		texts[name] = string(text)
	}
	return texts
}

// A README is read whole only if it is short; all else has a place of its own.
func TestReadmeIsShort(t *testing.T) {
	text, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	if lines := strings.Count(string(text), "\n"); lines > 150 {
		t.Errorf("README.md has %d lines, more than 150", lines)
	}
}

var (
	links    = regexp.MustCompile(`\]\(([^)\s]+)\)|(?:src|srcset|href)="([^"]+)"`)
	headings = regexp.MustCompile(`(?m)^#+ (.+)$`)
	noAnchor = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
)

// anchor is the name by which links lead to a heading.
func anchor(heading string) string {
	return strings.ReplaceAll(noAnchor.ReplaceAllString(strings.ToLower(heading), ""), " ", "-")
}

// Links lead to files and headings that are there.
func TestLinksLeadSomewhere(t *testing.T) {
	texts, checked := documents(t), 0
	for name, text := range texts {
		for _, match := range links.FindAllStringSubmatch(text, -1) {
			target := match[1] + match[2]
			if strings.Contains(target, "://") {
				continue
			}
			checked++
			file, section, inside := strings.Cut(target, "#")
			path := name
			if file != "" {
				path = filepath.Join(filepath.Dir(name), file)
			}
			if _, err := os.Stat(filepath.Join("..", path)); err != nil {
				t.Errorf("%s: link to %s: %v", name, target, err)
				continue
			}
			if inside && !hasHeading(texts[path], section) {
				t.Errorf("%s: link to %s: %s has no such heading", name, target, path)
			}
		}
	}
	if checked == 0 {
		t.Error("there is no link")
	}
}

func hasHeading(text, section string) bool {
	for _, heading := range headings.FindAllStringSubmatch(text, -1) {
		if anchor(heading[1]) == section {
			return true
		}
	}
	return false
}

// The README's figures are those of the bench's.
func TestReadmeHasTheBenchsFigures(t *testing.T) {
	texts := documents(t)
	_, table, ok := strings.Cut(texts["README.md"], "<!-- measured, in short:")
	if !ok {
		t.Fatal("the README has no figures")
	}
	table, _, _ = strings.Cut(table, "<!-- measured: end -->")
	var underlays []string
	checked := 0
	for line := range strings.Lines(table) {
		cells := strings.Split(strings.Trim(line, "|\n"), "|")
		switch {
		case !strings.HasPrefix(line, "|"), strings.HasPrefix(line, "|--"):
		case underlays == nil:
			underlays = cells
		default:
			for i, figure := range cells {
				if i == 0 || strings.TrimSpace(figure) == "" {
					continue
				}
				want := "|" + strings.TrimRight(cells[0], " ") + ", to kernel VXLAN |" + underlays[i] + "|" + figure + "|"
				if checked++; !strings.Contains(texts["bench/README.md"], want) {
					t.Errorf("bench/README.md has no %s", want)
				}
			}
		}
	}
	if checked < 10 {
		t.Errorf("the README has %d figures", checked)
	}
}

// typed are the lines of code blocks that start one of the programs, with what follows.
var typed = regexp.MustCompile(`(?m)^    (?:\S*/)?(uvxland?) +(\S+)`)

// The daemon takes flags, and the operator's command a command first.
func TestCommandsAreTheRightProgram(t *testing.T) {
	checked := 0
	for name, text := range documents(t) {
		for _, match := range typed.FindAllStringSubmatch(text, -1) {
			program, first := match[1], match[2]
			checked++
			if isFlag := strings.HasPrefix(first, "-"); isFlag != (program == "uvxland") {
				t.Errorf("%s: %s %s", name, program, first)
			}
		}
	}
	if checked < 10 {
		t.Errorf("only %d commands were found", checked)
	}
}
