package ipmi

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/picket-ha/picket/consensus/state"
)

func TestParseGood(t *testing.T) {
	base := state.IPMIOpts{Host: "10.20.30.101", Port: 623, User: "admin", PasswordFile: "/etc/picket/node1.bmc",
		Privilege: "OPERATOR", Suite: 17, Interval: time.Second, Retries: 4}
	with := func(f func(*state.IPMIOpts)) state.IPMIOpts { o := base; f(&o); return o }
	const rest = " -U admin -f /etc/picket/node1.bmc"
	for _, c := range []struct {
		in       string
		want     state.IPMIOpts
		password string
		warnings int
	}{
		{"-I lanplus -H 10.20.30.101" + rest, base, "", 0},
		{"ipmitool -I lanplus -H 10.20.30.101" + rest, base, "", 0},
		{"/usr/bin/ipmitool -Ilanplus -H10.20.30.101 -Uadmin -f/etc/picket/node1.bmc -C17", base, "", 0},
		{"-H 10.20.30.101" + rest, base, "", 1},
		{"-I lanplus -H 10.20.30.101 -p 6230 -L administrator -C 3 -N 2 -R 0" + rest, with(func(o *state.IPMIOpts) {
			o.Port, o.Privilege, o.Suite, o.Interval, o.Retries = 6230, "ADMINISTRATOR", 3, 2*time.Second, 0
		}), "", 1},
		{"-I lanplus -H fd00::7" + rest, with(func(o *state.IPMIOpts) { o.Host = "fd00::7" }), "", 0},
		{"-I lanplus -H [fe80::1%eth0]" + rest, with(func(o *state.IPMIOpts) { o.Host = "fe80::1%eth0" }), "", 0},
		{"-I lanplus -H bmc-1.example.org -L ADMIN" + rest, with(func(o *state.IPMIOpts) { o.Host, o.Privilege = "bmc-1.example.org", "ADMINISTRATOR" }), "", 0},
		{"-I lanplus -H 10.20.30.101 -U admin -E", with(func(o *state.IPMIOpts) { o.PasswordFile, o.PasswordEnv = "", true }), "", 1},
		{`-I lanplus -H 10.20.30.101 -U admin -P 'a b"c\'`, with(func(o *state.IPMIOpts) { o.PasswordFile = "" }), `a b"c\`, 1},
		{`-I lanplus -H 10.20.30.101 -U "ad"min -P a\ \'"\"$\x"`, with(func(o *state.IPMIOpts) { o.PasswordFile = "" }), `a '"$\x`, 1},
		{"-I lanplus -H 10.20.30.101 -U admin -P -secret", with(func(o *state.IPMIOpts) { o.PasswordFile = "" }), "-secret", 1},
		{"\n\t-I lanplus\r\n -H 10.20.30.101" + rest + "\n", base, "", 0},
	} {
		got, err := Parse(c.in)
		if err != nil {
			t.Errorf("%q: %v", c.in, err)
			continue
		}
		if d := cmp.Diff(c.want, got.Opts); d != "" || got.Password != c.password || len(got.Warnings) != c.warnings {
			t.Errorf("%q: password %q, warnings %q\n%s", c.in, got.Password, got.Warnings, d)
		}
	}
}

func TestParseBad(t *testing.T) {
	const ok = " -I lanplus -H h -U u -f /f"
	for _, c := range []struct{ in, want string }{
		{"", "-H HOST is missing"},
		{"-I lanplus -U u -f /f", "-H HOST is missing"},
		{"-I lanplus -H h -f /f", "-U USER is missing"},
		{"-I lanplus -H h -U u", "add -f FILE"},
		{"-I lanplus -H h -U u -f /f -E", "keep one"},
		{"-I lan -H h -U u -f /f", "IPMI 1.5"},
		{"-I open -U u -f /f", "cannot fence itself"},
		{"-I serial" + " -H h", "lanplus only"},
		{"-C 0" + ok, "-C takes 3 or 17"},
		{"-C 1" + ok, "-C takes 3 or 17"},
		{"-C 017" + ok, "-C takes 3 or 17"},
		{"-L USER" + ok, "may not switch power"},
		{"-L root" + ok, "OPERATOR or ADMINISTRATOR"},
		{"-p 0" + ok, "from 1 to 65535"},
		{"-p 99999" + ok, "from 1 to 65535"},
		{"-N 0" + ok, "from 1 to 30"},
		{"-R 11" + ok, "from 0 to 10"},
		{"-H a -H b -I lanplus -U u -f /f", "given twice"},
		{"-H h:623 -U u -f /f", "-p PORT"},
		{"-H [h] -U u -f /f", "brackets"},
		{"-H h;reboot -U u -f /f", "letters, digits"},
		{"-H -U u -f /f", "has no value"},
		{"-H " + strings.Repeat("h", 254), "1 to 253"},
		{"-U " + strings.Repeat("u", 17) + " -H h -f /f", "1 to 16"},
		{"-f node1.bmc -H h -U u", "absolute path"},
		{"-P " + strings.Repeat("x", 21) + " -H h -U u", "21 bytes long"},
		{"-P '' -H h -U u", "empty"},
		{"-P", "needs a value"},
		{"-a" + ok, "use -f FILE"},
		{"-k key" + ok, "Kg"},
		{"-x 1" + ok, "-x (word 1) is not known"},
		{"-v" + ok, "leave it out"},
		{"-Ex" + ok, "takes no value"},
		{"--host h", "long option"},
		{ok + " chassis power off", "word 9 is not an option"},
		{"-U 'u", "not closed"},
		{`-U u\`, "backslash"},
		{"-", "word 1 is not an option"},
		{"-\x01", "word 1 is not an option"},
		{strings.Repeat(" ", MaxOptions+1), "at most 4096"},
	} {
		_, err := Parse(c.in)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: got %v, want %q", c.in, err, c.want)
		}
	}
}

// leaks looks for a secret in everything that a parse gives out except Password itself.
func leaks(p Parsed, err error, secret string) string {
	raw, _ := json.Marshal(p.Opts)
	all, _ := json.Marshal(p)
	texts := append([]string{fmt.Sprint(err), p.String(), fmt.Sprintf("%v %+v %#v %s", p, p, p, p), string(all), p.LogValue().String()}, p.Warnings...)
	if p.Password == secret { // parsed as meant: then the clean options must not hold it either
		texts = append(texts, string(raw))
	}
	for _, s := range texts {
		if strings.Contains(s, secret) {
			return s
		}
	}
	return ""
}

func TestParseHidesPassword(t *testing.T) {
	const secret = "Xq7Zsecret"
	for _, in := range []string{
		"-I lanplus -H h -U u -P " + secret,
		"-I lanplus -H h -U u -P" + secret,
		"-I lanplus -H h -U u -P two " + secret,
		"-I lanplus -H h -U u -P two -" + secret,
		"-I lanplus -H h -U u --password=" + secret,
		"-I lanplus -H h -U u -P " + strings.Repeat(secret, 3),
		"-P " + secret + " -C " + secret,
		"-I " + secret, "-L " + secret, "-C " + secret, "-p " + secret, "-N " + secret, "-E" + secret, secret, "'" + secret,
		"-H ;" + secret, "-U u\x01" + secret, "-f " + secret,
	} {
		p, err := Parse(in)
		if s := leaks(p, err, secret); s != "" {
			t.Errorf("%q leaks: %s", in, s)
		}
	}
}

func FuzzParse(f *testing.F) {
	const secret = "Xq7Zsecret"
	f.Add("-I lanplus -H h -U u", " -C 17")
	f.Add("-I lanplus -H h -U 'u", "'")
	f.Add("-H", "\\")
	f.Fuzz(func(t *testing.T, before, after string) {
		p, err := Parse(before + after) // any string: no panic, clean result
		if err == nil {
			if p.Opts.Host == "" || p.Opts.User == "" || (p.Opts.Suite != 3 && p.Opts.Suite != 17) || p.Opts.Port == 0 ||
				p.Opts.Interval <= 0 || len(p.Password) > MaxPassword {
				t.Fatalf("unclean: %+v", p)
			}
		}
		if strings.Contains(before, secret) || strings.Contains(after, secret) {
			return
		}
		p, err = Parse(before + " -P " + secret + " " + after)
		if err != nil {
			if strings.Contains(err.Error(), secret) {
				t.Fatalf("error leaks: %v", err)
			}
			return
		}
		if p.Password == secret {
			if s := leaks(p, err, secret); s != "" {
				t.Fatalf("leaks: %s", s)
			}
		}
	})
}
