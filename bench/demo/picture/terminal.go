package main

import (
	"fmt"
	"regexp"
	"strings"
)

// style is how a span of characters looks, a class of the image's style sheet.
type style string

const (
	plain style = ""
	bold  style = "b"
	dim   style = "d"
	green style = "g"
)

// styles by the parameters of SGR (ECMA-48, 8.3.117).
var styles = map[string]style{"": plain, "0": plain, "1": bold, "2": dim, "32": green}

// span is characters of one style.
type span struct {
	text  string
	style style
}

type line []span

var sgr = regexp.MustCompile(`\x1b\[([0-9;]*)m`)

// parse takes a terminal's output apart. The screen is never moved back on: whatever
// else than line ends and SGR controls it is an error.
func parse(text string) ([]line, error) {
	text = strings.TrimRight(strings.ReplaceAll(text, "\r\n", "\n"), "\n")
	var (
		lines   []line
		current line
		now     style
	)
	write := func(text string) error {
		for i, part := range strings.Split(text, "\n") {
			if i > 0 {
				lines, current = append(lines, current), nil
			}
			for _, r := range part {
				if r < ' ' {
					return fmt.Errorf("line %d: control character %q", len(lines)+1, r)
				}
			}
			if part != "" {
				current = append(current, span{part, now})
			}
		}
		return nil
	}
	for {
		at := sgr.FindStringSubmatchIndex(text)
		if at == nil {
			break
		}
		if err := write(text[:at[0]]); err != nil {
			return nil, err
		}
		parameters := text[at[2]:at[3]]
		s, ok := styles[parameters]
		if !ok {
			return nil, fmt.Errorf("line %d: SGR %q isn't known", len(lines)+1, parameters)
		}
		now, text = s, text[at[1]:]
	}
	if err := write(text); err != nil {
		return nil, err
	}
	return append(lines, current), nil
}
