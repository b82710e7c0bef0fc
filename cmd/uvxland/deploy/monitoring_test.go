package deploy_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/prometheus"
	"github.com/grafana/grafana-foundation-sdk/go/stat"
	"github.com/grafana/grafana-foundation-sdk/go/table"
	"github.com/grafana/grafana-foundation-sdk/go/timeseries"
)

const grafanaFile, alertsFile, alertTests = "grafana/uvxlan.json", "prometheus/alerts.yml", "prometheus/alerts_test.yml"

// promtool runs Prometheus' checker.
func promtool(t *testing.T, args ...string) {
	t.Helper()
	if _, err := exec.LookPath("promtool"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	run(t, "promtool", args...)
}

func read(t *testing.T, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// Prometheus takes the rules and the configuration, and each alert fires when it is
// to, and only then.
func TestAlerts(t *testing.T) {
	alerts := regexp.MustCompile(`(?m)^ +- alert: (\w+)$`).FindAllSubmatch(read(t, alertsFile), -1)
	if len(alerts) == 0 {
		t.Fatal("there are no alerts")
	}
	tests := read(t, alertTests)
	for _, a := range alerts {
		fires := regexp.MustCompile(`(?m)alertname: ` + string(a[1]) + `\n +exp_alerts:\n +- exp_labels:`)
		if !fires.Match(tests) {
			t.Errorf("%s has no test in which it fires", a[1])
		}
	}
	promtool(t, "check", "config", "--lint-fatal", "prometheus/prometheus.yml")
	promtool(t, "test", "rules", alertTests)
}

// panel is what the tests look at of one of the dashboard's.
type panel struct {
	ID      int
	Type    string
	Title   string
	GridPos struct{ X, Y, W, H int }
	Targets []struct{ Expr string }
}

// Grafana's schema has each field of the dashboard, and its panels lie beside each
// other.
func TestDashboard(t *testing.T) {
	known := cog.NewRuntime() // with the kinds of panels and queries that there are
	known.RegisterPanelcfgVariant(stat.VariantConfig())
	known.RegisterPanelcfgVariant(table.VariantConfig())
	known.RegisterPanelcfgVariant(timeseries.VariantConfig())
	known.RegisterDataqueryVariant(prometheus.VariantConfig())
	text := read(t, grafanaFile)
	//nolint:staticcheck // its successor is for Grafana 12 alone
	var d dashboard.Dashboard
	// The error may be an empty list.
	if err := d.UnmarshalJSONStrict(text); err != nil && err.Error() != "" {
		t.Errorf("%s: %v", grafanaFile, err)
	}
	if err := d.Validate(); err != nil {
		t.Errorf("%s: %v", grafanaFile, err)
	}

	var own struct{ Panels []panel }
	if err := json.Unmarshal(text, &own); err != nil {
		t.Fatal(err)
	}
	taken, ids := map[[2]int]string{}, map[int]string{}
	for _, p := range own.Panels {
		if other, ok := ids[p.ID]; ok {
			t.Errorf("%s and %s both have the id %d", other, p.Title, p.ID)
		}
		ids[p.ID] = p.Title
		if _, ok := known.ConfigForPanelcfgVariant(p.Type); !ok && p.Type != "row" {
			t.Errorf("%s: the test doesn't know panels of type %s", p.Title, p.Type)
		}
		for x := range p.GridPos.W {
			for y := range p.GridPos.H {
				at := [2]int{p.GridPos.X + x, p.GridPos.Y + y}
				if other, ok := taken[at]; ok || at[0] >= 24 {
					t.Fatalf("%s lies on %q at %v", p.Title, other, at)
				}
				taken[at] = p.Title
			}
		}
	}
	checkQueries(t, own.Panels)
}

// checkQueries has Prometheus parse the panels' queries, as rules.
func checkQueries(t *testing.T, panels []panel) {
	t.Helper()
	type rule struct {
		Record string `json:"record"`
		Expr   string `json:"expr"`
	}
	var rules []rule
	variables := strings.NewReplacer("$__rate_interval", "1m", "$job", "uvxlan", "$instance", ".*")
	for _, p := range panels {
		for i, target := range p.Targets {
			rules = append(rules, rule{fmt.Sprintf("panel%d_%d", p.ID, i), variables.Replace(target.Expr)})
		}
	}
	if len(rules) == 0 {
		t.Fatal("the dashboard has no queries")
	}
	text, err := json.Marshal(map[string]any{"groups": []any{map[string]any{"name": "dashboard", "rules": rules}}}) // JSON is YAML
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "rules.yml")
	if err := os.WriteFile(name, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if bytes.ContainsRune(text, '$') {
		t.Errorf("a variable is left in %s", text)
	}
	promtool(t, "check", "rules", name)
}
