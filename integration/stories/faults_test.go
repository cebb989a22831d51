package stories

import (
	"strings"
	"testing"
	"time"

	"github.com/picket-ha/picket/integration/bmcsim"
	"github.com/picket-ha/picket/integration/check"
	"github.com/picket-ha/picket/integration/netlab"
	"github.com/picket-ha/picket/integration/netlab/cluster"
)

// quietly is how long a story watches for what must not happen. It is longer than any detection.
const quietly = 4 * time.Second

// liar bounds the wait for what comes after an attempt against a BMC that says OK and does nothing:
// picket polls it for as long as a slow machine may take to go off.
const liar = 60 * time.Second

func running(st cluster.Status) bool { return st.Group(cluster.Web).State == "running" }
func held(st cluster.Status) bool    { return st.Group(cluster.Web).State == "held" }

// Whoever owned nothing is not fenced, however it falls silent, and nothing moves.
func TestNobodyFencesTheIdle(t *testing.T) {
	w := form(t)
	lose := func(what string, do func(*story, string)) {
		w.story(what, func(s *story) {
			n := s.others()[0]
			do(s, n)
			s.await(n+" is lost", func(st cluster.Status) bool { return st.NodeNamed(n).State == "lost" })
			s.unmoved(s.stays("the service runs on", quietly, running))
			s.noFence()
			s.noOutage()
		})
	}
	lose("kill", func(s *story, n string) { s.must(s.Lab.Kill(s.ctx, n)) })
	lose("cut", func(s *story, n string) { s.split(n, netlab.Both) })
	lose("power", func(s *story, n string) { s.must(s.Lab.Power(s.ctx, n, false)) })
	lose("cord", func(s *story, n string) { s.must(s.Lab.Unplug(s.ctx, n)) })
	w.story("leader-lost", func(s *story) {
		// The leader shall own nothing, so that its loss is the loss of a leader alone.
		for range 5 {
			if s.before.Leader != s.owner {
				break
			}
			s.picket(s.owner, "group", "move", cluster.Web, "--to", s.others()[0])
			s.await("the group has moved", func(st cluster.Status) bool { return running(st) && st.Group(cluster.Web).Owner != s.owner })
			s.before, s.from = s.well(), check.Now()
			s.owner = s.before.Group(cluster.Web).Owner
		}
		leader := s.before.Leader
		if leader == s.owner {
			s.Fatalf("the leadership follows the group: %s", s.before.Line())
		}
		s.must(s.Lab.Kill(s.ctx, leader))
		st := s.await("another leads", func(st cluster.Status) bool { return st.Leader != leader && st.Leader != "" && running(st) })
		if st.Term <= s.before.Term {
			s.Errorf("term %d after %d", st.Term, s.before.Term)
		}
		s.unmoved(s.stays("the service runs on", quietly, running))
		s.noFence()
		s.noOutage()
	})
}

// Any one cable of any node: no election, no move, no fence.
func TestOneCableOfAnyNode(t *testing.T) {
	w := form(t)
	for _, link := range []string{netlab.LinkPublic, netlab.LinkHeartbeat} {
		for _, n := range w.Nodes {
			w.story(n+"-"+link, func(s *story) {
				s.cut(n, netlab.Both, link)
				s.await("the dead link is shown", func(st cluster.Status) bool { _, ok := st.Cable(); return ok })
				st := s.stays("the service runs on", 1500*time.Millisecond, running)
				s.must(s.Lab.Heal(s.ctx, "", ""))
				st = s.well()
				if st.Term != s.before.Term || st.Leader != s.before.Leader {
					s.Errorf("term %d, leader %s: an election; before: %d, %s", st.Term, st.Leader, s.before.Term, s.before.Leader)
				}
				s.unmoved(st)
				s.noFence()
				if n != s.owner || link != netlab.LinkPublic { // else the client was cut off, not the service
					s.noOutage()
				}
			})
		}
	}
}

