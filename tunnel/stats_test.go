package tunnel

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"uvxlan/tunnel/batch"
	"uvxlan/tunnel/internal/testhost"
	"uvxlan/tunnel/underlay"
)

// Reasons are names wherever they are printed.
func TestDropsByName(t *testing.T) {
	s := Stats{Peers: 2}
	s.Drops[DropNoRoute], s.Drops[DropSendBuffer] = 3, 1
	if got := fmt.Sprint(DropSendBuffer); got != "send_buffer" {
		t.Errorf("the reason prints as %s", got)
	}
	for _, format := range []string{"%v", "%+v"} {
		if got := fmt.Sprintf(format, s); !strings.Contains(got, "no_route:3 send_buffer:1") {
			t.Errorf("with %s the statistics print as %s", format, got)
		}
	}
	if got := fmt.Sprint(Stats{}.Drops); got != "none" {
		t.Errorf("no drops print as %s", got)
	}
	text, err := json.Marshal(struct {
		Stats
		Reason DropReason
		By     map[DropReason]int
	}{s, DropECN, map[DropReason]int{DropShort: 7}})
	testhost.Must(t, err)
	for _, want := range []string{`"no_route":3`, `"send_buffer":1`, `"device":0`, `"Reason":"ecn"`, `"By":{"short":7}`} {
		if !strings.Contains(string(text), want) {
			t.Errorf("%s isn't in %s", want, text)
		}
	}
	dropped := func() Stats { return s }
	if got := dropped().Dropped() + dropped().Drop(DropNoRoute); got != 7 {
		t.Errorf("%d packets", got)
	}
}

// unready is a conn whose blocked sockets have no room yet.
type unready struct{ underlay.Conn }

func (unready) Retry(int64) batch.Result { return batch.Result{} }

// A worker that looks for room in vain has moved nothing.
func TestRetryInVainIsNoBatch(t *testing.T) {
	var c counters
	o := &outbound{conn: unready{}, total: &c}
	o.retry()
	var s Stats
	c.addTo(&s)
	if s != (Stats{}) {
		t.Errorf("counted %+v", s)
	}
}
