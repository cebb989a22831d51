package stories

import (
	"fmt"
	"testing"
	"time"

	"github.com/picket-ha/picket/integration/netlab/cluster"
)

// The scenes of the demonstration, each as often as asked for, on one cluster: they must also hold
// after one another. A held group is watched for 10 s.
func TestScenes(t *testing.T) {
	w := form(t)
	for i := range shared.repeat {
		for _, sc := range cluster.Scenes() {
			w.scene(fmt.Sprintf("%02d/%s", i+1, sc.Key), sc)
		}
	}
}

// scene plays a scene as a story.
func (w *world) scene(name string, sc cluster.Scene) {
	w.story(name, func(s *story) {
		st := &cluster.Stage{C: s.Cluster, Hold: 10 * time.Second}
		r, err := st.Play(s.ctx, sc)
		for _, c := range r.Checks {
			if !c.OK {
				s.Errorf("did not hold: %s", c.Text)
			}
		}
		s.must(err)
		if len(r.Checks) < 3 {
			s.Errorf("only %d expectations were looked at", len(r.Checks))
		}
		if sc.Key == "switchover" || sc.Key == "one-cable" {
			s.noPower("")
		}
		s.Logf("outage %d ms", r.Outage.Milliseconds())
	})
}

// Two nodes and a witness: the same, and the witness never owns.
func TestWitness(t *testing.T) {
	w := form(t, func(o *cluster.Options) { o.Lab.Witness = "node3" })
	for _, sc := range cluster.Scenes() {
		w.scene(sc.Key, sc)
	}
	w.story("witness-never-owns", func(s *story) {
		s.refused(s.owner, "group", "move", cluster.Web, "--to", "node3")
		for _, n := range []string{"node1", "node2"} {
			s.picket(n, "node", "standby", n)
		}
		s.await("nobody owns the group", func(st cluster.Status) bool {
			g := st.Group(cluster.Web)
			return g.Owner == "" && g.State != "running" && g.State != "stopping"
		})
		st := s.stays("nobody owns the group", 2*time.Second, func(st cluster.Status) bool { return st.Group(cluster.Web).Owner == "" })
		if n := st.NodeNamed("node3"); n.Role != "witness" || !n.Voter {
			s.Errorf("the witness is shown as %+v", n)
		}
		for _, n := range []string{"node1", "node2"} {
			s.picket(n, "node", "online", n)
		}
		s.well()
		s.noFence()
	})
	w.story("witness-lost", func(s *story) {
		s.must(s.Lab.Power(s.ctx, "node3", false))
		s.await("the witness is lost", func(st cluster.Status) bool { return st.NodeNamed("node3").State == "lost" })
		s.unmoved(s.stays("the service runs on", 3*time.Second, func(st cluster.Status) bool { return st.Group(cluster.Web).State == "running" }))
		s.noFence()
		s.noOutage()
	})
}
