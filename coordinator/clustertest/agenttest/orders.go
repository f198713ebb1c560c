package agenttest

import (
	"context"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pagurus-project/pagurus/migrate"
	migratev1 "github.com/pagurus-project/pagurus/proto/migrate/v1"
)

// PageAddress is where shells await their pages.
const PageAddress = "192.0.2.1:7400"

// Describe answers for a host with a gibibyte.
func (a *Agent) Describe(context.Context, *migratev1.DescribeRequest) (*migratev1.DescribeResponse, error) {
	return &migratev1.DescribeResponse{
		Host: a.Host, Kernel: "6.18.0", AgentVersion: "test", Cpus: 2, MemoryBytes: 1 << 30, FreeBytes: 1 << 29, Load1: 0.5,
	}, a.dead()
}

// ListProcesses lists what the world has here.
func (a *Agent) ListProcesses(context.Context, *migratev1.ListProcessesRequest) (*migratev1.ListProcessesResponse, error) {
	a.world.mu.Lock()
	defer a.world.mu.Unlock()
	resp := &migratev1.ListProcessesResponse{}
	for pid, hosts := range a.world.runs {
		if _, ok := hosts[a.Host]; ok {
			resp.Processes = append(resp.Processes, tree(int32(pid))...)
		}
	}
	return resp, nil
}

func tree(pid int32) []*migratev1.Process {
	return []*migratev1.Process{{Pid: pid, Ppid: 1, Command: fmt.Sprintf("work %d", pid), State: "S", Threads: 2, ResidentBytes: 1 << 20}}
}

func blockers(codes []migrate.Code) []*migratev1.Finding {
	var out []*migratev1.Finding
	for _, c := range codes {
		out = append(out, &migratev1.Finding{Code: string(c), Detail: "because of " + string(c), Hint: "see " + string(c)})
	}
	return out
}

// Inspect finds every process that is here without fault, unless told otherwise.
func (a *Agent) Inspect(_ context.Context, req *migratev1.InspectRequest) (*migratev1.InspectResponse, error) {
	if err := a.step(Inspect); err != nil {
		return nil, err
	}
	if exists, _ := a.world.has(int(req.GetPid()), a.Host); !exists {
		return &migratev1.InspectResponse{Blockers: blockers([]migrate.Code{migrate.CodeNoSuchProcess})}, nil
	}
	return &migratev1.InspectResponse{
		Tree: tree(req.GetPid()), Blockers: blockers(a.InspectBlockers), Inventory: fmt.Append(nil, req.GetPid()),
		InventoryAgeNs: int64(inventoryAge),
	}, nil
}

// inventoryAge is how old an inventory is when it is given out.
const inventoryAge = 2 * time.Second

// Reserve makes a shell.
func (a *Agent) Reserve(_ context.Context, req *migratev1.ReserveRequest) (*migratev1.ReserveResponse, error) {
	if err := a.step(Reserve); err != nil {
		return nil, err
	}
	if a.ReserveFails {
		return nil, status.Error(codes.Internal, "no shell today")
	}
	if len(a.ReserveBlockers) > 0 || req.GetCheckOnly() {
		return &migratev1.ReserveResponse{Blockers: blockers(a.ReserveBlockers)}, nil
	}
	if age := time.Duration(req.GetInventoryAgeNs()); age < inventoryAge || age > inventoryAge+time.Minute {
		return nil, status.Errorf(codes.InvalidArgument, "an inventory that is %v old", age)
	}
	if len(req.GetToken()) != 32 {
		return nil, status.Error(codes.InvalidArgument, "token")
	}
	if _, err := a.half(req.GetRef()); err != nil {
		return nil, err
	}
	var pid int
	if _, err := fmt.Sscan(string(req.GetInventory()), &pid); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "inventory: %v", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	id := req.GetRef().GetMigration()
	h := &half{id: id, epoch: req.GetRef().GetEpoch(), pid: pid, token: string(req.GetToken()), state: "shell"}
	if err := a.addLocked(h); err != nil {
		return nil, err
	}
	a.world.set(pid, a.Host, false)
	return &migratev1.ReserveResponse{PageAddress: PageAddress}, nil
}

