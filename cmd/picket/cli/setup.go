package cli

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/picket-ha/picket/cmd/picket/config"
	"github.com/picket-ha/picket/cmd/picket/control"
	"github.com/picket-ha/picket/consensus/ids"
)

// nodeFlags are the flags init and join share.
type nodeFlags struct {
	name    string
	links   []string
	port    int
	noStart bool
}

func (n *nodeFlags) add(c *cobra.Command) {
	f := c.Flags()
	f.SortFlags = false
	f.StringVar(&n.name, "name", "", "this node's `NAME`, unique in the cluster (default: the host name)")
	f.StringArrayVar(&n.links, "link", nil, "a NIC that carries heartbeats and this node's address on it, `IF=ADDR`; repeat it for each NIC")
	f.IntVar(&n.port, "port", config.DefaultPort, "UDP and TCP `PORT`, the same on every node")
	f.BoolVar(&n.noStart, "no-start", false, "do not install, enable or start the systemd unit")
}

// check returns the links, or a usage error.
func (n *nodeFlags) check() ([]config.Link, error) {
	if n.name == "" {
		h, err := os.Hostname()
		if err != nil {
			return nil, control.Usage("the host name cannot be read (%v): give --name", err)
		}
		n.name, _, _ = strings.Cut(strings.ToLower(h), ".")
	}
	if err := ids.CheckName("node name", n.name); err != nil {
		return nil, control.Usage("%s (--name)", err)
	}
	if err := config.CheckPort(n.port); err != nil {
		return nil, control.Usage("%s (--port)", err)
	}
	links, err := config.ParseLinks(n.links)
	if err != nil {
		return nil, control.Usage("%s", err)
	}
	return links, nil
}

func (r *runner) initCluster() *cobra.Command {
	var n nodeFlags
	var cluster string
	c := &cobra.Command{
		Use:     "init --name NODE --link IF=ADDR [--link IF=ADDR]...",
		GroupID: "setup",
		Short:   "Make a new cluster, with this machine as its first node",
		Long: `Makes a new cluster: its certificate authority and keys, this node's certificate, and
/etc/picket/node.yaml; starts the daemon; and prints the command that joins the next
node. Give one --link for each NIC that the nodes share: two that fail apart are best.`,
		Example: "  picket init --name node1 --cluster prod --link eth0=192.168.60.11 --link eth1=10.10.10.11",
		Args:    exactly(),
		RunE: act(func(cmd *cobra.Command, _ []string) error {
			links, err := n.check()
			if err != nil {
				return err
			}
			if err := ids.CheckName("cluster name", cluster); err != nil {
				return control.Usage("%s (--cluster)", err)
			}
			if r.hooks.Init == nil {
				return control.Usage("this build of picket has no init")
			}
			res, err := r.hooks.Init(cmd.Context(), config.InitOptions{Paths: r.paths, Name: n.name, Cluster: cluster, Links: links, Port: n.port, NoStart: n.noStart})
			if err != nil {
				return err
			}
			r.answer(renderInit(cluster, n.name, res))
			return nil
		}),
	}
	n.add(c)
	c.Flags().StringVar(&cluster, "cluster", "picket", "the cluster's `NAME`, as in the cluster file")
	return c
}

func (r *runner) join() *cobra.Command {
	var n nodeFlags
	var token, tokenFile, role string
	c := &cobra.Command{
		Use:     "join ADDRESS[,ADDRESS...] --token T --name NODE --link IF=ADDR...",
		GroupID: "setup",
		Short:   "Make this machine a node of an existing cluster",
		Long: `Joins the cluster that a node at ADDRESS belongs to. Make the token there with
"picket token create": it works once, for a short time, and proves the cluster to this
node as well as this node to the cluster. The node gets a vote when its daemon is up
and has caught up. A join that is refused says why and leaves nothing behind.

A witness (--role witness) votes and never owns a group: two nodes and a witness
survive the loss of any one.`,
		Example: "  picket join 192.168.60.11,10.10.10.11 --token-file /root/token --name node2 --link eth0=192.168.60.12 --link eth1=10.10.10.12",
		Args:    exactly("ADDRESS"),
		RunE: act(func(cmd *cobra.Command, args []string) error {
			links, err := n.check()
			if err != nil {
				return err
			}
			addrs, err := config.ParseJoinAddrs(args[0], n.port)
			if err != nil {
				return control.Usage("%s", err)
			}
			if role != config.RoleMember && role != config.RoleWitness {
				return control.Usage("role '%s' is not known: use member or witness", role)
			}
			if token, err = r.readToken(token, tokenFile); err != nil {
				return err
			}
			if r.hooks.Join == nil {
				return control.Usage("this build of picket has no join")
			}
			res, err := r.hooks.Join(cmd.Context(), config.JoinOptions{Paths: r.paths, Addrs: addrs, Token: token, Name: n.name, Role: role,
				Links: links, Port: n.port, NoStart: n.noStart})
			if err != nil {
				return err
			}
			r.answer(renderJoin(n.name, role, res))
			return nil
		}),
	}
	n.add(c)
	c.Flags().StringVar(&token, "token", "", "the `TOKEN` from picket token create")
	c.Flags().StringVar(&tokenFile, "token-file", "", "read the token from `FILE` ('-': stdin), so that ps does not show it")
	c.Flags().StringVar(&role, "role", config.RoleMember, "member (votes, may own groups) or witness (votes, never owns)")
	return c
}

