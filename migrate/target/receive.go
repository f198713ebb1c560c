package target

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/migrate/resource"
	"github.com/pagurus-project/pagurus/migrate/wire"
	"github.com/pagurus-project/pagurus/pageserver"
)

// Receive takes a process in, from a connection whose greeting has been read:
//
//  1. layouts and rounds, each put in its place while the source runs;
//  2. the state: everything else is built, the shell frozen and let go of;
//  3. prepared is called, and the source told.
//
// After an error Release must be called. What the source sends after
// COMMIT is taken in the background, until the connection ends.
func (s *Shell) Receive(ctx context.Context, conn net.Conn, prepared func() error) error {
	s.conn = conn
	receiver := pageserver.NewReceiver(conn, s.memory, pageserver.ReceiverOptions{})
	err := s.receive(ctx, receiver, prepared)
	if err != nil {
		// The source is told why, if it still listens.
		_ = conn.SetWriteDeadline(time.Now().Add(2 * time.Second))
		_ = wire.WriteReply(conn, wire.Reply{Kind: wire.Failed, Reason: err.Error()})
		return err
	}
	s.signals.Go(func() { s.takeLate(receiver) })
	return nil
}

func (s *Shell) receive(ctx context.Context, receiver *pageserver.Receiver, prepared func() error) error {
	if err := wire.WriteReply(s.conn, wire.Reply{Kind: wire.Welcome}); err != nil {
		return err
	}
	for {
		m, err := receiver.Next(ctx)
		if errors.Is(err, io.EOF) {
			return errors.New("the source has ended the page stream")
		}
		if err != nil {
			return fmt.Errorf("receiving pages: %w", err)
		}
		// A message comes when everything before it is in its place.
		if err := s.memory.settle(ctx); err != nil {
			return err
		}
		switch m.Kind {
		case wire.KindLayout:
			l, err := image.DecodeLayout(m.Payload)
			if err != nil {
				return err
			}
			if err := s.applyLayout(ctx, l); err != nil {
				return fmt.Errorf("making the mappings of round %d: %w", l.Round, err)
			}
		case wire.KindBarrier:
			round, err := wire.DecodeBarrier(m.Payload)
			if err != nil {
				return err
			}
			if err := wire.WriteReply(s.conn, wire.Reply{Kind: wire.Placed, Round: round}); err != nil {
				return err
			}
		case wire.KindState:
			if s.stateReceived.IsZero() { // it may come again
				s.stateReceived = time.Now()
			}
			if done, err := s.prepare(ctx, m.Payload, prepared); done || err != nil {
				return err
			}
		default:
			return fmt.Errorf("message of kind %d at this point", m.Kind)
		}
	}
}

// prepare builds the rest and says so, unless there are pages to be sent again first.
func (s *Shell) prepare(ctx context.Context, payload []byte, prepared func() error) (done bool, err error) {
	m, verify, err := wire.DecodeState(payload)
	if err != nil {
		return false, err
	}
	if verify != nil {
		differing, err := s.compare(ctx, verify)
		if err != nil {
			return false, fmt.Errorf("verifying the memory: %w", err)
		}
		switch {
		case len(differing) == 0:
		case verify.Repair:
			return false, wire.WriteReply(s.conn, wire.Reply{Kind: wire.Differs, Runs: runsOf(differing)})
		default:
			return false, fmt.Errorf("verifying the memory: it differs from the source's within %v and %d other places", differing[0], len(differing)-1)
		}
	}
	if s.arrival, err = resource.ArrivalOf(m, s.config.Migration); err != nil {
		return false, err
	}
	if err := s.arrival.Save(s.arrivalFile()); err != nil {
		return false, err
	}
	var preparing errgroup.Group // which takes about as long
	preparing.Go(func() error { return s.prepareQueues(m.Waiting) })
	err = s.build(ctx, m)
	if err := errors.Join(err, preparing.Wait()); err != nil {
		return false, err
	}
	if len(s.arrival.Names) > 0 { // of which more is known now
		if err := s.arrival.Save(s.arrivalFile()); err != nil {
			return false, err
		}
	}
	var addresses []netip.Addr
	if len(s.arrival.Lodging.Flows) > 0 {
		// Where the source has found it, the network does.
		best, _ := netip.ParseAddrPort(s.conn.LocalAddr().String())
		if addresses, err = resource.HostAddresses(best.Addr().Unmap()); err != nil {
			return false, err
		}
	}
	s.plan.Prepared = true
	if err := s.save(); err != nil {
		return false, err
	}
	if err := prepared(); err != nil {
		return false, err
	}
	s.preparedAt = time.Now()
	return true, wire.WriteReply(s.conn, wire.Reply{Kind: wire.Prepared, Addresses: addresses, Took: int64(s.preparedAt.Sub(s.stateReceived))})
}

