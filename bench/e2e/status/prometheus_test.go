package status_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"uvxlan/bench/e2e"
	"uvxlan/bench/lab"
)

// deploy has what users get for Prometheus and Grafana.
const deploy = "../../../cmd/uvxland/deploy"

// requireProgram ends a test that can't run a program.
func requireProgram(t *testing.T, name string) {
	t.Helper()
	_, err := exec.LookPath(name)
	if err != nil && os.Getenv("CI") != "" {
		t.Fatal(err)
	}
	if err != nil {
		t.Skip(err)
	}
}

// prometheusServer is one that scrapes the daemons of the lab.
type prometheusServer struct {
	t    *testing.T
	host *lab.Host
}

const prometheusPort = "9090"

// startPrometheus starts it with the users' configuration and alerts, but for the
// targets, and more often than every 15 s; no alert waits for longer than a second.
func startPrometheus(w *e2e.World, h *lab.Host) prometheusServer {
	w.T.Helper()
	var targets []string
	for _, h := range w.Hosts() {
		targets = append(targets, h.Address.String()+":"+e2e.HealthPort)
	}
	dir := w.T.TempDir()
	for name, changes := range map[string][][2]string{
		"prometheus.yml": {{`targets: \[.*\]`, "targets: [" + strings.Join(targets, ", ") + "]"}, {`interval: 15s`, "interval: 250ms"}},
		"alerts.yml":     {{`for: \d+m`, "for: 1s"}},
	} {
		text, err := os.ReadFile(filepath.Join(deploy, "prometheus", name))
		if err != nil {
			w.T.Fatal(err)
		}
		for _, c := range changes {
			pattern := regexp.MustCompile(c[0])
			if !pattern.Match(text) {
				w.T.Fatalf("%s has no %s", name, c[0])
			}
			text = pattern.ReplaceAll(text, []byte(c[1]))
		}
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			w.T.Fatal(err)
		}
	}
	c := h.Command(w.T.Context(), "prometheus", "--config.file", filepath.Join(dir, "prometheus.yml"),
		"--storage.tsdb.path", filepath.Join(dir, "data"), "--web.listen-address", "127.0.0.1:"+prometheusPort, "--log.level", "warn")
	c.Stdout, c.Stderr = os.Stderr, os.Stderr
	if err := c.Start(); err != nil {
		w.T.Fatal(err)
	}
	p := prometheusServer{w.T, h}
	e2e.Await(w.T, "Prometheus answers", func() bool {
		code, _ := e2e.GetAt(w.T, h, prometheusPort, "/-/ready", "")
		return code == 200
	})
	return p
}

// ask asks the server for JSON.
func (p prometheusServer) ask(path string, query url.Values, to any) {
	p.t.Helper()
	code, text := e2e.GetAt(p.t, p.host, prometheusPort, path+"?"+query.Encode(), "")
	answer := struct{ Data any }{to}
	if err := json.Unmarshal([]byte(text), &answer); err != nil || code != 200 {
		p.t.Fatalf("%s %v: %d, %v: %s", path, query, code, err, text)
	}
}

// query returns the labels of each of a query's series.
func (p prometheusServer) query(expr string) (series []map[string]string) {
	p.t.Helper()
	var answer struct {
		Result []struct{ Metric map[string]string }
	}
	p.ask("/api/v1/query", url.Values{"query": {expr}}, &answer)
	for _, r := range answer.Result {
		series = append(series, r.Metric)
	}
	return series
}

// firing are the alerts, each as "name host".
func (p prometheusServer) firing() (all []string) {
	p.t.Helper()
	for _, labels := range p.query(`ALERTS{alertstate="firing"}`) {
		address, _, _ := strings.Cut(labels["instance"], ":")
		all = append(all, labels["alertname"]+" "+address)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// await waits until all of these alerts fire.
func (p prometheusServer) await(alerts ...string) {
	p.t.Helper()
	for _, a := range alerts {
		e2e.Await(p.t, a+" fires", func() bool { return slices.Contains(p.firing(), a) })
	}
}

// expression is a query of the dashboard's or an alert's, with the labels that its
// legend or words name.
type expression struct {
	of, query string
	labels    []string
}

var (
	legendLabel = regexp.MustCompile(`\{\{ *(?:\$labels\.)?(\w+) *\}\}`)
	groupLabels = regexp.MustCompile(`\b(?:by|on) \(([^)]*)\)`)
	selector    = regexp.MustCompile(`\b(?:uvxlan_\w+|process_\w+|up|ALERTS)\b(?:\{[^}]*\})?`)
	variables   = strings.NewReplacer("$__rate_interval", "1m", "$job", "uvxlan", "$instance", ".*")
)

func labelsOf(texts ...string) (labels []string) {
	for _, m := range legendLabel.FindAllStringSubmatch(strings.Join(texts, " "), -1) {
		labels = append(labels, m[1])
	}
	return labels
}

// expressions are all of the dashboard and of the alerts.
func (p prometheusServer) expressions() (all []expression) {
	p.t.Helper()
	text, err := os.ReadFile(filepath.Join(deploy, "grafana/uvxlan.json"))
	if err != nil {
		p.t.Fatal(err)
	}
	var dashboard struct {
		Annotations struct {
			List []struct{ Name, Expr, TitleFormat string }
		}
		Panels []struct {
			Title   string
			Targets []struct{ Expr, LegendFormat string }
		}
	}
	if err := json.Unmarshal(text, &dashboard); err != nil {
		p.t.Fatal(err)
	}
	for _, a := range dashboard.Annotations.List {
		all = append(all, expression{a.Name, variables.Replace(a.Expr), labelsOf(a.TitleFormat)})
	}
	for _, panel := range dashboard.Panels {
		for _, q := range panel.Targets {
			all = append(all, expression{panel.Title, variables.Replace(q.Expr), labelsOf(q.LegendFormat)})
		}
	}
	var rules struct {
		Groups []struct {
			Rules []struct {
				Name, Query, Health, LastError string
				Annotations                    map[string]string
			}
		}
	}
	p.ask("/api/v1/rules", nil, &rules)
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			if r.Health != "ok" {
				p.t.Errorf("%s is %s: %s", r.Name, r.Health, r.LastError)
			}
			all = append(all, expression{r.Name, r.Query, labelsOf(r.Annotations["summary"], r.Annotations["description"])})
		}
	}
	return all
}

