package encap_test

import (
	"bytes"
	"errors"
	"testing"

	"uvxlan/encap"
)

func TestFrameHeaderGolden(t *testing.T) {
	h := encap.MakeFrameHeader(1, ourMAC, peerMAC, encap.EtherTypeIPv4)
	if want := goldenFrame[:encap.FrameHeaderLen]; !bytes.Equal(h[:], want) {
		t.Errorf("header\n% x, want\n% x", h, want)
	}
}

func TestFrameDecode(t *testing.T) {
	for _, tt := range []struct {
		name   string
		in     []byte
		hasVNI bool
		vni    encap.VNI
		err    error
	}{
		{"golden", goldenFrame, true, 1, nil},
		{"reserved bits", edit(goldenFrame, map[int][]byte{0: {0xff, 0xff, 0xff, 0xff}, 7: {0xff}}), true, 1, nil},
		{"largest VNI", edit(goldenFrame, map[int][]byte{4: {0xff, 0xff, 0xff}}), true, 1<<24 - 1, nil},
		{"no I flag", edit(goldenFrame, map[int][]byte{0: {0xf7}}), false, 0, nil},
		{"no payload", goldenFrame[:encap.FrameHeaderLen], true, 1, nil},
		{"short", goldenFrame[:encap.FrameHeaderLen-1], false, 0, encap.ErrShort},
		{"empty", nil, false, 0, encap.ErrShort},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := staleFrame()
			if err := f.Decode(tt.in); !errors.Is(err, tt.err) {
				t.Fatalf("error %v, want %v", err, tt.err)
			}
			if f.HasVNI != tt.hasVNI || f.VNI != tt.vni {
				t.Errorf("VNI %v %d, want %v %d", f.HasVNI, f.VNI, tt.hasVNI, tt.vni)
			}
			if tt.err != nil {
				if f.Dst != (encap.MAC{}) || f.Src != (encap.MAC{}) || f.EtherType != 0 || f.Payload != nil {
					t.Errorf("stale fields after an error: %+v", f)
				}
				return
			}
			if f.Dst != ourMAC || f.Src != peerMAC || f.EtherType != encap.EtherTypeIPv4 {
				t.Errorf("Ethernet header %v %v %#x", f.Dst, f.Src, f.EtherType)
			}
			if !bytes.Equal(f.Payload, tt.in[encap.FrameHeaderLen:]) {
				t.Errorf("payload % x", f.Payload)
			}
		})
	}
}

func staleFrame() encap.Frame {
	return encap.Frame{HasVNI: true, VNI: 77, Dst: encap.MAC{1}, Src: encap.MAC{2}, EtherType: 3, Payload: []byte{4}}
}

func TestVNIValid(t *testing.T) {
	for vni, want := range map[encap.VNI]bool{0: true, 1: true, 1<<24 - 1: true, 1 << 24: false, 1<<32 - 1: false} {
		if vni.Valid() != want {
			t.Errorf("VNI(%d).Valid() = %v", vni, !want)
		}
	}
}
