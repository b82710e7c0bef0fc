package report

import (
	"bytes"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"uvxlan/bench/scenario"
)

// sample is a small run in which one repetition of the kernel failed.
func sample() *Report {
	r := &Report{
		Machine: Machine{
			Time: time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC), Kernel: "6.18", CPU: "a CPU", CPUs: 2, Commit: "abc",
			Versions: map[string]string{"iperf3": "3.12"},
		},
		Seconds: 1, Repeat: 3, Baseline: "kernel",
		Systems:   []System{{Name: "uvxlan", About: "ours"}, {Name: "kernel", About: "theirs"}, {Name: "flannel-udp", LeftOut: "not here"}},
		Scenarios: []Scenario{{"tcp1", "TCP, 1 stream"}, {"rtt", "Round trip, idle"}},
	}
	for i, v := range []float64{9, 8, 12} {
		r.Add("nic", "rtt", "uvxlan", i, scenario.Sample{scenario.P50: 10 * v})
		r.Add("nic", "tcp1", "uvxlan", i, scenario.Sample{scenario.Rate: v, scenario.Retransmits: 1})
	}
	r.Add("nic", "tcp1", "kernel", 0, scenario.Sample{scenario.Rate: 6})
	r.Add("nic", "tcp1", "kernel", 2, scenario.Sample{scenario.Rate: 6})
	r.Finish()
	return r
}

func TestSpread(t *testing.T) {
	nan := math.NaN()
	for _, c := range []struct {
		values Series
		want   *Spread
	}{
		{nil, nil},
		{Series{nan}, nil},
		{Series{3}, &Spread{3, 3, 3, 1}},
		{Series{3, nan, 1, 2}, &Spread{2, 1, 3, 3}},
		{Series{4, 1, 2, 3}, &Spread{2.5, 1, 4, 4}},
	} {
		if got := c.values.spread(); !reflect.DeepEqual(got, c.want) {
			t.Errorf("spread of %v is %v, want %v", c.values, got, c.want)
		}
	}
}

// A ratio is of runs side by side: repetitions that one side lacks don't count.
func TestRatio(t *testing.T) {
	r := sample()
	got := r.Ratio("nic", "tcp1", scenario.Rate, "uvxlan", "kernel")
	if want := (&Spread{1.75, 1.5, 2, 2}); !reflect.DeepEqual(got, want) {
		t.Errorf("ratio is %v, want %v", got, want)
	}
	if got := r.Ratio("veth", "tcp1", scenario.Rate, "uvxlan", "kernel"); got != nil {
		t.Errorf("ratio of what wasn't measured is %v", got)
	}
	if got := (Series{1}).ratio(Series{0}); got.spread() != nil {
		t.Errorf("ratio to 0 is %v", got)
	}
}

func TestCheck(t *testing.T) {
	r := sample()
	got := r.Check("")
	if len(got) != 1 || got[0].Underlay != "nic" || got[0].Ratio.Median != 1.75 || !got[0].Met() {
		t.Fatalf("results are %+v", got)
	}
	for _, c := range []struct {
		metric scenario.Metric
		median float64
		want   bool
	}{
		{scenario.Rate, 1, true}, {scenario.Rate, 0.9, false}, {scenario.P50, 1, true}, {scenario.P50, 1.1, false},
	} {
		result := Result{Target{Metric: c.metric, Limit: 1}, "nic", &Spread{Median: c.median}}
		if result.Met() != c.want {
			t.Errorf("%s of %g: met is %t", c.metric.Name, c.median, !c.want)
		}
	}
}

// Where builds are compared, the label says which one is judged.
func TestCheckLabel(t *testing.T) {
	r := sample()
	for _, row := range r.Rows {
		row.System = strings.Replace(row.System, "uvxlan", "uvxlan:new", 1)
	}
	r.Systems[0].Name = "uvxlan:new"
	if got := r.Check("new"); len(got) != 1 {
		t.Errorf("results are %+v", got)
	}
	if got := r.Check("old"); len(got) != 0 {
		t.Errorf("results of a build that wasn't there are %+v", got)
	}
}

func TestText(t *testing.T) {
	var b bytes.Buffer
	if err := sample().Text(&b); err != nil {
		t.Fatal(err)
	}
	want := `
underlay nic

scenario  metric             system  median  min - max    to kernel  min - max
tcp1      rate, Gbit/s       uvxlan  9.00    8.00 - 12.0  1.75       1.50 - 2.00
                             kernel  6.00    6.00 - 6.00
          retransmits, 1/GB  uvxlan  1.00    1.00 - 1.00
rtt       p50, us            uvxlan  90.0    80.0 - 120
`
	var got strings.Builder
	for line := range strings.Lines(b.String()) {
		got.WriteString(strings.TrimRight(line, " \n") + "\n")
	}
	if got.String() != want {
		t.Errorf("table is\n%s\nwant\n%s", got.String(), want)
	}
}

func TestNumber(t *testing.T) {
	for v, want := range map[float64]string{0: "0", 0.00123: "0.001", 0.9: "0.900", 9.414: "9.41", 31.06: "31.1", 999.4: "999", 123456: "123456"} {
		if got := number(v); got != want {
			t.Errorf("number(%g) is %s, want %s", v, got, want)
		}
	}
}

func TestFiles(t *testing.T) {
	dir, r := filepath.Join(t.TempDir(), "out"), sample()
	if err := r.Write(dir, r.Check("")); err != nil {
		t.Fatal(err)
	}
	again, err := Read(dir)
	if err != nil {
		t.Fatal(err)
	}
	var before, after bytes.Buffer
	if err := r.Text(&before); err != nil {
		t.Fatal(err)
	}
	if err := again.Text(&after); err != nil {
		t.Fatal(err)
	}
	if before.String() != after.String() {
		t.Errorf("read back\n%s\nwritten\n%s", &after, &before)
	}
	for name, words := range map[string]string{
		"report.md":  "| TCP 1 stream, to kernel VXLAN | nic | at least 1.20 | 1.75 | 1.50 - 2.00 | ok |",
		"report.svg": ">TCP, 1 stream<",
	} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || !bytes.Contains(text, []byte(words)) {
			t.Errorf("%s lacks %q: %v", name, words, err)
		}
	}
}
