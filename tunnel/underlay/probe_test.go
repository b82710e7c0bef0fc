package underlay

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"

	"uvxlan/encap"
	"uvxlan/tunnel/internal/family"

	"golang.org/x/sys/unix"
)

func TestSegmentationProbe(t *testing.T) {
	for f := range family.Count {
		if err := probeSegmentation(f); err != nil {
			t.Errorf("this kernel's segmentation is taken for broken, family %d: %v", f, err)
		}
	}
}

// One lost datagram doesn't tell against the kernel.
func TestSegmentationProbeTriesAgain(t *testing.T) {
	for _, c := range []struct {
		lost, attempts int
		works          bool
	}{{0, 1, true}, {2, 3, true}, {3, 3, false}} {
		attempts := 0
		works := segmentationWorks(func() error {
			if attempts++; attempts <= c.lost {
				return unix.ETIMEDOUT
			}
			return nil
		})
		if works != c.works || attempts != c.attempts {
			t.Errorf("%d lost: it works: %t after %d attempts", c.lost, works, attempts)
		}
	}
}

// The probe sees the length and the checksum of each segment of a run.
func TestSegmentationProbeSeesHeaders(t *testing.T) {
	data := probeData()
	for f := range family.Count {
		for _, c := range []struct {
			name        string
			length, sum uint16
			seen        bool
		}{
			{"right", 0, 0, true},
			{"other length", 1, 0, false},
			{"other checksum", 0, 1, false},
		} {
			p, err := newProbe(f)
			if err != nil {
				t.Fatal(err)
			}
			sums := p.sums(data[:probeSize])
			for i := range sums {
				sums[i] += c.sum
			}
			if err := p.expect(probeLength+c.length, sums); err != nil {
				t.Fatal(err)
			}
			if err := p.exchange(data, controlSegment(probeSize)); (err == nil) != c.seen {
				t.Errorf("family %d, %s: %v", f, c.name, err)
			}
			p.close()
		}
	}
	for segment := range slices.Chunk(data, probeSize) {
		if encap.Checksum(segment, 0) != encap.Checksum(data[:probeSize], 0) {
			t.Error("the datagrams' sums differ")
		}
	}
	if bytes.Equal(data[:probeSize], data[probeSize:2*probeSize]) {
		t.Error("the datagrams are the same")
	}
}

func TestParseControl(t *testing.T) {
	gro := controlInt(unix.IPPROTO_UDP, unix.UDP_GRO, 1400)
	tos := controlInt(unix.IPPROTO_IP, unix.IP_TOS, 3)
	class := controlInt(unix.IPPROTO_IPV6, unix.IPV6_TCLASS, 2)
	other := controlInt(unix.SOL_SOCKET, 99, 7)
	for _, c := range []struct {
		name    string
		control []byte
		want    ancillary
	}{
		{"none", nil, ancillary{}},
		{"both", append(bytes.Clone(gro), tos...), ancillary{3, 1400}},
		{"other order and one more", append(append(bytes.Clone(other), class...), gro...), ancillary{2, 1400}},
		{"cut off", gro[:10], ancillary{}},
		{"length beyond the end", gro[:unix.SizeofCmsghdr+2], ancillary{}},
	} {
		if got := parseControl(c.control); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
}

// controlInt is a control message that carries one int.
func controlInt(level, kind int32, value int) []byte {
	b := control(level, kind, 4)
	binary.NativeEndian.PutUint32(b[unix.CmsgLen(0):], uint32(value))
	return b
}
