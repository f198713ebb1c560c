package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/pagurus-project/pagurus/migrate"
	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/migrate/wire"
)

// A machine is what a host's kernel would hold: it outlives the agents that
// run on it. Its methods are what the engines of these tests do to processes.
type machine struct {
	t    testing.TB
	name string

	mu        sync.Mutex
	processes map[int]string // running, tracked, frozen or shell
	failing   map[string]int // step: how often it still fails
	gates     map[string]*gate
	blockers  []migrate.Finding
	twice     bool   // a process is frozen twice, and runs between
	killed    bool   // the frozen copy was killed by somebody
	lost      string // what a process that was frozen runs on without
	dead      *gate  // at which an agent was killed
	addresses map[netip.Addr]bool
	known     map[netip.Addr]bool // to the neighbours
	announced []netip.Addr
	silent    map[string][]netip.Addr // by the name of the silence
	passed    []PassedOn
	guests    []Connection
}

// A gate holds an engine up at a step until the test lets it through.
type gate struct {
	reached chan struct{}
	open    chan struct{}
}

func newMachine(t testing.TB, name string, running ...int) *machine {
	m := &machine{
		t: t, name: name, processes: map[int]string{}, failing: map[string]int{}, gates: map[string]*gate{},
		addresses: map[netip.Addr]bool{}, known: map[netip.Addr]bool{}, silent: map[string][]netip.Addr{},
	}
	for _, pid := range running {
		m.processes[pid] = "running"
	}
	return m
}

// gate has the next engine that comes to a step wait there.
func (m *machine) gate(step string) *gate {
	m.mu.Lock()
	defer m.mu.Unlock()
	g := &gate{make(chan struct{}), make(chan struct{})}
	m.gates[step] = g
	return g
}

// errDead stands for an agent's death in the middle of a call of an engine.
var errDead = errors.New("the agent was killed here")

// step is called by the engines before they do something.
func (m *machine) step(ctx context.Context, step string) error {
	m.mu.Lock()
	g := m.gates[step]
	delete(m.gates, step)
	fails := m.failing[step] > 0
	if fails {
		m.failing[step]--
	}
	m.mu.Unlock()
	if g != nil {
		close(g.reached)
		select {
		case <-g.open:
		case <-ctx.Done():
			return ctx.Err()
		}
		m.mu.Lock()
		dead := m.dead == g
		m.mu.Unlock()
		if dead {
			return errDead
		}
	}
	if fails {
		return fmt.Errorf("%s fails", step)
	}
	return nil
}

// turn changes a process, from one of some states.
func (m *machine) turn(pid int, to string, from ...string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if is := m.processes[pid]; !slices.Contains(from, is) {
		return fmt.Errorf("process %d on %s is %q, not %q, so it cannot become %q", pid, m.name, is, from, to)
	}
	if to == "" {
		delete(m.processes, pid)
	} else {
		m.processes[pid] = to
	}
	return nil
}

func (m *machine) is(pid int) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.processes[pid]
}

func (m *machine) must(want map[int]string) {
	m.t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	if !maps.Equal(m.processes, want) {
		m.t.Errorf("%s has %v, want %v", m.name, m.processes, want)
	}
}

// fakeGuests are the machine's connections away from their addresses.
type fakeGuests struct{ machine *machine }

func (f fakeGuests) PassedOn() ([]PassedOn, error) {
	f.machine.mu.Lock()
	defer f.machine.mu.Unlock()
	return slices.Clone(f.machine.passed), nil
}

func (f fakeGuests) Here() ([]Connection, error) {
	f.machine.mu.Lock()
	defer f.machine.mu.Unlock()
	return slices.Clone(f.machine.guests), nil
}

func (f fakeGuests) Addresses(netip.Addr) ([]netip.Addr, error) {
	return []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")}, nil
}

func (f fakeGuests) PassOn(connections []Connection, to []netip.Addr) error {
	if err := f.machine.step(context.Background(), "pass on"); err != nil {
		return err
	}
	f.machine.mu.Lock()
	defer f.machine.mu.Unlock()
	f.machine.passed = []PassedOn{{Connections: connections, To: to}}
	return nil
}

// fakeAddresses are the machine's service addresses.
type fakeAddresses struct{ machine *machine }

func (f fakeAddresses) Check(p netip.Prefix) (string, error) {
	f.machine.mu.Lock()
	defer f.machine.mu.Unlock()
	switch {
	case p.Bits() != 24:
		return "no device of this host is in its network", nil
	case f.machine.addresses[p.Addr()]:
		return "the host has it for itself", nil
	}
	return "", nil
}

func (f fakeAddresses) Put(p netip.Prefix) (bool, error) {
	if err := f.machine.step(context.Background(), "put "+p.Addr().String()); err != nil {
		return false, err
	}
	f.machine.mu.Lock()
	defer f.machine.mu.Unlock()
	put := !f.machine.addresses[p.Addr()]
	f.machine.addresses[p.Addr()] = true
	return put, nil
}

