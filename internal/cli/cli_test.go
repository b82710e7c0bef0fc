package cli

import (
	"bytes"
	"errors"
	"flag"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func flags() *flag.FlagSet {
	fs := flag.NewFlagSet("test", flag.ContinueOnError)
	fs.Int("n", 0, "`number` of it")
	fs.Bool("ip-masq", false, "masquerade")
	fs.Duration("interval", time.Second, "`time` of it")
	fs.String("control-socket", "", "`path` of it")
	fs.TextVar(&netip.Addr{}, "public-ip", netip.Addr{}, "`address` of it")
	return fs
}

func TestParse(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"-itnerval 2s", "unknown flag -itnerval: did you mean -interval?"},
		{"--socket=x", "unknown flag -socket: did you mean -control-socket?"},
		{"-frobnicate", "unknown flag -frobnicate: -help lists the flags"},
		{"-n", "-n: a value is missing"},
		{"-n=x", `-n "x": must be a whole number`},
		{"-n 99999999999999999999", `-n "99999999999999999999": must be a whole number`},
		{"-interval=2", `-interval "2": must be a time, such as 500ms or 1m30s`},
		{"-ip-masq=maybe", `-ip-masq "maybe": must be true or false`},
		{"-public-ip=eth0", `-public-ip "eth0": must be an IP address`},
		{"---n", "bad flag syntax: ---n"},
	} {
		err := Parse(flags(), strings.Fields(c.args))
		if err == nil || err.Error() != c.want || !errors.Is(err, ErrUsage) || ExitCode(err) != 2 {
			t.Errorf("%s: %v, exit code %d, want %s", c.args, err, ExitCode(err), c.want)
		}
	}
	if err := Parse(flags(), []string{"-n=1", "-ip-masq"}); err != nil {
		t.Error(err)
	}
	if err := Parse(flags(), []string{"-help"}); !errors.Is(err, flag.ErrHelp) || ExitCode(err) != 0 {
		t.Errorf("-help: %v", err)
	}
}

func TestUnknown(t *testing.T) {
	for name, want := range map[string]string{
		"statsu": `unknown command "statsu": did you mean status?`,
		"frob":   `unknown command "frob": see help`,
	} {
		if err := Unknown("command", name, []string{"status", "top"}, "see help"); err.Error() != want || ExitCode(err) != 2 {
			t.Errorf("%v, want %s", err, want)
		}
	}
	if ExitCode(errors.New("other")) != 1 || ExitCode(nil) != 0 || Usage(nil) != nil {
		t.Error("exit codes are wrong")
	}
}

// The flags are listed by topic, with their defaults although another was given.
func TestPrintFlags(t *testing.T) {
	fs := flags()
	if err := Parse(fs, []string{"-interval=7s"}); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	PrintFlags(&out, fs, []Group{{"times", []string{"interval"}}, {"numbers", []string{"n", "none"}}})
	want := "\ntimes:\n  -interval time\n    \ttime of it (default 1s)\n\nnumbers:\n  -n number\n    \tnumber of it\n"
	if out.String() != want {
		t.Errorf("it printed\n%q, want\n%q", &out, want)
	}
}
