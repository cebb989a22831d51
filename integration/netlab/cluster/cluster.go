// Package cluster forms a picket cluster in a lab, the way an administrator would: through picket's
// own commands, on real nodes. It reads the cluster through picket --json, compares what the cluster
// wrote down with what its BMCs received, and plays the scenes that the demonstration shows and the
// stories repeat, so that both have one implementation.
package cluster

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/picket-ha/picket/integration/netlab"
)

const (
	// VIP is the service address that group Web owns, on eth0.
	VIP = "192.168.60.200"
	// Web is the one group of the cluster file.
	Web = "web"
	// commandTimeout bounds one picket command.
	commandTimeout = 20 * time.Second
	// formTimeout bounds the waits while the cluster forms.
	formTimeout = 20 * time.Second
)

// Options describes a cluster.
type Options struct {
	// Lab is the lab to start. Nodes default to node1, node2, node3; Witness joins as a witness.
	Lab netlab.Options
	// File is the cluster file that is applied; empty means File of the nodes.
	File string
	// Ran, when set, hears of every command that is run on a node in order to form the cluster, with
	// what it answered.
	Ran func(node string, argv []string, out netlab.Output)
}

// Cluster is a picket cluster in a lab. Its methods are not for concurrent use.
type Cluster struct {
	Lab     *netlab.Lab
	Nodes   []string
	Witness string

	ran        func(node string, argv []string, out netlab.Output)
	lastLeader string
	heard      map[string]Event // everything any daemon ever told
}

// File is a cluster file for the lab's nodes: fast timing, one BMC per member in ipmitool's
// notation, one group with the service address. extra is added to the end of the group, indented
// as its keys are ("    failback: true\n").
func File(nodes []string, witness, extra string) string {
	var b strings.Builder
	b.WriteString("cluster: demo\ntiming: fast\nnodes:\n")
	var own []string
	for i, n := range nodes {
		if n == witness {
			continue
		}
		own = append(own, n)
		fmt.Fprintf(&b, "  %s:\n    fence:\n      - ipmitool: -I lanplus -H %s -U %s -f /etc/picket/%s.bmc -C 17 -L OPERATOR\n",
			n, netlab.Addr(i, netlab.LinkBMC), netlab.BMCUser, n)
	}
	fmt.Fprintf(&b, "groups:\n  %s:\n    nodes: [%s]\n    resources:\n      - ip: %s/24\n        interface: eth0\n%s", Web, strings.Join(own, ", "), VIP, extra)
	return b.String()
}

// Form starts the lab and makes a cluster of its nodes: init on the first, token create and join
// for each other one, apply; it returns when the cluster says that all is well and the service runs.
// On an error the lab is closed; its directory stays, and the error ends with the daemons' last lines.
func Form(ctx context.Context, o Options) (*Cluster, error) {
	if len(o.Lab.Nodes) == 0 {
		o.Lab.Nodes = []string{"node1", "node2", "node3"}
	}
	o.Lab.VIPs = []netip.Addr{netip.MustParseAddr(VIP)}
	if o.File == "" {
		o.File = File(o.Lab.Nodes, o.Lab.Witness, "")
	}
	lab, err := netlab.Start(ctx, o.Lab)
	if err != nil {
		return nil, err
	}
	c := &Cluster{Lab: lab, Nodes: slices.Clone(o.Lab.Nodes), Witness: o.Lab.Witness, ran: o.Ran}
	if err := c.form(ctx, o.File); err != nil {
		if ctx.Err() == nil {
			err = fmt.Errorf("%w\n%s", err, c.Logs(20))
		}
		_ = lab.Close() // the first error is the one that matters
		return nil, err
	}
	return c, nil
}

var token = regexp.MustCompile(`picket1\.[a-z0-9]+\.[a-z0-9]+`)

