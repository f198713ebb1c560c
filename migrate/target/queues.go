package target

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/migrate/resource"
	"github.com/pagurus-project/pagurus/migrate/wire"
	"github.com/pagurus-project/pagurus/tcprepair"
	"github.com/pagurus-project/pagurus/tcprepair/acceptqueue"
)

// queuesTake is how long the source may take to say what waits in its listeners: clients of
// all others wait meanwhile.
const queuesTake = time.Second

// prepareQueues gets ready for as many connections that wait in the source's listeners.
func (s *Shell) prepareQueues(waiting int) (err error) {
	if waiting == 0 || s.filler != nil {
		return nil
	}
	if s.filler, err = acceptqueue.NewFiller(); err != nil {
		return fmt.Errorf("preparing for %d connections that wait to be accepted: %w", waiting, err)
	}
	return nil
}

// takeQueues asks the source for them, and puts them into the listeners here. The process
// stands still. What is lost is returned.
func (s *Shell) takeQueues() (lost []error) {
	waiting := s.arrival.Waiting
	if waiting == 0 {
		return nil
	}
	s.arrival.Waiting = 0 // the source says it once
	queues, err := s.askForQueues()
	if err != nil {
		return []error{fmt.Errorf("%d connections that waited to be accepted: %w", waiting, err)}
	}
	for _, text := range queues.Lost {
		lost = append(lost, errors.New(text))
	}
	queues.Queues = slices.DeleteFunc(queues.Queues, func(q image.AcceptQueue) bool { return !slices.Contains(s.plan.PIDs, q.PID) })
	for i := range queues.Queues { // at other addresses there is nothing for a source to give
		q := &queues.Queues[i]
		q.Connections = slices.DeleteFunc(q.Connections, func(c *tcprepair.Socket) bool {
			return !resource.IsAmong(s.config.Inventory.Addresses, c.Local.Addr())
		})
	}
	return append(lost, resource.FillListeners(s.filler, queues)...)
}

func (s *Shell) askForQueues() (*image.AcceptQueues, error) {
	if s.conn == nil || s.filler == nil {
		return nil, errors.New("the agent was lost that was to take them")
	}
	if err := s.conn.SetWriteDeadline(time.Now().Add(queuesTake)); err != nil {
		return nil, err
	}
	if err := wire.WriteReply(s.conn, wire.Reply{Kind: wire.Accepting}); err != nil {
		return nil, err
	}
	select {
	case queues := <-s.queues:
		return queues, nil
	case <-time.After(queuesTake):
		return nil, errors.New("the source has not sent them in time")
	}
}
