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