func (f fakeAddresses) Remove(a netip.Addr) error {
	if err := f.machine.step(context.Background(), "remove "+a.String()); err != nil {
		return err
	}
	f.machine.mu.Lock()
	defer f.machine.mu.Unlock()
	delete(f.machine.addresses, a)
	delete(f.machine.known, a)
	return nil
}

func (f fakeAddresses) Announce(p netip.Prefix) error {
	f.machine.mu.Lock()
	defer f.machine.mu.Unlock()
	// Of an address that was put on, the first time counts.
	if f.machine.addresses[p.Addr()] && !f.machine.known[p.Addr()] {
		f.machine.announced = append(f.machine.announced, p.Addr())
		f.machine.known[p.Addr()] = true
	}
	return nil
}

func (f fakeAddresses) Silence(name string, addresses []netip.Addr) error {
	if err := f.machine.step(context.Background(), "silence "+name); err != nil {
		return err
	}
	f.machine.mu.Lock()
	defer f.machine.mu.Unlock()
	if f.machine.silent[name] != nil {
		return errors.New("it is silent already")
	}
	f.machine.silent[name] = addresses
	return nil
}

func (f fakeAddresses) Speak(name string) error {
	if err := f.machine.step(context.Background(), "speak "+name); err != nil {
		return err
	}
	f.machine.mu.Lock()
	defer f.machine.mu.Unlock()
	delete(f.machine.silent, name)
	return nil
}

type fakePlan struct {
	PID       int
	Prepared  bool
	Committed bool
}

func (m *machine) save(save func(json.RawMessage) error, p fakePlan) error {
	data, err := json.Marshal(p)
	if err != nil {
		return err
	}
	return save(data)
}

// fakeSource is the source engine.
type fakeSource struct{ *machine }

var (
	_ Source   = fakeSource{}
	_ Outgoing = (*fakeOutgoing)(nil)
	_ Target   = fakeTarget{}
	_ Incoming = (*fakeIncoming)(nil)
)

func (s fakeSource) Inspect(ctx context.Context, c SourceConfig) (Inspection, error) {
	if err := s.save(c.Save, fakePlan{PID: c.PID}); err != nil {
		return Inspection{}, err
	}
	if err := s.step(ctx, "inspect"); err != nil {
		return Inspection{}, err
	}
	return Inspection{Blockers: s.blockers, Inventory: inventory(c.PID)}, nil
}

// inventory is as little as an image can consist of.
func inventory(pid int) *image.Image {
	return &image.Image{Version: image.Version, Processes: []image.Process{{
		PID: pid, PPID: 1, Root: "/", Cwd: "/", Memory: image.Memory{Space: 1, Exe: image.None},
		Threads: []image.Thread{{TID: pid}},
	}}}
}

func (s fakeSource) Start(ctx context.Context, c SourceConfig) (Outgoing, error) {
	if err := s.step(ctx, "start"); err != nil {
		return nil, err
	}
	return &fakeOutgoing{machine: s.machine, config: c, pid: c.PID}, nil
}

func (fakeSource) Sweep([]json.RawMessage, []string) error { return nil }

func (s fakeSource) Recover(ctx context.Context, plan json.RawMessage, _ func(json.RawMessage) error) (Outgoing, error) {
	var p fakePlan
	if err := errors.Join(s.step(ctx, "recover"), json.Unmarshal(plan, &p)); err != nil {
		return nil, err
	}
	return &fakeOutgoing{machine: s.machine, pid: p.PID}, nil
}

type fakeOutgoing struct {
	*machine
	config SourceConfig
	pid    int
}

var measuredByFake = migrate.Measured{
	Rounds:   []migrate.Round{{N: 0, Pages: 100, Bytes: 409600, WireBytes: 1000, MS: 5}, {N: 1, Pages: 1, Bytes: 4096, WireBytes: 10, MS: 1, Frozen: true}},
	PhasesMS: map[string]float64{migrate.PhaseStop: 1}, DowntimeMS: 1.5, Bytes: 413696, WireBytes: 1010,
}

func (o *fakeOutgoing) Measured() migrate.Measured { return measuredByFake }

func (o *fakeOutgoing) Run(ctx context.Context, conn net.Conn, events SourceEvents) error {
	unhook := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer unhook()
	if err := wire.WriteHello(conn, wire.Hello{Migration: o.config.Migration, Epoch: o.config.Epoch, Token: o.config.Token}); err != nil {
		return err
	}
	if err := expect(conn, wire.Welcome); err != nil {
		return err
	}
	if err := errors.Join(o.save(o.config.Save, fakePlan{PID: o.pid}), o.turn(o.pid, "tracked", "running")); err != nil {
		return err
	}
	for n := range 3 {
		events.Progress(migrate.Progress{Round: n, RoundPages: 100, Bytes: uint64(n)})
	}
	if err := o.step(ctx, "freeze"); err != nil {
		return err
	}
	if err := o.turn(o.pid, "frozen", "tracked"); err != nil {
		return err
	}
	events.Frozen()
	o.mu.Lock()
	twice := o.twice
	o.mu.Unlock()
	if twice {
		events.Unfrozen()
		o.mu.Lock()
		for name := range o.silent {
			o.t.Errorf("%s is silent (%s) while the process runs", o.name, name)
		}
		o.mu.Unlock()
		events.Frozen()
	}
	if err := o.step(ctx, "send"); err != nil {
		return err
	}
	if _, err := conn.Write([]byte{1}); err != nil {
		return err
	}
	if err := expect(conn, wire.Prepared); err != nil {
		return err
	}
	if err := o.step(ctx, "promise"); err != nil {
		return err
	}
	if o.config.Options.Rehearse {
		return nil
	}
	return events.Promise(o.Measured())
}