// readToken takes the token from exactly one of its two places.
func (r *runner) readToken(token, file string) (string, error) {
	switch {
	case token != "" && file != "":
		return "", control.Usage("give --token or --token-file, not both")
	case token == "" && file == "":
		return "", control.Usage("a token is needed: run picket token create on a node of the cluster, and give it with --token or --token-file")
	case file == "":
		return strings.TrimSpace(token), nil
	}
	in := r.in
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return "", control.Usage("the token file cannot be read: %v", err)
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, 4096))
	if err != nil {
		return "", control.Usage("the token file cannot be read: %v", err)
	}
	if token = strings.TrimSpace(string(b)); token == "" {
		return "", control.Usage("the token file %s is empty", file)
	}
	return token, nil
}

func (r *runner) daemon() *cobra.Command {
	var level string
	c := &cobra.Command{
		Use:     "daemon",
		GroupID: "setup",
		Short:   "Run this node (the systemd unit does this)",
		Long: `Runs this node in the foreground until SIGTERM or SIGINT, and then stops it cleanly:
what it owns is stopped in order and handed over, without a fence.`,
		Args: exactly(),
		RunE: act(func(cmd *cobra.Command, _ []string) error {
			switch level {
			case "", "debug", "info", "warn", "error":
			default:
				return control.Usage("log level '%s' is not known: use debug, info, warn or error", level)
			}
			if r.hooks.Daemon == nil {
				return control.Usage("this build of picket has no daemon")
			}
			return r.hooks.Daemon(cmd.Context(), config.DaemonOptions{Paths: r.paths, LogLevel: level})
		}),
	}
	c.Flags().StringVar(&level, "log-level", "", "debug, info, warn or error: a `LEVEL` (default: as in the node file)")
	return c
}

func (r *runner) token() *cobra.Command {
	var ttl time.Duration
	var asJSON bool
	create := &cobra.Command{
		Use:   "create [--ttl 1h]",
		Short: "Make a token with which one machine may join",
		Long: `Makes a token with which one machine may join, once, before it expires. It is shown
only here: the cluster keeps a hash. Whoever has it may become a node: treat it like a
password.`,
		Args: exactly(),
		RunE: act(func(cmd *cobra.Command, _ []string) error {
			if ttl < time.Minute || ttl > 7*24*time.Hour {
				return control.Usage("a token may live from 1m to 168h, not %v (--ttl)", ttl)
			}
			a, err := r.send(cmd, control.Operation{Kind: control.OpTokenCreate, For: ttl})
			if err != nil {
				return err
			}
			if asJSON {
				return r.json(a)
			}
			if a.JoinCommand != "" {
				r.answer(printable(a.JoinCommand))
			} else {
				r.answer(printable(a.Token))
			}
			if !a.Expires.IsZero() {
				r.say("It works once, until %s.", a.Expires.UTC().Format(time.RFC3339))
			}
			return nil
		}),
	}
	create.Flags().DurationVar(&ttl, "ttl", config.DefaultTokenTTL, "how long it works, a `TIME` from 1m to 168h")
	jsonFlag(create, &asJSON)
	return parent("token", "setup", "Let another machine join", "", create)
}

func renderInit(cluster, node string, res config.InitResult) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Cluster %s was made, with %s as its first node.\n\n", cluster, node)
	fmt.Fprintf(&b, "cluster id      %s\nCA fingerprint  %s\n", printable(res.ClusterID), printable(res.Fingerprint))
	if res.JoinCommand != "" {
		fmt.Fprintf(&b, "\nOn the next node, with its own name and addresses, run:\n\n  %s\n", printable(res.JoinCommand))
	}
	notes(&b, res.Notes)
	return b.String()
}

func renderJoin(node, role string, res config.JoinResult) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s has joined cluster %s as a %s.\n\ncluster id      %s\n", node, printable(res.Cluster), role, printable(res.ClusterID))
	if !res.Voter {
		b.WriteString("vote            not yet: it gets one when its daemon is up and has caught up\n")
	}
	notes(&b, res.Notes)
	return b.String()
}

func notes(b *strings.Builder, notes []string) {
	if len(notes) > 0 {
		b.WriteString("\n")
	}
	for _, n := range notes {
		b.WriteString(printable(n) + "\n")
	}
}
