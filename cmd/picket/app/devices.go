package app

import (
	"context"
	"time"

	"github.com/picket-ha/picket/consensus/core"
	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/consensus/plan"
	"github.com/picket-ha/picket/consensus/state"
	"github.com/picket-ha/picket/fencing"
	"github.com/picket-ha/picket/fencing/ipmi"
)

// checkTimeout bounds one check of one fence device.
const checkTimeout = 5 * time.Second

// checkDevices verifies, from this node, every fence device that it may have to use: login, identity and
// power status, never a command. A device that failed is checked again sooner.
func (n *Node) checkDevices() error {
	last := map[string]time.Time{}
	ok := map[string]bool{}
	rev := map[string]uint64{}
	for {
		s := n.fsm.State()
		for _, nc := range s.Config.Nodes {
			for _, d := range nc.Fence {
				key := string(nc.Name) + "/" + d.ID
				every := n.opt.CheckDevices
				if !ok[key] {
					every = min(every, 5*time.Second)
				}
				if nc.Name == n.self || d.IPMI == nil || s.Node(nc.Name) == nil || (rev[key] == s.Revision && time.Since(last[key]) < every) {
					continue
				}
				f := n.checkDevice(nc.Name, d)
				last[key], ok[key], rev[key] = time.Now(), f.OK, s.Revision
				n.driver.Post(core.DeviceChecked{Fact: f})
			}
		}
		select {
		case <-n.ctx.Done():
			return nil
		case <-time.After(250 * time.Millisecond):
		}
	}
}

func (n *Node) checkDevice(node ids.Node, d state.FenceDevice) plan.DeviceFact {
	ctx, cancel := context.WithTimeout(n.ctx, checkTimeout)
	defer cancel()
	dev := ipmi.New(node, *d.IPMI, func() string {
		s := n.fsm.State()
		if x := s.Node(node); x != nil {
			return x.UUID
		}
		return ""
	}, n.log)
	st, err := dev.Verify(ctx)
	_ = dev.Close(ctx)
	f := plan.DeviceFact{Node: node, Device: d.ID, OK: err == nil, Identity: string(st.Identity)}
	if err != nil {
		f.Detail = fencing.ClipDetail(err.Error())
	} else if st.Identity == fencing.IdentityUnproven {
		f.OK, f.Detail = false, "it answers, but does not prove that it powers "+string(node)+": set identity: trusted if you are sure"
	}
	return f
}
