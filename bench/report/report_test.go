package report

import (
	"bytes"
	"errors"
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
		Underlays: []Underlay{{"nic", "as a NIC is"}},
		Systems:   []System{{Name: "uvxlan", About: "ours"}, {Name: "kernel", About: "theirs"}, {Name: "flannel-udp", LeftOut: "not here"}},
		Scenarios: []Scenario{{"tcp1", "TCP, 1 stream"}, {"udp64", "UDP"}, {"rtt", "Round trip, idle"}},
	}
	add := func(scenarioName, system string, repetition int, s scenario.Sample) {
		c := Conditions{LoadBefore: 0.5, BusyBefore: 2}
		if system == "kernel" && repetition == 2 {
			c.Steal = 7
		}
		r.Add(Run{"nic", scenarioName, system, repetition, c}, s)
	}
	for i, v := range []float64{9, 8, 12} {
		add("rtt", "uvxlan", i, scenario.Sample{scenario.P50: 10 * v})
		add("tcp1", "uvxlan", i, scenario.Sample{scenario.Rate: v, scenario.CPUPerGB: 1})
	}
	add("tcp1", "kernel", 0, scenario.Sample{scenario.Rate: 6})
	add("tcp1", "kernel", 2, scenario.Sample{scenario.Rate: 6})
	add("udp64", "kernel", 0, scenario.Sample{scenario.Received: 80, scenario.Loss: 12.5})
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
	if len(got) != 1 || got[0].Underlay != "nic" || got[0].Figure.Median != 1.75 || !got[0].Met() {
		t.Fatalf("results are %+v", got)
	}
	for _, c := range []struct {
		metric scenario.Metric
		median float64
		want   bool
	}{
		{scenario.Rate, 1, true}, {scenario.Rate, 0.9, false}, {scenario.P50, 1, true}, {scenario.P50, 1.1, false},
	} {
		result := Result{Target{Metric: c.metric, Limit: 1}, &Spread{Median: c.median}}
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
Load average 0.50 before the first run. Before each run others used 2 % of the CPUs in the median, 2 % at most; steal was 0.0 %, 7.0 % at most. 1 of 9 runs were made on a busy machine, which is more than 10 % or 5 % of these.

underlay nic

scenario  metric          system  median  min - max    lost    to kernel  min - max    busy
tcp1      CPU, s/GB       uvxlan  1.00    1.00 - 1.00
          rate, Gbit/s    uvxlan  9.00    8.00 - 12.0          1.75       1.50 - 2.00
                          kernel  6.00    6.00 - 6.00                                  1 of 2
udp64     received, kpps  kernel  80.0                 12.5 %
rtt       p50, us         uvxlan  90.0    80.0 - 120
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
		"report.md":  "| TCP 1 stream, to kernel VXLAN | nic | at least 1.20 | 1.75 | 1.50 - 2.00 | 1.37 - 3.24 | 1 of 5 | ok |",
		"report.svg": ">Underlay nic: as a NIC is.<",
	} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || !bytes.Contains(text, []byte(words)) {
			t.Errorf("%s lacks %q: %v", name, words, err)
		}
	}
}

// A target may be of a value, or of what one value exceeds another by.
func TestFigure(t *testing.T) {
	r := &Report{Baseline: "kernel"}
	for i, v := range []float64{60, 70} {
		r.Add(Run{Scenario: "memory", System: "w8:new", Repetition: i}, scenario.Sample{scenario.MemoryLoaded: v})
		r.Add(Run{Scenario: "memory", System: "w1:new", Repetition: i}, scenario.Sample{scenario.MemoryIdle: 20})
	}
	own := Target{Scenario: "memory", System: "w8:new", Metric: scenario.MemoryLoaded}
	for _, c := range []struct {
		to   string
		from scenario.Metric
		want *Spread
		show string
	}{
		{"", scenario.Metric{}, &Spread{65, 60, 70, 2}, "65.0 MiB"},
		{"w1:new", scenario.MemoryIdle, &Spread{45, 40, 50, 2}, "45.0 MiB"},
		{"w1:new", scenario.MemoryHuge, nil, ""},
		{"w2:new", scenario.Metric{}, nil, ""},
	} {
		target := own
		target.To, target.From = c.to, c.from
		got := r.figure(target)
		if !reflect.DeepEqual(got, c.want) {
			t.Errorf("beyond %q: %v, want %v", c.to, got, c.want)
		}
		if got != nil && target.show(got.Median) != c.show {
			t.Errorf("beyond %q it shows %s, want %s", c.to, target.show(got.Median), c.show)
		}
	}
}