// A BMC that lies, sleeps or belongs to another machine frees nothing.
func TestLyingBMC(t *testing.T) {
	w := form(t)
	w.story("says-ok-and-stays-on", func(s *story) {
		s.must(s.Lab.BMC(s.ctx, s.owner, bmcsim.Faults{LieOK: true}))
		s.split(s.owner, netlab.Both)
		s.awaitIn(liar, "the group is held", func(st cluster.Status) bool { _, ok := st.Has("FENCE_UNPROVEN", s.owner); return ok && held(st) })
		s.stays("the group is held", quietly, held)
		powers, err := s.PowerCommands(s.ctx, s.from)
		s.must(err)
		if len(powers) == 0 || !powers[0].Lied {
			s.Errorf("the BMC never answered OK to a command it did not carry out: %+v", powers)
		}
		s.must(s.Lab.BMC(s.ctx, s.owner, bmcsim.Faults{}))
		s.awaitIn(liar, "it moves when the BMC tells the truth", func(st cluster.Status) bool { return running(st) && st.Group(cluster.Web).Owner != s.owner })
	})
	w.story("says-off-while-the-node-talks", func(s *story) {
		// Deaf, so that it does not hear that it is condemned and does not reset itself: it talks on.
		s.must(s.Lab.BMC(s.ctx, s.owner, bmcsim.Faults{LieOff: true}))
		s.split(s.owner, netlab.In)
		s.await("FENCE_CONTRADICTED", func(st cluster.Status) bool { _, ok := st.Has("FENCE_CONTRADICTED", s.owner); return ok && held(st) })
		s.stays("the group is held", quietly, held)
		if boot, err := s.Lab.Node(s.ctx, s.owner); err != nil || boot.Boot != s.before.NodeNamed(s.owner).BootID {
			s.Errorf("%s should still be on its old boot: %+v, %v", s.owner, boot, err)
		}
	})
	w.story("operator-fence-against-a-lie", func(s *story) {
		s.must(s.Lab.BMC(s.ctx, s.owner, bmcsim.Faults{LieOff: true}))
		s.picket(s.others()[0], "fence", s.owner, "--reason", "a test")
		st := s.await("it moves once the condemned node is dead", func(st cluster.Status) bool { return running(st) && st.Group(cluster.Web).Owner != s.owner })
		if n, err := s.Lab.Node(s.ctx, s.owner); err != nil || n.Boot == s.before.NodeNamed(s.owner).BootID {
			s.Errorf("%s moved away from a boot that still lives: %+v, %v (%s)", cluster.Web, n, err, st.Line())
		}
	})
	w.story("another-machines-bmc", func(s *story) {
		s.must(s.Lab.BMC(s.ctx, s.owner, bmcsim.Faults{WrongGUID: true}))
		s.split(s.owner, netlab.Both)
		s.await("the group is held", func(st cluster.Status) bool {
			_, ok := st.Has("FENCE_UNPROVEN", s.owner)
			_, also := st.Has("FENCE_IDENTITY", s.owner)
			return (ok || also) && held(st)
		})
		st := s.stays("the group is held", quietly, held)
		if c, _ := st.Has("FENCE_UNPROVEN", s.owner); !strings.Contains(c.Text, "is of machine") {
			s.Errorf("status does not name what is wrong: %+v", st.Conditions)
		}
		s.noPower(s.owner)
	})
	w.story("refuses-the-password", func(s *story) {
		s.must(s.Lab.BMC(s.ctx, s.owner, bmcsim.Faults{RejectLogin: true}))
		s.split(s.owner, netlab.Both)
		s.await("the group is held", func(st cluster.Status) bool { _, ok := st.Has("FENCE_UNPROVEN", s.owner); return ok && held(st) })
		s.noPower(s.owner)
	})
}

// Partitions: whole, one-way, of everybody.
func TestPartitions(t *testing.T) {
	w := form(t)
	for _, d := range []netlab.Direction{netlab.In, netlab.Out} {
		w.story("owner-one-way-"+string(d), func(s *story) {
			s.split(s.owner, d)
			s.await("the service runs on another node", func(st cluster.Status) bool { return running(st) && st.Group(cluster.Web).Owner != s.owner })
			if list := s.newFences(); len(list) != 1 || list[0].Node != s.owner {
				s.Errorf("fences: %+v", list)
			}
			powers, err := s.PowerCommands(s.ctx, s.from)
			s.must(err)
			for _, p := range powers {
				if p.From == s.owner {
					s.Errorf("the cut node, without quorum and with its management cable whole, sent %+v", p)
				}
			}
		})
	}
	w.story("everybody-alone", func(s *story) {
		for _, n := range s.Nodes {
			s.split(n, netlab.Both)
		}
		// Nobody has quorum: the owner gives the address up by itself, and nobody shoots.
		s.must(cluster.Until(s.ctx, act, func() (string, error) {
			out, err := s.Lab.Run(s.ctx, s.owner, "ip", "-br", "-4", "addr", "show", "dev", "eth0")
			if strings.Contains(out.Stdout, cluster.VIP+"/") {
				return s.owner + " still has the address", err
			}
			return "", err
		}))
		s.noPower("")
		for _, n := range s.Nodes {
			st, err := s.StatusOf(s.ctx, n)
			s.must(err)
			if st.Quorum.OK || st.State != "no-quorum" {
				s.Errorf("%s says: %s", n, st.Line())
			}
		}
		s.must(s.Lab.Heal(s.ctx, "", ""))
		s.well()
		s.must(s.Answers(s.ctx, act))
	})
}