func (c *Cluster) form(ctx context.Context, file string) error {
	links := func(i int) []string {
		return []string{"--link", "eth0=" + netlab.Addr(i, netlab.LinkPublic).String(), "--link", "eth1=" + netlab.Addr(i, netlab.LinkHeartbeat).String(), "--no-start"}
	}
	one := c.Nodes[0]
	if _, err := c.Must(ctx, one, append([]string{"init", "--name", one, "--cluster", "demo"}, links(0)...)...); err != nil {
		return err
	}
	if err := c.Lab.StartDaemon(ctx, one); err != nil {
		return err
	}
	leads := func(s Status) string { return want(s.Leader != "" && s.Quorum.OK, "a leader") }
	if _, err := c.Await(ctx, formTimeout, leads); err != nil {
		return err
	}
	for i, n := range c.Nodes[1:] {
		out, err := c.Must(ctx, one, "token", "create")
		if err != nil {
			return err
		}
		t := token.FindString(out.Stdout)
		args := []string{"join", netlab.Addr(0, netlab.LinkPublic).String() + "," + netlab.Addr(0, netlab.LinkHeartbeat).String(), "--token", t, "--name", n}
		if n == c.Witness {
			args = append(args, "--role", "witness")
		}
		if _, err := c.Must(ctx, n, append(args, links(i+1)...)...); err != nil {
			return err
		}
		if err := c.Lab.StartDaemon(ctx, n); err != nil {
			return err
		}
	}
	vote := func(s Status) string {
		return want(s.Quorum.Voters == len(c.Nodes) && s.Quorum.Reachable == len(c.Nodes), "every node votes")
	}
	if _, err := c.Await(ctx, formTimeout, vote); err != nil {
		return err
	}
	if err := c.Apply(ctx, file); err != nil {
		return err
	}
	c.ran = nil
	_, err := c.AwaitOK(ctx, formTimeout)
	return err
}

// Apply puts a cluster file on the first node that runs and applies it there.
func (c *Cluster) Apply(ctx context.Context, file string) error {
	up, err := c.Up(ctx)
	if err != nil || len(up) == 0 {
		return fmt.Errorf("apply the cluster file: no daemon runs: %w", err)
	}
	if err := os.WriteFile(filepath.Join(c.Lab.Dir(), "nodes", up[0], "etc", "cluster.yaml"), []byte(file), 0o600); err != nil {
		return fmt.Errorf("write the cluster file: %w", err)
	}
	_, err = c.Must(ctx, up[0], "apply", "/etc/picket/cluster.yaml")
	return err
}

// Picket runs a picket command on a node and tells Ran of it. A non-zero exit code is no error.
func (c *Cluster) Picket(ctx context.Context, node string, args ...string) (netlab.Output, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	argv := append([]string{"picket"}, args...)
	out, err := c.Lab.Run(ctx, node, argv...)
	if err == nil && c.ran != nil {
		c.ran(node, argv, out)
	}
	return out, err
}

// Must is Picket for a command that has to succeed.
func (c *Cluster) Must(ctx context.Context, node string, args ...string) (netlab.Output, error) {
	out, err := c.Picket(ctx, node, args...)
	if err == nil && out.Code != 0 {
		err = fmt.Errorf("picket %s on %s: exit code %d: %s", args[0], node, out.Code, first(out.Stderr, out.Stdout, "it said nothing"))
	}
	return out, err
}

// Ask runs a picket command in silence, for its exit code and text.
func (c *Cluster) Ask(ctx context.Context, node string, args ...string) (netlab.Output, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	return c.Lab.Run(ctx, node, append([]string{"picket"}, args...)...)
}

// Index is the number of a node in the lab, from 0; -1 if there is none of that name.
func (c *Cluster) Index(node string) int { return slices.Index(c.Nodes, node) }

// Logs returns the last lines of every daemon's log, at most n of each.
func (c *Cluster) Logs(n int) string {
	var b strings.Builder
	for _, node := range c.Nodes {
		raw, err := os.ReadFile(filepath.Join(c.Lab.Dir(), "nodes", node, "daemon.log"))
		if err != nil {
			fmt.Fprintf(&b, "%s: %v\n", node, err)
			continue
		}
		lines := strings.Split(strings.TrimRight(string(raw), "\n"), "\n")
		fmt.Fprintf(&b, "last lines of the daemon's log on %s:\n  %s\n", node, strings.Join(lines[max(0, len(lines)-n):], "\n  "))
	}
	return b.String()
}
