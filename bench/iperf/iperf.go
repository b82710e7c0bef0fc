// Package iperf runs iperf3 between two nodes of a lab and reads its report.
package iperf

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"uvxlan/bench/lab"
)

// ErrMissing says that there is no iperf3 in PATH.
var ErrMissing = errors.New("iperf3 is not installed (apt-get install iperf3)")

// Test is one measurement. Its zero value, with To set, is one TCP stream.
type Test struct {
	// Server and Client are where the two ends run; To is the server's address.
	Server, Client *lab.Node
	To             netip.Addr
	// Duration is how long data is sent, in whole seconds; 0 means ten.
	Duration time.Duration
	// Streams is the number of parallel streams; 0 means one.
	Streams int
	// Reverse makes the server send, Bidirectional both ends at once; the result
	// is then the sum of both directions.
	Reverse       bool
	Bidirectional bool
	// UDP sends datagrams at Bandwidth bits a second in all streams together,
	// 0 being as fast as possible, of Length bytes each, 0 being iperf3's choice.
	UDP       bool
	Bandwidth int64
	Length    int
}

// Result is what the receiver saw.
type Result struct {
	// BitsPerSecond is the payload received.
	BitsPerSecond float64
	Seconds       float64
	Bytes         int64
	// Retransmits is the sender's, of TCP.
	Retransmits int
	// Packets is how many datagrams the sender numbered, Lost how many of them
	// never came.
	Packets, Lost int64
}

// Run makes the measurement. The server is this run's own and ends with it.
func (t Test) Run(ctx context.Context) (Result, error) {
	if _, err := exec.LookPath("iperf3"); err != nil {
		return Result{}, ErrMissing
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	server, err := t.listen(ctx)
	if err != nil {
		return Result{}, err
	}
	defer func() { _ = server.Wait() }()
	defer cancel()
	out, err := t.Client.Command(ctx, "iperf3", t.args()...).Output()
	return Parse(out, err)
}

// listen starts the server and returns once it takes connections.
func (t Test) listen(ctx context.Context) (*lab.Cmd, error) {
	cmd := t.Server.Command(ctx, "iperf3", "--server", "--one-off", "--forceflush")
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start iperf3 server: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start iperf3 server: %w", err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if strings.Contains(lines.Text(), "listening") {
			go io.Copy(io.Discard, out) //nolint:errcheck // ends with the server, whose report nobody needs
			return cmd, nil
		}
	}
	return nil, fmt.Errorf("start iperf3 server: it ended before it listened: %w", cmd.Wait())
}

func (t Test) args() []string {
	seconds := max(int(t.Duration.Seconds()), 0)
	if seconds == 0 {
		seconds = 10
	}
	args := []string{"--client", t.To.String(), "--json", "--time", strconv.Itoa(seconds), "--parallel", strconv.Itoa(max(t.Streams, 1))}
	if t.Reverse {
		args = append(args, "--reverse")
	}
	if t.Bidirectional {
		args = append(args, "--bidir")
	}
	if t.UDP {
		args = append(args, "--udp", "--bitrate", strconv.FormatInt(t.Bandwidth/int64(max(t.Streams, 1)), 10))
	}
	if t.Length > 0 {
		args = append(args, "--length", strconv.Itoa(t.Length))
	}
	return args
}

// report is the part of iperf3's JSON that counts.
type report struct {
	Error string `json:"error"`
	End   struct {
		Sum         sum `json:"sum"`
		SumSent     sum `json:"sum_sent"`
		SumReceived sum `json:"sum_received"`
		// The other direction, of a bidirectional test.
		BackSent     sum `json:"sum_sent_bidir_reverse"`
		BackReceived sum `json:"sum_received_bidir_reverse"`
	} `json:"end"`
}

type sum struct {
	Seconds       float64 `json:"seconds"`
	Bytes         int64   `json:"bytes"`
	BitsPerSecond float64 `json:"bits_per_second"`
	Retransmits   int     `json:"retransmits"`
	Packets       int64   `json:"packets"`
	Lost          int64   `json:"lost_packets"`
}

// Parse reads the client's report; runErr is how the client ended, for when the
// report says nothing of it.
func Parse(out []byte, runErr error) (Result, error) {
	var r report
	err := json.Unmarshal(out, &r)
	switch {
	case err == nil && r.Error != "":
		return Result{}, fmt.Errorf("iperf3: %s", r.Error)
	case runErr != nil:
		return Result{}, fmt.Errorf("iperf3: %w", runErr)
	case err != nil:
		return Result{}, fmt.Errorf("read iperf3's report: %w", err)
	}
	got := r.End.SumReceived
	if got.Bytes == 0 {
		got = r.End.Sum
	}
	// The receiver's sum counts what it saw of a UDP test; old versions have
	// the loss in the common sum only.
	counts := r.End.SumReceived
	if counts.Packets == 0 {
		counts = r.End.Sum
	}
	back := r.End.BackReceived
	return Result{
		BitsPerSecond: got.BitsPerSecond + back.BitsPerSecond, Seconds: got.Seconds, Bytes: got.Bytes + back.Bytes,
		Retransmits: r.End.SumSent.Retransmits + r.End.BackSent.Retransmits,
		Packets:     counts.Packets + back.Packets, Lost: counts.Lost + back.Lost,
	}, nil
}
