package scenario

import (
	"slices"
	"testing"
	"time"
)

func TestSummary(t *testing.T) {
	var rtts []time.Duration
	for i := range 101 {
		rtts = append(rtts, time.Duration(100-i)*time.Microsecond)
	}
	if got := summary(rtts); got[P50] != 50 || got[P99] != 99 {
		t.Errorf("p50 and p99 of 0 to 100 are %g and %g", got[P50], got[P99])
	}
	if got := summary([]time.Duration{time.Millisecond}); got[P50] != 1000 || got[P99] != 1000 {
		t.Errorf("p50 and p99 of one round trip of 1 ms are %g and %g", got[P50], got[P99])
	}
}

func TestEcho(t *testing.T) {
	e := &echoer{fd: 5, seq: 300}
	ip := append([]byte{0x46}, make([]byte, 23)...) // with options
	request := e.request()
	var sum uint32
	for i := 0; i < len(request); i += 2 {
		sum += uint32(request[i])<<8 | uint32(request[i+1])
	}
	if sum%0xffff != 0 {
		t.Errorf("checksum is wrong: the sum is %#x", sum)
	}
	reply := slices.Concat(ip, request)
	if e.answers(reply) {
		t.Error("a request is taken for a reply")
	}
	reply[24] = echoReply
	if !e.answers(reply) {
		t.Error("the reply is not taken")
	}
	if e.seq++; e.answers(reply) {
		t.Error("an earlier reply is taken")
	}
	for n := range 32 {
		if e.answers(reply[:n]) {
			t.Errorf("%d bytes are taken for a reply", n)
		}
	}
}

func TestNamesAreUnique(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range All() {
		if seen[s.Name] || s.About == "" || s.Run == nil || !slices.Contains(Metrics, s.Main) {
			t.Errorf("scenario %+v is incomplete or there twice", s)
		}
		seen[s.Name] = true
	}
}