func TestBusy(t *testing.T) {
	for _, c := range []struct {
		Conditions
		want bool
	}{
		{Conditions{LoadBefore: 9, Load: 9, BusyBefore: 10, StealBefore: 5, Steal: 5}, false},
		{Conditions{BusyBefore: 15}, true},
		{Conditions{StealBefore: 6}, true},
		{Conditions{Steal: 6}, true},
	} {
		if got := c.Busy(); got != c.want {
			t.Errorf("%+v: busy is %t", c.Conditions, got)
		}
	}
}

// Panels of the chart don't touch: what is drawn of one ends before the next begins.
func TestPanelsAreApart(t *testing.T) {
	r := sample()
	n := len(r.columns())
	if n != 4 {
		t.Fatalf("%d columns, want those of tcp1, twice, udp64 and rtt", n)
	}
	for i := 1; i < n; i++ {
		_, end := across(i-1, n)
		if begin, _ := across(i, n); begin-end < gutter-1e-6 {
			t.Errorf("panel %d begins %.1f after the end of the one before", i, float64(begin-end))
		}
	}
	if _, end := across(n-1, n); end > chartWidth-chartMargin+1e-6 {
		t.Errorf("the last panel ends at %.1f", float64(end))
	}
}

func TestReadme(t *testing.T) {
	r, file := sample(), filepath.Join(t.TempDir(), "README.md")
	if err := os.WriteFile(file, []byte("above\n"+readmeBegin+"\nold\n"+readmeEnd+"\nbelow\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	var texts []string
	for range 2 {
		if err := r.WriteReadme(file, r.Check("")); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		texts = append(texts, string(text))
	}
	for _, words := range []string{
		"above\n<!--", "-->\nbelow\n", "- `nic`: as a NIC is\n",
		"| TCP 1 stream, to kernel VXLAN | `nic` | 1.37 - 3.24 | 1.75, 1.50 - 2.00 | 9.00 Gbit/s | 6.00 Gbit/s | 1 of 5 |\n",
	} {
		if !strings.Contains(texts[0], words) {
			t.Errorf("README lacks %q:\n%s", words, texts[0])
		}
	}
	if strings.Contains(texts[0], "old") || texts[0] != texts[1] {
		t.Errorf("README written twice is\n%s", texts[1])
	}
	expectShort(t, r, file)
	if err := os.WriteFile(file, []byte("no marks\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := r.WriteReadme(file, nil); !errors.Is(err, errMarks) {
		t.Errorf("without marks: %v", err)
	}
}

// expectShort has the short table written.
func expectShort(t *testing.T, r *Report, file string) {
	t.Helper()
	if err := os.WriteFile(file, []byte("above\n"+shortBegin+"\nold\n"+readmeEnd+"\nbelow\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := r.WriteReadme(file, r.Check("")); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	want := "above\n" + shortBegin + `

|  | ` + "`nic-gro` | `nic` | `veth`" + ` |
|---|---|---|---|
| TCP 1 stream |  | 1.37 - 3.24 |  |

` + readmeEnd + "\nbelow\n"
	if string(text) != want {
		t.Errorf("it is\n%s\nwant\n%s", text, want)
	}
}

// The limits hold on the machines that were seen.
func TestLimitsHoldWhereSeen(t *testing.T) {
	for _, target := range Targets {
		if target.Seen == (Range{}) {
			continue
		}
		for _, v := range []float64{target.Seen.Min, target.Seen.Max} {
			if !(Result{target, &Spread{Median: v}}).Met() {
				t.Errorf("%s on %s: %g was seen, the limit is %g", target.What, target.Underlay, v, target.Limit)
			}
		}
	}
}
