package replog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"

	"github.com/pagurus-project/pagurus/coordinator/logline"
	"github.com/pagurus-project/pagurus/migrate"
	"github.com/pagurus-project/pagurus/trust"
)

// Timing are raft's clocks. They measure durations only, on monotonic clocks.
type Timing struct {
	Heartbeat time.Duration // without a leader before an election
	Election  time.Duration // of a candidate
	Lease     time.Duration // without a majority before a leader steps down
}

// DefaultTiming suits a LAN: a lost leader is replaced after one to two seconds.
func DefaultTiming() Timing {
	return Timing{Heartbeat: time.Second, Election: time.Second, Lease: 500 * time.Millisecond}
}

// Config is what a server's log needs.
type Config struct {
	Name        string // of this server, unique and for ever
	Dir         string // for the log and the snapshots
	Listener    net.Listener
	Credentials *trust.Credentials
	// Address says where a server listens at present; without an answer the
	// address in raft's own configuration is used.
	Address func(name string) (string, bool)
	// Keep is how many settled migrations are remembered.
	Keep   int
	Timing Timing
	// Changed is told of each record that an entry or a snapshot changed.
	Changed func(migrate.Record, []migrate.Effect)
	// AddressesChanged is told that some service address has changed.
	AddressesChanged func()
	Logger           *slog.Logger
}

// Errors of a Log.
var (
	// ErrNotLeader says that this server may not write, and has not.
	ErrNotLeader = errors.New("this coordinator does not lead")
	// ErrUnknownResult says that an entry may or may not be in the log.
	ErrUnknownResult = errors.New("leadership was lost while writing: the result is unknown")
)

// How long an entry may wait for raft to take it. It is written long before.
const enqueueTimeout = 5 * time.Second

// Connections to a peer that are kept, and raft's deadline on each message.
const (
	pooledConns = 3
	ioTimeout   = 10 * time.Second
)

const keptSnapshots = 2

// A Log is one server's part in the replicated log.
type Log struct {
	name    string
	fsm     *fsm
	raft    *raft.Raft
	notify  chan bool // leadership won and lost, from raft
	close   []func() error
	cancel  context.CancelFunc
	watcher sync.WaitGroup

	mu      sync.Mutex
	changed chan struct{} // closed when the leader changes, and replaced
}

// Open reads what is in c.Dir and takes part from then on. A server without
// state waits for Bootstrap, or for a leader that adds it.
func Open(c Config) (_ *Log, err error) {
	l := &Log{
		name:    c.Name,
		fsm:     newFSM(c.Keep, c.Changed, c.AddressesChanged),
		notify:  make(chan bool, 8),
		changed: make(chan struct{}),
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.closeAll())
		}
	}()
	lines := logline.NewWriter(c.Logger)
	l.close = append(l.close, lines.Close)
	stream := newStream(c.Listener, c.Credentials)
	l.close = append(l.close, stream.Close)

	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the log's directory: %w", err)
	}
	path := filepath.Join(c.Dir, "log.db")
	// A second coordinator on the same directory is told so instead of waiting.
	store, err := raftboltdb.New(raftboltdb.Options{Path: path, BoltOptions: &bbolt.Options{Timeout: time.Second}})
	if err != nil {
		return nil, fmt.Errorf("opening %s, is another coordinator running?: %w", path, err)
	}
	l.close = append(l.close, store.Close)
	cache, err := raft.NewLogCache(512, store)
	if err != nil {
		return nil, fmt.Errorf("opening the log: %w", err)
	}
	logger := hclog.New(&hclog.LoggerOptions{
		Name: "raft", Output: lines, DisableTime: true, Level: hclog.Debug,
	})
	snapshots, err := raft.NewFileSnapshotStoreWithLogger(c.Dir, keptSnapshots, logger)
	if err != nil {
		return nil, fmt.Errorf("opening the snapshots: %w", err)
	}
	transport := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		ServerAddressProvider: addresses(c.Address),
		Logger:                logger,
		Stream:                stream,
		MaxPool:               pooledConns,
		Timeout:               ioTimeout,
	})
	l.close = append(l.close, transport.Close)

	conf := raft.DefaultConfig()
	conf.LocalID = raft.ServerID(c.Name)
	conf.HeartbeatTimeout = c.Timing.Heartbeat
	conf.ElectionTimeout = c.Timing.Election
	conf.LeaderLeaseTimeout = c.Timing.Lease
	conf.NotifyCh = l.notify
	conf.Logger = logger
	l.raft, err = raft.NewRaft(conf, l.fsm, cache, store, snapshots, transport)
	if err != nil {
		return nil, fmt.Errorf("starting raft: %w", err)
	}
	l.close = append(l.close, func() error { return l.raft.Shutdown().Error() })

	ctx, cancel := context.WithCancel(context.Background())
	l.cancel = cancel
	l.watcher.Go(func() { l.watchLeader(ctx) })
	return l, nil
}

