package main

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"reflect"
	"strings"
	"testing"

	"uvxlan/internal/cli"
)

func TestParse(t *testing.T) {
	for text, want := range map[string][]line{
		"a\r\n\x1b[1mb\x1b[m  c\r\n": {{{"a", plain}}, {{"b", bold}, {"  c", plain}}},
		"\x1b[32mone\ntwo\x1b[0m":    {{{"one", green}}, {{"two", green}}},
		"\n":                         {nil},
	} {
		if got, err := parse(text); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q is %q, %v; want %q", text, got, err, want)
		}
	}
	for text, want := range map[string]string{
		"a\nb\rc":       `line 2: control character '\r'`,
		"a\x1b[35mb":    `line 1: SGR "35" isn't known`,
		"a\n\n\x1b[2Jb": `line 3: control character '\x1b'`,
	} {
		if _, err := parse(text); err == nil || err.Error() != want {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
}

func TestPicture(t *testing.T) {
	var out strings.Builder
	if err := run([]string{"-prompt", "make demo"}, strings.NewReader("  done  \x1b[32m1 < 2\x1b[m\r\n"), &out); err != nil {
		t.Fatal(err)
	}
	for _, element := range []string{
		`<text class="d" x="20.0" y="34" textLength="8.4">$</text>`,
		`<text class="b" x="36.8" y="34" textLength="75.6">make demo</text>`,
		`<text x="36.8" y="53" textLength="33.6">done</text>`,
		`<text class="g" x="87.2" y="53" textLength="42.0">1 &lt; 2</text>`,
		"@media(prefers-color-scheme:dark)",
	} {
		if !strings.Contains(out.String(), element) {
			t.Errorf("there is no %s in\n%s", element, out.String())
		}
	}
	expectXML(t, out.String())
}

func TestUsageErrors(t *testing.T) {
	for args, want := range map[string]string{
		"-promt x": "unknown flag -promt: did you mean -prompt?",
		"file":     `unexpected argument "file"`,
	} {
		if err := run(strings.Fields(args), strings.NewReader(""), io.Discard); cli.ExitCode(err) != 2 || err.Error() != want {
			t.Errorf("%s: %v, want %s", args, err, want)
		}
	}
}

// The README's picture is one that loads at once, and ends as a demo that went well.
func TestDemoPicture(t *testing.T) {
	image, err := os.ReadFile("../demo.svg")
	if err != nil {
		t.Fatal(err)
	}
	if len(image) > 60<<10 {
		t.Errorf("it has %d bytes", len(image))
	}
	if !strings.Contains(string(image), ">removing it all</text>") {
		t.Error("it doesn't show the demo's end")
	}
	expectXML(t, string(image))
}

func expectXML(t *testing.T, text string) {
	t.Helper()
	d := xml.NewDecoder(strings.NewReader(text))
	for {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
}
