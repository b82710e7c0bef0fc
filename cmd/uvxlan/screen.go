package main

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// What the screen is told, in xterm's sequences: its other buffer without
// cursor and line wrapping, and back.
const (
	enterScreen = "\x1b[?1049h\x1b[?25l\x1b[?7l"
	leaveScreen = "\x1b[?7h\x1b[?25h\x1b[?1049l"
	home        = "\x1b[H"
	endLine     = "\x1b[K\r\n"
	clearRest   = "\x1b[J"
)

// screen is a terminal that is drawn over again and again.
type screen struct {
	in, out *os.File
	before  *unix.Termios
}

// openScreen takes the terminal over until close. quit is called when q is
// pressed; Ctrl-C is a signal as ever.
func openScreen(in, out *os.File, quit func()) (*screen, error) {
	before, err := unix.IoctlGetTermios(int(in.Fd()), unix.TCGETS)
	if err != nil {
		return nil, fmt.Errorf("take over the terminal: %w", err)
	}
	keys := *before
	keys.Lflag &^= unix.ICANON | unix.ECHO
	keys.Cc[unix.VMIN], keys.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(int(in.Fd()), unix.TCSETS, &keys); err != nil {
		return nil, fmt.Errorf("take over the terminal: %w", err)
	}
	s := &screen{in: in, out: out, before: before}
	if _, err := out.WriteString(enterScreen); err != nil {
		s.close()
		return nil, err
	}
	go s.watch(quit) // ends with the input, or with the process
	return s, nil
}

// watch waits for q.
func (s *screen) watch(quit func()) {
	for key := make([]byte, 1); ; {
		n, err := s.in.Read(key)
		if n == 1 && (key[0] == 'q' || key[0] == 'Q') {
			quit()
			return
		}
		if err != nil {
			return
		}
	}
}

// draw shows as many of the lines as there is room for.
func (s *screen) draw(lines []string) error {
	if size, err := unix.IoctlGetWinsize(int(s.out.Fd()), unix.TIOCGWINSZ); err == nil && size.Row > 0 {
		// The last line stays free: ending it would scroll.
		lines = lines[:min(len(lines), int(size.Row)-1)]
	}
	text := home + strings.Join(append(lines, ""), endLine) + clearRest
	_, err := s.out.WriteString(text)
	return err
}

// close gives the terminal back as it was.
func (s *screen) close() {
	_, _ = s.out.WriteString(leaveScreen)
	_ = unix.IoctlSetTermios(int(s.in.Fd()), unix.TCSETS, s.before)
}