// Start begins, or answers whether it has begun.
func (a *Agent) Start(_ context.Context, req *migratev1.StartRequest) (*migratev1.StartResponse, error) {
	if err := a.step(Start); err != nil {
		return nil, err
	}
	h, err := a.half(req.GetRef())
	switch {
	case err != nil:
		return nil, err
	case h != nil:
		return &migratev1.StartResponse{}, nil
	case req.GetPageAddress() == "":
		return nil, status.Error(codes.NotFound, "no such migration here")
	case req.GetPageAddress() != PageAddress:
		return nil, status.Errorf(codes.InvalidArgument, "page address %s", req.GetPageAddress())
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	h = &half{
		id: req.GetRef().GetMigration(), epoch: req.GetRef().GetEpoch(), pid: int(req.GetPid()), source: true,
		peer: req.GetDestinationHost(), token: string(req.GetToken()), opts: req.GetOptions(), state: "running",
	}
	if err := a.addLocked(h); err != nil {
		return nil, err
	}
	a.goLocked(func(ctx context.Context) { a.move(ctx, h) })
	return &migratev1.StartResponse{}, nil
}

// move is a source's work up to its promise.
func (a *Agent) move(ctx context.Context, h *half) {
	for n := range uint32(2) {
		if a.step(Progress) != nil {
			return
		}
		resp, err := a.report(ctx, h, &migratev1.ReportRequest{Event: &migratev1.ReportRequest_Progress{Progress: &migratev1.Progress{
			Round: n, RoundPages: 100, RoundSent: 50, Bytes: 1000, Rounds: []*migratev1.Round{{N: 0, Pages: 100}},
		}}})
		if err == nil && resp.GetDecision() != 0 {
			a.decided(h, resp.GetDecision())
			return
		}
	}
	if a.step(Freeze) != nil || !a.advance(h, "frozen") {
		return
	}
	_, _ = a.report(ctx, h, &migratev1.ReportRequest{Event: &migratev1.ReportRequest_Frozen{Frozen: &migratev1.Frozen{}}})
	if a.KilledFrozen {
		a.world.remove(h.pid, a.Host)
	}
	if err := a.world.agent(h.peer).prepare(h); err != nil {
		a.end(ctx, h, err.Error(), false)
		return
	}
	if h.opts.GetRehearse() {
		a.end(ctx, h, "", true)
		return
	}
	if a.step(Promise) != nil || !a.advance(h, "promised") || a.step(Promised) != nil {
		return
	}
	a.repeat(ctx, h, promised())
}

// prepare is the destination's work, called by the source in place of pages.
func (a *Agent) prepare(source *half) error {
	if err := a.step(Prepare); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	h := a.halves[source.id]
	if h == nil || h.outcome != 0 || h.token != source.token || h.epoch != source.epoch {
		return fmt.Errorf("%s has no shell for it", a.Host)
	}
	h.state = "prepared"
	a.goLocked(func(ctx context.Context) { a.repeat(ctx, h, prepared()) })
	return nil
}

// Decide carries the log's word out.
func (a *Agent) Decide(_ context.Context, req *migratev1.DecideRequest) (*migratev1.DecideResponse, error) {
	if req.GetDecision() == migratev1.Decision_DECISION_ABORT {
		a.bar(req.GetRef())
	}
	h, err := a.half(req.GetRef())
	if err != nil {
		return nil, err
	}
	if h == nil {
		return &migratev1.DecideResponse{Outcome: migratev1.Outcome_OUTCOME_UNKNOWN}, a.dead()
	}
	step := Run
	if req.GetDecision() == migratev1.Decision_DECISION_ABORT {
		if step = Release; h.source {
			step = Resume
		}
	}
	if err := a.step(step); err != nil {
		return nil, err
	}
	resp := &migratev1.DecideResponse{Outcome: a.decided(h, req.GetDecision()), Detail: "because"}
	switch resp.GetOutcome() {
	case migratev1.Outcome_OUTCOME_RUNNING:
		resp.DowntimeMs = 2.5
		resp.PhasesMs = map[string]float64{migrate.PhaseRestore: 1.5, migrate.PhaseDecide: 0.5, migrate.PhaseResume: 0.5}
	case migratev1.Outcome_OUTCOME_RESUMED:
		if h.state != "running" {
			resp.DowntimeMs, resp.Lost = 9, a.Lost
		}
	}
	if step == Run {
		return resp, a.step(Running)
	}
	return resp, a.dead()
}

// Dispose ends the frozen copy.
func (a *Agent) Dispose(_ context.Context, req *migratev1.DisposeRequest) (*migratev1.DisposeResponse, error) {
	h, err := a.half(req.GetRef())
	if err != nil {
		return nil, err
	}
	if err := a.step(Dispose); err != nil {
		return nil, err
	}
	if h == nil {
		return nil, status.Error(codes.NotFound, "no such migration here")
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if h.outcome == 0 {
		a.world.remove(h.pid, a.Host)
		h.outcome = migratev1.Outcome_OUTCOME_RUNNING // elsewhere
		close(h.over)
	}
	return &migratev1.DisposeResponse{}, nil
}

// Forget drops a half that is over.
func (a *Agent) Forget(_ context.Context, req *migratev1.ForgetRequest) (*migratev1.ForgetResponse, error) {
	h, err := a.half(req.GetRef())
	if err != nil {
		return nil, err
	}
	if err := a.step(Forget); err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if h == nil {
		return nil, status.Error(codes.NotFound, "no such migration here")
	}
	if h.outcome == 0 {
		return nil, status.Error(codes.FailedPrecondition, "it is not over")
	}
	delete(a.halves, h.id)
	return &migratev1.ForgetResponse{}, nil
}

// CheckAddress takes hosts to be in all networks of 24 bits.
func (a *Agent) CheckAddress(_ context.Context, req *migratev1.CheckAddressRequest) (*migratev1.CheckAddressResponse, error) {
	if !strings.HasSuffix(req.GetPrefix(), "/24") {
		return nil, status.Error(codes.FailedPrecondition, "no device of this host is in its network")
	}
	return &migratev1.CheckAddressResponse{}, a.dead()
}

// SetAddresses says yes to everything.
func (a *Agent) SetAddresses(context.Context, *migratev1.SetAddressesRequest) (*migratev1.SetAddressesResponse, error) {
	return &migratev1.SetAddressesResponse{}, a.dead()
}

// ListGuests knows of none.
func (a *Agent) ListGuests(context.Context, *migratev1.ListGuestsRequest) (*migratev1.ListGuestsResponse, error) {
	return &migratev1.ListGuestsResponse{}, a.dead()
}
