package source

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/pagurus-project/pagurus/migrate"
	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/migrate/resource"
	"github.com/pagurus-project/pagurus/migrate/wire"
	"github.com/pagurus-project/pagurus/pageserver"
)

// ErrDowntime says that a strict migration was given up, before the freeze or in it.
var ErrDowntime = errors.New("the downtime cannot be kept")

const (
	// greetingTimeout is how long the destination may take to welcome us.
	greetingTimeout = 10 * time.Second
	// progressEvery is how often Events hears of progress.
	progressEvery = 250 * time.Millisecond
	// tries is how often the freeze is tried when what stands in its way is
	// said to pass.
	tries = 4
)

// Run moves the process as far as the source can: when it returns without an
// error, the process is frozen, the destination prepared and, unless the
// migration is a rehearsal, the promise given. After an error Resume must be
// called. The connection is the page connection to the destination; Run reads
// all of its other direction.
func (m *Migration) Run(ctx context.Context, conn net.Conn, events Events) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.recovered || m.conn != nil || m.over {
		return errors.New("the migration has run already")
	}
	m.conn = conn
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	heard, err := m.greet(ctx, fail)
	if err != nil {
		return err
	}
	err = m.run(ctx, heard, events)
	if err != nil && ctx.Err() != nil && errors.Is(err, context.Canceled) {
		err = context.Cause(ctx) // rather than what came of it
	}
	fail(nil)
	heard.stop()
	if err == nil && m.promised && (m.hold != nil || m.plan.Forward != nil) {
		m.host.background.Go(func() { m.followDestination(conn) })
	}
	return err
}

// greet says which migration the connection is about, measures the round trip
// and begins to listen.
func (m *Migration) greet(ctx context.Context, fail context.CancelCauseFunc) (*replies, error) {
	start := time.Now()
	if err := m.conn.SetDeadline(start.Add(greetingTimeout)); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = m.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	err := wire.WriteHello(m.conn, wire.Hello{Migration: m.config.Migration, Epoch: m.config.Epoch, Token: m.config.Token})
	if err != nil {
		return nil, fmt.Errorf("greeting the destination: %w", err)
	}
	reply, err := wire.ReadReply(m.conn)
	switch {
	case err != nil:
		return nil, fmt.Errorf("waiting for the destination's welcome: %w", err)
	case reply.Kind == wire.Failed:
		return nil, &RefusedError{reply.Reason}
	case reply.Kind != wire.Welcome:
		return nil, fmt.Errorf("the destination says %q instead of %q", reply.Kind, wire.Welcome)
	}
	m.trip = time.Since(start)
	if !stop() {
		return nil, context.Cause(ctx)
	}
	if err := m.conn.SetDeadline(time.Time{}); err != nil {
		return nil, err
	}
	return listen(ctx, m.conn, fail), nil
}

func (m *Migration) run(ctx context.Context, heard *replies, events Events) error {
	codec, err := pageserver.ParseCodec(string(m.config.Options.Compress))
	if err != nil {
		return err
	}
	m.sender = pageserver.NewSender(m.conn, m.memory, pageserver.SenderOptions{Codec: codec, LimitBytes: m.config.Options.BandwidthBytes})
	start := time.Now()
	if err := m.enclose(); err != nil {
		return err
	}
	if err := m.checkAgain(); err != nil {
		return err
	}
	if err := m.track(ctx); err != nil {
		return err
	}
	if err := m.prepareHold(); err != nil {
		return err
	}
	var n uint32
	for try := 1; ; try++ {
		if err := m.prepareStaying(); err != nil {
			return err
		}
		const passes = 3 // there may be such connections all the time
		for long, pass := true, 0; long && pass < passes; pass++ {
			if n, err = m.precopy(ctx, heard, events, n); err != nil {
				return err
			}
			if long, err = m.awaitClosed(ctx); err != nil {
				return err
			}
		}
		m.spent(migrate.PhasePrecopy, time.Since(start))
		err = m.freeze(ctx, heard, events, n)
		if !errors.Is(err, resource.ErrTryAgain) || try == tries {
			break
		}
		err = m.unfreeze(ctx)
		events.Unfrozen()
		if err != nil {
			return err
		}
		start = time.Now()
	}
	if err != nil {
		return err
	}
	if m.config.Options.Rehearse {
		return nil
	}
	if err := events.Promise(m.Measured()); err != nil {
		return fmt.Errorf("giving the promise: %w", err)
	}
	m.promised = true
	return nil
}

// precopy makes rounds, the first of them numbered n, until it is time to
// freeze, and returns the number of the next one.
func (m *Migration) precopy(ctx context.Context, heard *replies, events Events, n uint32) (uint32, error) {
	stopTelling := m.tellProgress(events)
	defer stopTelling()
	for {
		if err := m.round(ctx, heard, n); err != nil {
			return n, err
		}
		n++
		m.gauges.mu.Lock()
		now := time.Now()
		verdict, why := m.gauges.pace.next(now)
		left, _ := m.gauges.pace.estimate(now)
		m.gauges.mu.Unlock()
		switch {
		case verdict == verdictFreeze:
			return n, nil
		case verdict == verdictFutile && m.config.Options.Strict:
			return n, fmt.Errorf("%w: %s; frozen now it would stand still for %v, and %v are allowed", ErrDowntime, why, left.Round(time.Millisecond), m.config.Options.MaxDowntime)
		case verdict == verdictFutile:
			return n, nil
		}
	}
}