// Close leaves without a word to the others, as a crash would; see
// TransferLeadership.
func (l *Log) Close() error {
	l.cancel()
	err := l.closeAll()
	l.watcher.Wait()
	return err
}

// closeAll closes what Open opened, last first.
func (l *Log) closeAll() error {
	var errs []error
	for _, closer := range slices.Backward(l.close) {
		errs = append(errs, closer())
	}
	l.close = nil
	return errors.Join(errs...)
}

// Apply writes an event of a migration and returns the record as it is after
// it, which with a decision may be an earlier one's word. It returns once the
// entry is applied here; ctx is looked at before that only, since what is on
// its way into the log cannot be called back.
func (l *Log) Apply(ctx context.Context, id string, event migrate.Event) (migrate.Record, error) {
	data, err := encodeEntry(id, event)
	if err != nil {
		return migrate.Record{}, err
	}
	a, err := l.write(ctx, data)
	return a.record, err
}

// write writes an entry and returns what came of it.
func (l *Log) write(ctx context.Context, entry []byte) (applied, error) {
	if err := ctx.Err(); err != nil {
		return applied{}, fmt.Errorf("%w: %w", ErrNotLeader, err)
	}
	future := l.raft.Apply(entry, enqueueTimeout)
	if err := future.Error(); err != nil {
		return applied{}, classify(err)
	}
	a := future.Response().(applied)
	return a, a.err
}

// Barrier returns when everything that was in the log before has been applied
// here, and fails if this server does not lead: what is read after it is no
// older than the call.
func (l *Log) Barrier(ctx context.Context) error {
	timeout := enqueueTimeout
	if deadline, ok := ctx.Deadline(); ok {
		timeout = min(timeout, max(time.Until(deadline), time.Nanosecond))
	}
	if err := l.raft.Barrier(timeout).Error(); err != nil {
		return classify(err)
	}
	return nil
}

// classify tells the errors after which nothing is in the log from the others.
func classify(err error) error {
	switch {
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress),
		errors.Is(err, raft.ErrEnqueueTimeout):
		return fmt.Errorf("%w: %w", ErrNotLeader, err)
	}
	return fmt.Errorf("%w: %w", ErrUnknownResult, err)
}

// Record returns a record as this server has applied it.
func (l *Log) Record(id string) (migrate.Record, bool) { return l.fsm.record(id) }

// Records returns all of them, oldest first.
func (l *Log) Records() []migrate.Record { return l.fsm.records() }

// Holder returns the migration that has its hands on a process.
func (l *Log) Holder(host string, pid int) (migrate.Record, bool) { return l.fsm.holder(host, pid) }

// addresses asks membership for the address of a server.
type addresses func(name string) (string, bool)

func (a addresses) ServerAddr(id raft.ServerID) (raft.ServerAddress, error) {
	if address, ok := a(string(id)); ok {
		return raft.ServerAddress(address), nil
	}
	// The transport falls back to the address in raft's configuration.
	return "", fmt.Errorf("no member is the server %s", id)
}
