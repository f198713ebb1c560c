package resource

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/tcprepair"
	"github.com/pagurus-project/pagurus/tcprepair/acceptqueue"
)

// What waits in listeners to be accepted stays there until the decision, as it could not be
// put back from a host that dies:
//
//	source                                          destination
//	  image: how many wait
//	                                                  COMMIT; sockets live
//	  ◀──────────────────────────────────── "accepting", and it waits
//	DrainListeners ── image.AcceptQueues ──▶ FillListeners
//	                                                  it runs

// CanFillListeners says why this kernel cannot do that; nil: it can.
var CanFillListeners = sync.OnceValue(acceptqueue.Supported)

// canWait reports an address of a listener of which all that waits can be handed over.
func (d *TreeDump) canWait(a netip.Addr) bool { return d.isAlong(a) && CanFillListeners() == nil }

// DrainListeners accepts what waits in the listeners of an image at the source, at addresses that
// go along, where the process never runs again.
func DrainListeners(m *image.Image) *image.AcceptQueues {
	queues := &image.AcceptQueues{}
	eachFile(m, func(pid, fd int, f *image.File) {
		if f.TCP == nil || f.TCP.State != tcprepair.Listen || !f.TCP.Local.Addr().Unmap().IsUnspecified() && !comesAlong(m, f) {
			return
		}
		own, err := borrow(pid, fd)
		if err != nil {
			queues.Lost = append(queues.Lost, fmt.Sprintf("what waits at %v: %v", f.TCP.Local, err))
			return
		}
		defer unix.Close(own)
		waiting, errs := acceptqueue.Drain(own)
		for _, err := range errs {
			queues.Lost = append(queues.Lost, err.Error())
		}
		// Others came while everything was held, to an address that stays.
		waiting = slices.DeleteFunc(waiting, func(s *tcprepair.Socket) bool { return !IsAmong(m.Addresses, s.Local.Addr()) })
		if len(waiting) > 0 {
			queues.Queues = append(queues.Queues, image.AcceptQueue{PID: pid, FD: fd, Connections: waiting})
		}
	})
	return queues
}

// fillFor bounds how long a process stands still for that.
const fillFor = time.Second

// FillListeners puts connections into the queues of listeners of processes that stand still on
// this host, which has their addresses. What is lost is returned.
func FillListeners(filler *acceptqueue.Filler, queues *image.AcceptQueues) (lost []error) {
	until := time.Now().Add(fillFor)
	for _, q := range queues.Queues {
		own, err := borrow(q.PID, q.FD)
		if err != nil {
			lost = append(lost, fmt.Errorf("%d connections that wait to be accepted: %w", len(q.Connections), err))
			continue
		}
		for i, s := range q.Connections {
			if time.Now().After(until) {
				lost = append(lost, fmt.Errorf("%d connections that wait to be accepted: it takes too long", len(q.Connections)-i))
				break
			}
			if err := filler.Put(own, s); err != nil {
				lost = append(lost, fmt.Errorf("the connection of %v and %v, which waits to be accepted: %w", s.Local, s.Remote, err))
			}
		}
		unix.Close(own)
	}
	return lost
}
