package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	migratev1 "github.com/pagurus-project/pagurus/proto/migrate/v1"
)

// Addresses is how service addresses are put on this host.
type Addresses interface {
	// Check says what keeps the host from having an address that it does not
	// have; if nothing does, unfit is empty.
	Check(p netip.Prefix) (unfit string, err error)
	// Put and Remove may be repeated; Put reports whether it was not there.
	Put(p netip.Prefix) (put bool, err error)
	Remove(a netip.Addr) error
	// Announce tells the network that the address is here.
	Announce(p netip.Prefix) error
}

// announcePauses are those between announcements: one may be lost, and a switch
// that has just learned of a new link may not pass the first ones on.
var announcePauses = []time.Duration{
	100 * time.Millisecond, 300 * time.Millisecond, time.Second, 2 * time.Second, 4 * time.Second,
}

// serviceAddresses are those that the coordinators have given this host. They
// outlive the agent, in the kernel and, as long as there are any, in
// STATE_DIR/addresses.json, which says what may have been put on: others are not
// touched.
type serviceAddresses struct {
	agent *Agent
	path  string

	mu        sync.Mutex
	known     addressEntry
	announced map[netip.Prefix]bool // by this agent; those that are put on
}

// An addressEntry is that file.
type addressEntry struct {
	Epoch    uint64         `json:"epoch"` // of the coordinator's word
	Prefixes []netip.Prefix `json:"prefixes"`
}

func (a *Agent) openAddresses() (*serviceAddresses, error) {
	s := &serviceAddresses{agent: a, path: filepath.Join(a.config.StateDir, "addresses.json"), announced: map[netip.Prefix]bool{}}
	content, err := os.ReadFile(s.path)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err == nil {
		err = json.Unmarshal(content, &s.known)
	}
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", s.path, err)
	}
	return s, nil
}

func (s *serviceAddresses) saveLocked(e addressEntry) error {
	var err error
	switch {
	case len(e.Prefixes) == 0:
		err = forget(s.path)
	case e.Epoch != s.known.Epoch || !slices.Equal(e.Prefixes, s.known.Prefixes):
		err = replace(s.path, e)
	}
	if err == nil {
		s.known = e
	}
	return err
}

// has reports whether the host may have an address because it was told to.
func (s *serviceAddresses) has(p netip.Prefix) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Contains(s.known.Prefixes, p)
}

// set makes these the host's service addresses. What could not be put on or taken
// off is returned by address.
func (s *serviceAddresses) set(ctx context.Context, epoch uint64, wanted []netip.Prefix) (failed map[netip.Addr]error, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	// Who has sent it may have given up waiting, and sent another list.
	if ctx.Err() != nil {
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	if epoch < s.known.Epoch {
		return nil, status.Errorf(codes.FailedPrecondition, "epoch %d is older than %d", epoch, s.known.Epoch)
	}
	had := s.known.Prefixes
	all := slices.Clone(wanted)
	for _, p := range had {
		if !slices.Contains(all, p) {
			all = append(all, p)
		}
	}
	if err := s.saveLocked(addressEntry{epoch, all}); err != nil {
		return nil, err
	}
	failed = map[netip.Addr]error{}
	left := slices.Clone(wanted)
	for _, p := range had {
		if slices.ContainsFunc(wanted, func(w netip.Prefix) bool { return w.Addr() == p.Addr() }) {
			continue
		}
		delete(s.announced, p)
		if err := s.agent.config.Addresses.Remove(p.Addr()); err != nil {
			failed[p.Addr()] = err
			left = append(left, p)
			continue
		}
		s.agent.logger.Info("service address taken off", keyAddress, p.Addr().String())
	}
	for _, p := range wanted {
		put, err := s.agent.config.Addresses.Put(p)
		if err != nil {
			failed[p.Addr()] = err
			continue
		}
		if put {
			s.agent.logger.Info("service address put on", keyAddress, p.Addr().String())
		}
		// An agent that died may have put it on without a word.
		if put || !s.announced[p] {
			s.announceLocked(p)
		}
	}
	return failed, s.saveLocked(addressEntry{epoch, left})
}

// announceLocked tells the network of an address, once when it returns and a few
// times more, as long as the host has it.
func (s *serviceAddresses) announceLocked(p netip.Prefix) {
	once := func() {
		if err := s.agent.config.Addresses.Announce(p); err != nil {
			s.agent.logger.Warn("announcing a service address", keyAddress, p.Addr().String(), keyError, err)
		}
	}
	s.announced[p] = true
	once()
	s.agent.running.Go(func() {
		for _, pause := range announcePauses {
			select {
			case <-s.agent.alive.Done():
				return
			case <-time.After(pause):
			}
			s.mu.Lock()
			if s.announced[p] {
				once()
			}
			s.mu.Unlock()
		}
	})
}

// CheckAddress tells whether the host could have an address.
func (o orders) CheckAddress(_ context.Context, req *migratev1.CheckAddressRequest) (*migratev1.CheckAddressResponse, error) {
	p, err := netip.ParsePrefix(req.GetPrefix())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if o.agent.addresses.has(p) {
		return &migratev1.CheckAddressResponse{}, nil
	}
	unfit, err := o.agent.config.Addresses.Check(p)
	switch {
	case err != nil:
		return nil, status.Error(codes.Unavailable, err.Error())
	case unfit != "":
		return nil, status.Error(codes.FailedPrecondition, unfit)
	}
	return &migratev1.CheckAddressResponse{}, nil
}

// SetAddresses tells the host all that it has.
func (o orders) SetAddresses(ctx context.Context, req *migratev1.SetAddressesRequest) (*migratev1.SetAddressesResponse, error) {
	var wanted []netip.Prefix
	for _, text := range req.GetPrefixes() {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, status.Error(codes.InvalidArgument, err.Error())
		}
		wanted = append(wanted, p)
	}
	failed, err := o.agent.addresses.set(ctx, req.GetEpoch(), wanted)
	if _, ok := status.FromError(err); !ok {
		err = status.Error(codes.Internal, err.Error())
	}
	if err != nil {
		return nil, err
	}
	resp := &migratev1.SetAddressesResponse{}
	for a, err := range failed {
		resp.Failures = append(resp.Failures, &migratev1.AddressFailure{Address: a.String(), Reason: err.Error()})
	}
	return resp, nil
}
