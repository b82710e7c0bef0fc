package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"uvxlan/cmd/internal/control"
	"uvxlan/cmd/internal/doctor"
	"uvxlan/internal/cli"
)

const doctorUsage = `usage: uvxlan doctor                  what is wrong with this host and its peers, and what mends it
       uvxlan doctor PEER|ADDRESS     the way to one destination: a peer's subnet, its
                                      public address, or a container's address

It needs root, changes nothing, and sends a few packets to each peer. The exit
code is 0 if all is well, 1 for warnings and 2 for faults.

`

// errFaulty ends the command with exit code 2 where what it printed has said why.
var errFaulty = cli.Usage(errSilent)

// defineDoctor looks for what is wrong with the overlay.
func defineDoctor(fs *flag.FlagSet) action {
	socket, output := socketFlag(fs), outputFlag(fs, os.Stdout)
	return func(ctx context.Context, words []string) error {
		p, err := output()
		if err != nil {
			return err
		}
		if len(words) > 1 {
			return cli.Usagef("doctor: name one destination, as in 10.5.52.7")
		}
		if err := doctor.Check(); err != nil {
			return err
		}
		show := progress(os.Stderr)
		o := doctor.Options{Socket: *socket, Progress: show.tell}
		var findings []doctor.Finding
		var write func() error
		if len(words) == 1 {
			e, err := doctor.Explain(ctx, o, words[0])
			show.end()
			if errors.Is(err, doctor.ErrNoPeer) {
				return cli.Usage(fmt.Errorf("doctor: %w", err))
			}
			if err != nil {
				return err
			}
			findings, write = e.Findings, func() error { return p.explanation(e) }
		} else {
			r, err := doctor.Run(ctx, o)
			show.end()
			if err != nil {
				return err
			}
			findings, write = r.Findings, func() error { return p.report(r) }
		}
		if err := write(); err != nil {
			return err
		}
		return verdict(findings)
	}
}

// verdict is the error for the exit code that findings make.
func verdict(findings []doctor.Finding) error {
	switch (&doctor.Report{Findings: findings}).Worst() {
	case doctor.Fault:
		return errFaulty
	case doctor.Warning:
		return errSilent
	}
	return nil
}

// report writes what was found out: what is wrong, then what was measured.
func (p *printer) report(r *doctor.Report) error {
	if p.json {
		return p.writeJSON(r)
	}
	head := "this host"
	if r.Host != nil {
		head = r.Host.String()
	}
	fmt.Fprintf(p.out, "%s: uvxland is %s, %s looked at in %s\n", head, r.Daemon, count(len(r.Peers), "peer"), control.Round(r.Took))
	p.findings(r.Findings)
	if len(r.Peers) == 0 {
		return nil
	}
	fmt.Fprintln(p.out)
	rows := [][]string{{"SUBNET", "PUBLIC IP", p.paint(plain, "PATH"), "OVERLAY", "RTT", "MTU", "MTU BACK", "BESIDE IT", "RTT", "MTU"}}
	for _, peer := range r.Peers {
		rows = append(rows, []string{
			peer.Subnet.String(), peer.PublicIP.String(), p.paint(pathColour(peer.Path), peer.Path),
			answered(peer.Overlay), trip(peer.Overlay), length(peer.Overlay.MTU), length(peer.Overlay.Back),
			answered(peer.Underlay), trip(peer.Underlay), length(peer.Underlay.MTU),
		})
	}
	return p.table(rows)
}

// findings writes findings for people.
func (p *printer) findings(all []doctor.Finding) {
	if len(all) == 0 {
		fmt.Fprintln(p.out, p.paint(green, "nothing is wrong"))
		return
	}
	for _, f := range all {
		c := yellow
		if f.Severity == doctor.Fault {
			c = red
		}
		fmt.Fprintf(p.out, "\n%s  %s: %s\n", p.paint(c, strings.ToUpper(f.Severity.String())), f.Subject(), f.What)
		fmt.Fprintf(p.out, "  seen   %s\n", f.Evidence)
		if f.Remedy != "" {
			fmt.Fprintf(p.out, "  do     %s\n", f.Remedy)
		}
	}
}

// explanation writes the way to one destination.
func (p *printer) explanation(e *doctor.Explanation) error {
	if p.json {
		return p.writeJSON(e)
	}
	rows := [][]string{{"destination", e.Destination}}
	for _, s := range e.Steps {
		rows = append(rows, []string{s.Name, s.Text})
	}
	if err := p.table(rows); err != nil {
		return err
	}
	p.findings(e.Findings)
	return nil
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func answered(e doctor.Echoes) string {
	if e.Sent == 0 {
		return "not asked"
	}
	return fmt.Sprintf("%d/%d", e.Received, e.Sent)
}

func trip(e doctor.Echoes) string {
	if e.RTT == 0 {
		return "none"
	}
	return e.RTT.Round(time.Microsecond).String()
}

func length(n int) string {
	if n == 0 {
		return "unknown"
	}
	return fmt.Sprint(n)
}

// ticker shows on a terminal what is being done, in a line that is gone in the end.
type ticker struct {
	out  io.Writer // nil where nobody looks
	said chan string
	done chan struct{}
}

// progress shows it on f, if that is a terminal.
func progress(f *os.File) *ticker {
	t := &ticker{said: make(chan string, 1), done: make(chan struct{})}
	if cli.IsTerminal(f) {
		t.out = f
	}
	go t.run()
	return t
}

// run writes until said is closed.
func (t *ticker) run() {
	defer close(t.done)
	for text := range t.said {
		if t.out != nil {
			fmt.Fprintf(t.out, "\r\x1b[K%s", text)
		}
	}
	if t.out != nil {
		fmt.Fprint(t.out, "\r\x1b[K")
	}
}

// tell shows a text. It doesn't wait: of many at once some aren't shown.
func (t *ticker) tell(text string) {
	select {
	case t.said <- text:
	default:
	}
}

// end waits until the line is gone. Nothing is told afterwards.
func (t *ticker) end() {
	close(t.said)
	<-t.done
}
