package lease

import (
	"encoding/json"
	"net/netip"
	"testing"
)

const (
	data4 = `{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}`
	data6 = `{"VNI":1,"VtepMAC":"0a:11:22:33:44:55"}`
)

func TestAttrsGolden(t *testing.T) {
	v4, v6 := netip.MustParseAddr("192.168.64.3"), netip.MustParseAddr("fd00::3")
	for name, c := range map[string]struct {
		a    Attrs
		want string
	}{
		"vxlan":   {Attrs{PublicIP: v4, BackendType: TypeVXLAN, BackendData: json.RawMessage(data4)}, `{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan","BackendData":` + data4 + `}`},
		"dual":    {Attrs{v4, v6, TypeVXLAN, json.RawMessage(data4), json.RawMessage(data6)}, `{"PublicIP":"192.168.64.3","PublicIPv6":"fd00::3","BackendType":"vxlan","BackendData":` + data4 + `,"BackendV6Data":` + data6 + `}`},
		"host-gw": {Attrs{PublicIP: v4, BackendType: TypeHostGW}, `{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"host-gw"}`},
		"udp":     {Attrs{PublicIP: v4}, `{"PublicIP":"192.168.64.3","PublicIPv6":null}`},
		"nobody":  {Attrs{}, `{"PublicIP":"0.0.0.0","PublicIPv6":null}`},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := json.Marshal(c.a)
			if err != nil || string(got) != c.want {
				t.Errorf("got  %s, %v\nwant %s", got, err, c.want)
			}
			back := Attrs{BackendType: "stale", BackendData: json.RawMessage(`1`)}
			if err := json.Unmarshal(got, &back); err != nil || !back.Equal(c.a) {
				t.Errorf("comes back as %+v, %v", back, err)
			}
		})
	}
}

func TestAttrsUnmarshalErrors(t *testing.T) {
	for name, in := range map[string]string{
		"not JSON":       `hello`,
		"number":         `{"PublicIP":7}`,
		"empty":          `{"PublicIP":""}`,
		"IPv6 as IPv4":   `{"PublicIP":"fd00::3"}`,
		"IPv4 as IPv6":   `{"PublicIP":"192.168.64.3","PublicIPv6":"192.168.64.3"}`,
		"mapped as IPv6": `{"PublicIP":"192.168.64.3","PublicIPv6":"::ffff:192.168.64.3"}`,
	} {
		t.Run(name, func(t *testing.T) {
			var a Attrs
			if err := json.Unmarshal([]byte(in), &a); err == nil {
				t.Errorf("taken as %+v", a)
			}
		})
	}
}

func TestVXLANData(t *testing.T) {
	a := Attrs{BackendType: TypeVXLAN, BackendData: json.RawMessage(data4), BackendV6Data: json.RawMessage(data6)}
	if d, err := a.VXLAN(); err != nil || d != (VXLANData{1, "c6:d2:32:6f:8f:44"}) {
		t.Errorf("got %+v, %v", d, err)
	}
	if d, err := a.VXLANv6(); err != nil || d != (VXLANData{1, "0a:11:22:33:44:55"}) {
		t.Errorf("got %+v, %v", d, err)
	}
	if out, err := json.Marshal(VXLANData{1, "c6:d2:32:6f:8f:44"}); err != nil || string(out) != data4 {
		t.Errorf("got %s, %v", out, err)
	}
	for name, a := range map[string]Attrs{
		"other type": {BackendType: TypeHostGW, BackendData: json.RawMessage(data4)},
		"no data":    {BackendType: TypeVXLAN},
		"no MAC":     {BackendType: TypeVXLAN, BackendData: json.RawMessage(`{"VNI":1}`)},
		"long MAC":   {BackendType: TypeVXLAN, BackendData: json.RawMessage(`{"VtepMAC":"00:00:5e:00:53:01:02:03"}`)},
	} {
		t.Run(name, func(t *testing.T) {
			if d, err := a.VXLAN(); err == nil {
				t.Errorf("taken as %+v", d)
			}
		})
	}
}

func TestEqual(t *testing.T) {
	l := Lease{Subnet: netip.MustParsePrefix("10.5.1.0/24"), Attrs: Attrs{BackendType: TypeVXLAN, BackendData: json.RawMessage(data4)}}
	same := l
	same.Revision, same.ID, same.Permanent = 7, 8, true
	same.Attrs.BackendData = json.RawMessage(`{ "VtepMAC":"c6:d2:32:6f:8f:44", "VNI":1 }`)
	if !l.Equal(same) {
		t.Error("spelling, revision or expiry counts")
	}
	other := l
	other.Attrs.BackendData = json.RawMessage(data6)
	if l.Equal(other) {
		t.Error("the MAC doesn't count")
	}
}

func FuzzAttrs(f *testing.F) {
	f.Add([]byte(`{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan","BackendData":` + data4 + `}`))
	f.Add([]byte(`{"PublicIP":"192.168.64.3","PublicIPv6":"fd00::3","BackendData":{"a":"<&>"},"BackendV6Data":null}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, in []byte) {
		var a, b Attrs
		if json.Unmarshal(in, &a) != nil {
			return
		}
		_, _ = a.VXLAN()
		out, err := json.Marshal(a)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(out, &b); err != nil || !a.Equal(b) {
			t.Errorf("%s comes back as %s, %v", in, out, err)
		}
	})
}