func runsOf(list []pageserver.Run) []wire.Run {
	runs := make([]wire.Run, len(list))
	for i, r := range list {
		runs[i] = wire.Run{Space: uint32(r.Space), First: uint64(r.First), Pages: r.Pages}
	}
	return runs
}

// compare returns the pages that are not as the source had them when it was frozen.
func (s *Shell) compare(ctx context.Context, v *wire.Verify) ([]pageserver.Run, error) {
	runs := make([]pageserver.Run, len(v.Runs))
	for i, r := range v.Runs {
		runs[i] = pageserver.Run{Space: pageserver.SpaceID(r.Space), Range: pageserver.Range{First: pageserver.PageNo(r.First), Pages: r.Pages}}
	}
	theirs := make([]pageserver.Digest, len(v.Digests))
	for i, d := range v.Digests {
		theirs[i] = pageserver.Digest(d)
	}
	ours, err := pageserver.DigestChunks(ctx, s.memory, runs, v.ChunkPages)
	if err != nil {
		return nil, err
	}
	return pageserver.Differing(runs, v.ChunkPages, theirs, ours)
}

// takeLate takes what the source sends after COMMIT: what waits in its listeners, and, once
// the process runs here, the signals that reached its copy after it was dumped.
func (s *Shell) takeLate(receiver *pageserver.Receiver) {
	defer s.conn.Close()
	for {
		m, err := receiver.Next(context.Background())
		if err != nil {
			return
		}
		switch m.Kind {
		case wire.KindQueues:
			queues, err := image.DecodeAcceptQueues(m.Payload)
			if err != nil {
				return
			}
			select {
			case s.queues <- queues:
			case <-s.ran: // nobody waits for them any more
			}
		case wire.KindSignals:
			signals, err := wire.DecodeSignals(m.Payload)
			if err != nil {
				return
			}
			<-s.ran
			if s.gone {
				return
			}
			s.deliver(signals)
		default:
			return
		}
	}
}

func (s *Shell) deliver(signals *wire.Signals) {
	for _, p := range signals.Processes {
		if !slices.Contains(s.plan.PIDs, p.PID) {
			continue
		}
		for _, info := range p.Shared {
			deliver(p.PID, 0, info)
		}
		for _, t := range p.Threads {
			for _, info := range t.Pending {
				deliver(p.PID, t.TID, info)
			}
		}
	}
}

// deliver sends one signal on. A process cannot be told in another's name that
// the kernel or kill(2) sent it (rt_sigqueueinfo(2)); then the number has to do.
// Whoever has exited meanwhile misses nothing.
func deliver(pid, tid int, info []byte) {
	number := unix.Signal(uint32(info[0]) | uint32(info[1])<<8)
	var err error
	if tid == 0 {
		err = queueInfo(unix.SYS_RT_SIGQUEUEINFO, info, uintptr(pid), uintptr(number))
	} else {
		err = queueInfo(unix.SYS_RT_TGSIGQUEUEINFO, info, uintptr(pid), uintptr(tid), uintptr(number))
	}
	switch {
	case !errors.Is(err, unix.EPERM):
	case tid == 0:
		_ = unix.Kill(pid, number)
	default:
		_ = unix.Tgkill(pid, tid, number)
	}
}
