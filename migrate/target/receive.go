package target

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/migrate/wire"
	"github.com/pagurus-project/pagurus/pageserver"
)

// Receive takes a process in, from a connection whose greeting has been read:
//
//  1. layouts and rounds, each put in its place while the source runs;
//  2. the state: everything else is built, the shell frozen and let go of;
//  3. prepared is called, and the source told.
//
// After an error Release must be called. Signals that the source forwards after
// COMMIT are taken in the background, until the connection ends.
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
	s.signals.Go(func() { s.takeSignals(receiver) })
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
			s.stateReceived = time.Now()
			return s.prepare(ctx, m.Payload, prepared)
		default:
			return fmt.Errorf("message of kind %d at this point", m.Kind)
		}
	}
}

// prepare builds the rest and says so.
func (s *Shell) prepare(ctx context.Context, payload []byte, prepared func() error) error {
	m, verify, err := wire.DecodeState(payload)
	if err != nil {
		return err
	}
	if err := s.build(ctx, m, verify); err != nil {
		return err
	}
	s.plan.Prepared = true
	if err := s.save(); err != nil {
		return err
	}
	if err := prepared(); err != nil {
		return err
	}
	s.preparedAt = time.Now()
	return wire.WriteReply(s.conn, wire.Reply{Kind: wire.Prepared, Took: int64(s.preparedAt.Sub(s.stateReceived))})
}

// takeSignals delivers the signals that reached the source's copy after it was
// dumped, once the process runs here.
func (s *Shell) takeSignals(receiver *pageserver.Receiver) {
	defer s.conn.Close()
	for {
		m, err := receiver.Next(context.Background())
		if err != nil || m.Kind != wire.KindSignals {
			return
		}
		signals, err := wire.DecodeSignals(m.Payload)
		if err != nil {
			return
		}
		<-s.ran
		if s.gone {
			return
		}
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