// checkExpressions checks that what the dashboard and the alerts look at has been
// there: each metric, with values of the labels that they ask for, and each label
// that they group by or name.
func (p prometheusServer) checkExpressions() {
	p.t.Helper()
	all := p.expressions()
	if len(all) < 60 {
		p.t.Errorf("there are %d expressions", len(all))
	}
	seen := map[string]map[string]bool{} // the labels of each selector
	for _, e := range all {
		if e.query == "" {
			continue // Grafana's own annotations
		}
		p.query(e.query) // has no error
		has := map[string]bool{}
		for _, s := range selector.FindAllString(e.query, -1) {
			if seen[s] == nil {
				seen[s] = map[string]bool{}
				series := p.query("last_over_time(" + s + "[1h])")
				for _, labels := range series {
					for name := range labels {
						seen[s][name] = true
					}
				}
				if len(series) == 0 {
					p.t.Errorf("%s: there is no %s", e.of, s)
				}
			}
			maps.Copy(has, seen[s])
		}
		for _, m := range groupLabels.FindAllStringSubmatch(e.query, -1) {
			e.labels = append(e.labels, strings.Split(strings.ReplaceAll(m[1], " ", ""), ",")...)
		}
		for _, name := range e.labels {
			if !has[name] {
				p.t.Errorf("%s: nothing in %s has the label %s", e.of, e.query, name)
			}
		}
	}
	p.t.Logf("%d expressions with %d selectors", len(all), len(seen))
}

// A Prometheus with the configuration, the alerts and the queries of the dashboard
// that users get finds all of it in real daemons; it is silent while all is well, and
// has an alert for each of some faults.
func TestIntegrationPrometheus(t *testing.T) {
	requireProgram(t, "prometheus")
	w := e2e.NewWorld(t)
	w.Configure(e2e.HybridConfig)
	kb21, kb22, kb31 := w.Host("kb21"), w.Host("kb22"), w.Host("kb31")
	w.Cluster.Args = []string{"-healthz-port", e2e.HealthPort, "-iptables-resync", "1", "-probe-interval", "1s"}
	daemons := w.Start("kb21", "kb22", "kb31")
	w.Mesh("kb21", "kb22", "kb31")
	p := startPrometheus(w, kb21)
	e2e.Await(t, "all hosts are scraped, and no alert fires", func() bool {
		return len(p.query("uvxlan_ready == 1")) == 3 && len(p.query("uvxlan_peers == 2")) == 3 && len(p.query("ALERTS")) == 0
	})
	fast := len(p.query(fmt.Sprintf(`uvxlan_fastpath_attached{instance=~"%s:.*"} == 1`, kb21.Address))) == 1

	e2e.End(t, unix.SIGKILL, daemons[2])
	e2e.Command(t, kb22.Node, "sysctl -qw net.ipv4.ip_forward=0")
	e2e.Command(t, kb22.Node, "ip route add "+kb31.Subnet.String()+" via "+kb22.Gateway.String())
	w.StopEtcd()
	p.await("UvxlanDown "+kb31.Address.String(), "UvxlanPeerSilent ", "UvxlanNotReady "+kb22.Address.String(), "UvxlanHostFault "+kb22.Address.String(),
		"UvxlanPeersBypassed "+kb22.Address.String(), "UvxlanEtcdUnreachable "+kb21.Address.String(), "UvxlanEtcdUnreachable "+kb22.Address.String())
	if fast {
		e2e.Command(t, kb21.Node, "iptables-nft -t mangle -A OUTPUT -p udp --dport 4789 -j DSCP --set-dscp 46")
		p.await("UvxlanFastPathLost " + kb21.Address.String())
	}
	sendToNobody(t, p, kb21)
	p.checkExpressions()
	t.Logf("firing: %s", strings.Join(p.firing(), ", "))

	e2e.Command(t, kb22.Node, "sysctl -qw net.ipv4.ip_forward=1")
	w.StartEtcd()
	e2e.Await(t, "the alerts end", func() bool {
		return !slices.ContainsFunc(p.firing(), func(a string) bool {
			return strings.HasPrefix(a, "UvxlanNotReady ") || strings.HasPrefix(a, "UvxlanEtcdUnreachable ")
		})
	})
	p.await("UvxlanDown " + kb31.Address.String())
}

// sendToNobody sends from a host's container to a subnet that no host has until the
// alert fires.
func sendToNobody(t *testing.T, p prometheusServer, h *lab.Host) {
	t.Helper()
	const nobody = "172.7.99.1:9"
	var conn net.Conn
	err := h.Container.Do(func() (err error) {
		conn, err = net.Dial("udp", nobody)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	alert := "UvxlanNoSuchSubnet " + h.Address.String()
	e2e.Await(t, alert+" fires", func() bool {
		for range 500 {
			_, _ = conn.Write([]byte("to nobody")) // the ICMP errors that come back are its too
		}
		return slices.Contains(p.firing(), alert)
	})
}