// Ends and beginnings of daemons and nodes.
func TestDaemonsComeAndGo(t *testing.T) {
	w := form(t)
	w.story("carrier", func(s *story) {
		s.must(s.Lab.CutCarrier(s.ctx, s.owner, netlab.LinkPublic))
		s.await("it runs on another node", func(st cluster.Status) bool { return running(st) && st.Group(cluster.Web).Owner != s.owner })
		s.noFence()
		s.must(s.Answers(s.ctx, act))
		g, err := s.Outage(s.ctx, s.from, check.Now())
		s.must(err)
		if g.Length() > 3*time.Second { // it is well under a second on an idle machine; a monitor is 5 s away
			s.Errorf("a pulled cable cost the client %s", g.Length())
		}
		s.Logf("outage %d ms; why: %s", g.Length().Milliseconds(), s.picket(s.others()[0], "why", cluster.Web))
		s.must(s.Lab.Heal(s.ctx, "", ""))
		s.await("status says that it failed there, until a cleanup", func(st cluster.Status) bool {
			_, ok := st.Has("FAILED_HERE", cluster.Web)
			return ok
		})
		s.picket(s.others()[0], "group", "cleanup", cluster.Web)
		s.well()
		s.Logf("after: %s", s.picket(s.others()[0], "why", cluster.Web))
	})
	w.story("pause", func(s *story) {
		s.must(s.Lab.Pause(s.ctx, s.owner))
		begin := time.Now()
		s.must(cluster.Until(s.ctx, act, func() (string, error) {
			if time.Since(begin) < 3*time.Second {
				return "paused for less than 3 s", nil
			}
			return "", nil
		}))
		_ = s.Lab.Resume(s.ctx, s.owner) // it fails when the node was fenced meanwhile, as it may be
		st := s.well()
		if g := st.Group(cluster.Web); g.Owner == s.owner && g.Epoch == s.before.Group(cluster.Web).Epoch {
			s.Errorf("a daemon that slept for 3 s kept its epoch: %s", st.Line())
		}
	})
	w.story("sigterm-of-all", func(s *story) {
		for _, n := range s.Nodes {
			s.must(s.Lab.StopDaemon(s.ctx, n))
		}
		for _, n := range s.Nodes {
			out, err := s.Lab.Run(s.ctx, n, "ip", "-br", "-4", "addr")
			s.must(err)
			if strings.Contains(out.Stdout, cluster.VIP+"/") {
				s.Errorf("%s still has the address after a clean stop", n)
			}
		}
		for _, n := range s.Nodes {
			s.must(s.Lab.StartDaemon(s.ctx, n))
		}
		s.well()
		s.noFence()
	})
	w.story("power-cut-of-all", func(s *story) {
		for _, n := range s.Nodes {
			s.must(s.Lab.Power(s.ctx, n, false))
		}
		for _, n := range s.Nodes {
			s.must(s.Lab.Power(s.ctx, n, true))
		}
		s.well()
		s.must(s.Answers(s.ctx, act))
		s.noPower("")
	})
	w.story("kill-of-all", func(s *story) {
		for _, n := range s.Nodes {
			s.must(s.Lab.Kill(s.ctx, n))
		}
		for _, n := range s.Nodes {
			s.must(s.Lab.StartDaemon(s.ctx, n))
		}
		s.well()
		s.must(s.Answers(s.ctx, act))
	})
}

// Another host has the service address: nobody takes it, and the operator is told who has it.
func TestAddressConflict(t *testing.T) {
	w := form(t)
	w.story("another-host-has-it", func(s *story) {
		run := func(argv ...string) string {
			out, err := s.Lab.Run(s.ctx, netlab.Client, argv...)
			s.must(err)
			if out.Code != 0 {
				s.Fatalf("%v: %s", argv, out.Stderr)
			}
			return out.Stdout
		}
		s.picket(s.owner, "group", "stop", cluster.Web)
		s.await("stopped", func(st cluster.Status) bool { return st.Group(cluster.Web).State == "stopped" })
		run("ip", "addr", "add", cluster.VIP+"/32", "dev", "eth0")
		mac := strings.TrimSpace(run("cat", "/sys/class/net/eth0/address"))
		s.picket(s.owner, "group", "start", cluster.Web)
		st := s.await("the group has failed", func(st cluster.Status) bool { return st.Group(cluster.Web).State == "failed" })
		if g := st.Group(cluster.Web); !strings.Contains(g.Reason.Text, mac) || g.Owner != "" {
			s.Errorf("the reason does not name %s: %+v", mac, g)
		}
		run("ip", "addr", "del", cluster.VIP+"/32", "dev", "eth0")
		s.picket(s.owner, "group", "start", cluster.Web)
		s.well()
		s.noFence()
	})
}