// round carries what has changed while the process runs.
func (m *Migration) round(ctx context.Context, heard *replies, n uint32) error {
	if err := m.checkTree(); err != nil {
		return err
	}
	s, err := m.surveyRunning(ctx, n)
	if err != nil {
		return err
	}
	if err := m.blocked(); err != nil {
		return err
	}
	start := time.Now()
	stats, err := m.send(ctx, s, n, false)
	if err != nil {
		return err
	}
	if err := m.sender.Message(ctx, wire.KindBarrier, wire.EncodeBarrier(n)); err != nil {
		return err
	}
	if _, err := heard.await(ctx, wire.Placed, n); err != nil {
		return err
	}
	took := time.Since(start)
	m.gauges.mu.Lock()
	defer m.gauges.mu.Unlock()
	m.gauges.pace.sent(stats.Bytes, max(took-m.trip, 0))
	m.noteRoundLocked(stats, took, false)
	return nil
}

// surveyRunning looks at the running tree. A tracker that cannot look at a
// moving target has it stopped for that.
func (m *Migration) surveyRunning(ctx context.Context, n uint32) (*survey, error) {
	layout, err := m.dump.Layout(ctx, int(n), m.pids())
	if err != nil {
		return nil, errors.Join(m.checkTree(), err)
	}
	for i, p := range m.processes {
		state := &layout.Processes[i]
		m.memory.processes[pageserver.SpaceID(state.Space)] = p
		// Shared memory with nothing behind it was unmapped while it was looked at.
		state.Mappings = slices.DeleteFunc(state.Mappings, func(mapping image.Mapping) bool {
			return mapping.Shared && mapping.Backing == image.BackingAnonymous
		})
	}
	at := time.Now()
	collect := func() error { return m.collect(ctx, layout, false) }
	if slices.ContainsFunc(m.processes, func(p *process) bool { return p.tracker.NeedsStop() }) {
		err = m.standing(ctx, collect)
	} else {
		err = collect()
	}
	var s *survey
	if err == nil {
		s, err = m.survey(ctx, layout, at, false)
	}
	if err != nil {
		return nil, errors.Join(m.checkTree(), err)
	}
	m.gauges.mu.Lock()
	defer m.gauges.mu.Unlock()
	m.gauges.pace.looking(s.at, s.pages*image.PageSize)
	return s, nil
}

// send carries a survey's layout and pages.
func (m *Migration) send(ctx context.Context, s *survey, n uint32, last bool) (pageserver.RoundStats, error) {
	m.gauges.mu.Lock()
	m.gauges.round, m.gauges.pages = n, s.pages
	m.gauges.mu.Unlock()
	layout, err := s.layout.Encode()
	if err != nil {
		return pageserver.RoundStats{}, fmt.Errorf("encoding the layout: %w", err)
	}
	if err := m.sender.Message(ctx, wire.KindLayout, layout); err != nil {
		return pageserver.RoundStats{}, err
	}
	return m.sender.Round(ctx, pageserver.RoundSpec{
		N: n, Runs: slices.Values(s.runs), Drops: slices.Values(s.drops), Urgent: last,
	})
}

func (m *Migration) noteRoundLocked(stats pageserver.RoundStats, took time.Duration, frozen bool) {
	total := m.sender.Progress().Total
	c := &m.gauges.measured
	c.Bytes, c.WireBytes = total.Bytes, total.WireBytes
	c.Rounds = append(c.Rounds, migrate.Round{
		N: int(stats.N), Pages: stats.Pages, Bytes: stats.Bytes, WireBytes: stats.WireBytes,
		MS: milliseconds(took), Frozen: frozen,
	})
}

// tellProgress tells events of progress until the returned function is called.
func (m *Migration) tellProgress(events Events) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		ticker := time.NewTicker(progressEvery)
		defer ticker.Stop()
		last, at := m.sender.Progress().Total.Bytes, time.Now()
		for {
			select {
			case <-ctx.Done():
				return
			case now := <-ticker.C:
				p := m.progress(now)
				p.RateBytes = float64(p.Bytes-last) / now.Sub(at).Seconds()
				last, at = p.Bytes, now
				events.Progress(p)
			}
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

func (m *Migration) progress(now time.Time) migrate.Progress {
	sent := m.sender.Progress()
	m.gauges.mu.Lock()
	defer m.gauges.mu.Unlock()
	left, _ := m.gauges.pace.estimate(now)
	inRound := sent.Round.Pages
	if sent.N != m.gauges.round { // the sender has not begun with it
		inRound = 0
	}
	return migrate.Progress{
		Round: int(m.gauges.round), RoundPages: m.gauges.pages, RoundSent: inRound,
		Bytes: sent.Total.Bytes, WireBytes: sent.Total.WireBytes,
		DirtyRateBytes: m.gauges.pace.dirtyRate(), EstimateMS: milliseconds(left),
	}
}