func expect(r io.Reader, kind wire.ReplyKind) error {
	reply, err := wire.ReadReply(r)
	if err != nil {
		return err
	}
	if reply.Kind != kind {
		return fmt.Errorf("%s: %s", reply.Kind, reply.Reason)
	}
	return nil
}

func (o *fakeOutgoing) Resume(ctx context.Context) (Resumed, error) {
	if err := o.step(ctx, "resume"); err != nil {
		return Resumed{}, err
	}
	o.mu.Lock()
	killed, was := o.killed, o.processes[o.pid]
	o.mu.Unlock()
	if killed {
		return Resumed{KilledAtSource: true}, o.turn(o.pid, "", "frozen", "")
	}
	resumed := Resumed{}
	if was == "frozen" {
		resumed = Resumed{Lost: o.lost, Downtime: 9 * time.Millisecond, PhasesMS: map[string]float64{migrate.PhaseResume: 1}}
	}
	return resumed, o.turn(o.pid, "running", "frozen", "tracked", "running")
}

func (o *fakeOutgoing) Dispose(ctx context.Context) error {
	if err := o.step(ctx, "dispose"); err != nil {
		return err
	}
	return o.turn(o.pid, "", "frozen")
}

// fakeTarget is the destination engine.
type fakeTarget struct{ *machine }

func (t fakeTarget) Check(context.Context, *image.Image, migrate.Options) ([]migrate.Finding, []migrate.Finding, error) {
	return t.blockers, nil, nil
}

func (t fakeTarget) Reserve(ctx context.Context, c TargetConfig) (Incoming, []migrate.Finding, []migrate.Finding, error) {
	if err := t.step(ctx, "reserve"); err != nil {
		return nil, nil, nil, err
	}
	if len(t.blockers) > 0 {
		return nil, t.blockers, nil, nil
	}
	pid := c.Inventory.Processes[0].PID
	if err := t.save(c.Save, fakePlan{PID: pid}); err != nil {
		return nil, nil, nil, err
	}
	if err := t.turn(pid, "shell", ""); err != nil {
		return nil, nil, nil, err
	}
	return &fakeIncoming{machine: t.machine, config: c, pid: pid}, nil, nil, nil
}

func (t fakeTarget) Recover(ctx context.Context, plan json.RawMessage, save func(json.RawMessage) error) (Incoming, error) {
	var p fakePlan
	if err := errors.Join(t.step(ctx, "recover"), json.Unmarshal(plan, &p)); err != nil {
		return nil, err
	}
	if !p.Prepared { // it died with the agent
		_ = t.turn(p.PID, "", "shell")
	}
	return &fakeIncoming{machine: t.machine, pid: p.PID, config: TargetConfig{Save: save}, committed: p.Committed}, nil
}

type fakeIncoming struct {
	*machine
	config    TargetConfig
	pid       int
	committed bool
}

func (i *fakeIncoming) Receive(ctx context.Context, conn net.Conn, prepared func() error) error {
	if err := wire.WriteReply(conn, wire.Reply{Kind: wire.Welcome}); err != nil {
		return err
	}
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
		return err
	}
	if err := i.step(ctx, "prepare"); err != nil {
		_ = wire.WriteReply(conn, wire.Reply{Kind: wire.Failed, Reason: err.Error()})
		return err
	}
	if err := i.save(i.config.Save, fakePlan{PID: i.pid, Prepared: true}); err != nil {
		return err
	}
	if err := prepared(); err != nil {
		return err
	}
	return wire.WriteReply(conn, wire.Reply{Kind: wire.Prepared})
}

func (i *fakeIncoming) Commit(ctx context.Context) (Ran, error) {
	if err := i.step(ctx, "commit"); err != nil {
		return Ran{}, err
	}
	switch is := i.is(i.pid); {
	case is == "" && i.committed:
		return Ran{Detail: "it has ended since"}, nil
	case is == "":
		return Ran{NeverRan: true, Detail: "somebody has killed the shell"}, nil
	}
	i.committed = true
	if err := i.save(i.config.Save, fakePlan{PID: i.pid, Prepared: true, Committed: true}); err != nil {
		return Ran{}, err
	}
	ran := Ran{Downtime: 2500 * time.Microsecond, PhasesMS: map[string]float64{migrate.PhaseRestore: 1.5}}
	if err := i.turn(i.pid, "running", "shell", "running"); err != nil {
		return Ran{}, err
	}
	return ran, i.step(ctx, "ran")
}

func (i *fakeIncoming) Release(ctx context.Context) error {
	if err := i.step(ctx, "release"); err != nil {
		return err
	}
	return i.turn(i.pid, "", "shell", "")
}
