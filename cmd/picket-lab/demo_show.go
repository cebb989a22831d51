package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/picket-ha/picket/integration/check"
	"github.com/picket-ha/picket/integration/netlab"
	"github.com/picket-ha/picket/integration/netlab/cluster"
)

// demoWidth is the width of the demonstration's text, in columns.
const demoWidth = 80

// show tells the demonstration, as plain ASCII of at most demoWidth columns.
type show struct {
	w    io.Writer
	part string // what the newest line belongs to
}

func (s *show) raw(text string) { fmt.Fprint(s.w, ascii(text)) }

func (s *show) line(text string) { fmt.Fprintln(s.w, strings.TrimRight(ascii(text), " ")) }

// para prints text wrapped, its first line behind head, the others indented as far.
func (s *show) para(head, text string) {
	indent := strings.Repeat(" ", len(head))
	cur := ""
	for _, word := range strings.Fields(text) {
		if cur != "" && len(head)+len(cur)+1+len(word) > demoWidth {
			s.line(head + cur)
			head, cur = indent, ""
		}
		if cur != "" {
			cur += " "
		}
		cur += word
	}
	s.line(head + cur)
}

// ascii replaces what a plain terminal might not show.
func ascii(text string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || (r >= 32 && r < 127) {
			return r
		}
		return '?'
	}, text)
}

func (s *show) intro() {
	s.line("picket: three nodes keep one service address running, on exactly one of them.")
	s.line("")
	s.para("", `Every node below is a real picket daemon on real network cards, in namespaces of this machine. Each has a BMC that speaks IPMI 2.0 and really ends and revives its node. A client on the public network asks the address 200 times a second. Whether the address ever had two owners is judged by observers that are not picket.`)
	s.line("")
	s.raw(`   client .250      observer .251
        |                 |
  ------+-----+-----------+----+--------------+------  192.168.60.0/24 (eth0)
              |                |              |
            node1            node2          node3       service: 192.168.60.200
              |                |              |
        ------+----------------+--------------+------  10.10.10.0/24 (eth1)
         BMC .101         BMC .102       BMC .103       10.20.30.0/24 (mgmt0)

`)
	s.line("Forming the cluster:")
}

// ran shows a command that formed the cluster, without its secrets and the longest of its words.
func (s *show) ran(node string, argv []string, out netlab.Output) {
	var words []string
	for i, a := range argv {
		if i > 0 && argv[i-1] == "--token" {
			a = "TOKEN"
		}
		words = append(words, a)
	}
	s.para(fmt.Sprintf("  [%s] ", node), strings.Join(words, " "))
	if out.Code != 0 {
		s.para("          ", out.Stderr)
	}
}

func (s *show) formed(ctx context.Context, c *cluster.Cluster, took time.Duration) {
	s.line(fmt.Sprintf("  formed in %.1f s. picket status:", took.Seconds()))
	s.line("")
	out, err := c.Ask(ctx, c.Nodes[0], "status")
	if err != nil {
		return // the first scene will say what is wrong
	}
	for _, l := range strings.Split(strings.TrimSpace(out.Stdout), "\n") {
		s.line(l)
	}
}

func (s *show) scene(n int, sc cluster.Scene) {
	s.part = ""
	head := fmt.Sprintf("== %d. %s ", n, sc.Title)
	s.line("")
	s.line(head + strings.Repeat("=", max(0, demoWidth-len(head))))
}

// tell shows a line of a scene as it is played.
func (s *show) tell(kind, text string, since time.Duration) {
	head := ""
	switch kind {
	case cluster.TellDid:
		head = "  done     "
	case cluster.TellAnswer:
		head = "             "
		if text == "" {
			return
		}
	case cluster.TellEvent:
		head = fmt.Sprintf("  %+8.3f s ", since.Seconds())
	case cluster.TellExplain:
		head = "           "
	case cluster.TellClient:
		head = "  client   "
	case cluster.TellCheck:
		head = "  ok       "
	case cluster.TellBroken:
		head = "  NOT held "
	}
	if kind == cluster.TellEvent && s.part != cluster.TellEvent {
		s.line("  cluster, in its own words, with the time since the fault:")
	}
	s.part = kind
	s.para(head, text)
}

func (s *show) verdict(r cluster.Result) {
	if r.OK() {
		s.line(fmt.Sprintf("  verdict  held (%d expectations)", len(r.Checks)))
		return
	}
	s.line("  verdict  NOT held")
}

func (s *show) judge(r check.Report, took time.Duration) {
	s.line("")
	s.para("", fmt.Sprintf("The observers (ARP prober, writer and lock oracle on every node, power and BMC records) watched for %.0f s and saw:", took.Seconds()))
	s.line("  " + r.Summary())
	var b strings.Builder
	if !r.OK() && r.Write(&b) == nil {
		s.raw(b.String())
	}
}

func (s *show) end(held bool) {
	s.line("")
	if held {
		s.line("Everything held.")
		return
	}
	s.line("NOT everything held: see the lines marked NOT held.")
}
