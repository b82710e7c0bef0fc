package e2e

import (
	"strings"
	"testing"
)

func TestMain(m *testing.M) { Main(m) }

// Datagrams that somebody drops on the way are missed, and those that come
// altered are found.
func TestIntegrationDatagramsLost(t *testing.T) {
	w := NewWorld(t, "kb21")
	kb21 := w.Host("kb21")
	from, to := kb21.Container.Node, w.Router()
	w.SendDatagrams(from, to, kb21.Gateway)
	Command(t, kb21.Node, "iptables -A FORWARD -p udp -m statistic --mode nth --every 100 --packet 0 -j DROP")
	d := w.StartDatagramsTo(from, to, kb21.Gateway)
	d.Await(500)
	if err := d.end(); err == nil || !strings.Contains(err.Error(), "were lost, 0 of them for want of room") {
		t.Errorf("with one in a hundred dropped: %v", err)
	}
	Command(t, kb21.Node, "iptables -F FORWARD")

	d = w.StartDatagramsTo(from, to, kb21.Gateway)
	d.Await(500)
	d.note(append(content(1), 0))
	if err := d.end(); err == nil || !strings.Contains(err.Error(), "datagram 1 came altered") {
		t.Errorf("with an altered one: %v", err)
	}
}
