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

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	migratev1 "github.com/pagurus-project/pagurus/proto/migrate/v1"
)

// Addresses is how service addresses are put on this host.
type Addresses interface {
	// Check reports what keeps the host from having an address.
	Check(p netip.Prefix) error
	// Put and Remove may be repeated; Put reports whether it was not there.
	Put(p netip.Prefix) (put bool, err error)
	Remove(a netip.Addr) error
	// Announce tells the network a few times that the address is here. It may
	// take seconds, or end with ctx.
	Announce(ctx context.Context, p netip.Prefix) error
}

// serviceAddresses are those that the coordinators have given this host. They
// outlive the agent, in the kernel and in STATE_DIR/addresses.json, which says what
// may have been put on: others are not touched.
type serviceAddresses struct {
	agent *Agent
	path  string

	mu    sync.Mutex
	known addressEntry
}

// An addressEntry is that file.
type addressEntry struct {
	Epoch    uint64         `json:"epoch"` // of the coordinator's word
	Prefixes []netip.Prefix `json:"prefixes"`
}

func (a *Agent) openAddresses() (*serviceAddresses, error) {
	s := &serviceAddresses{agent: a, path: filepath.Join(a.config.StateDir, "addresses.json")}
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

func (s *serviceAddresses) save(e addressEntry) error {
	if err := replace(s.path, e); err != nil {
		return err
	}
	s.known = e
	return nil
}

// set makes these the host's service addresses.
func (s *serviceAddresses) set(epoch uint64, wanted []netip.Prefix) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if epoch < s.known.Epoch {
		return status.Errorf(codes.FailedPrecondition, "epoch %d is older than %d", epoch, s.known.Epoch)
	}
	had := s.known.Prefixes
	all := slices.Clone(wanted)
	for _, p := range had {
		if !slices.Contains(all, p) {
			all = append(all, p)
		}
	}
	if err := s.save(addressEntry{epoch, all}); err != nil {
		return err
	}
	var errs []error
	for _, p := range had {
		if !slices.ContainsFunc(wanted, func(w netip.Prefix) bool { return w.Addr() == p.Addr() }) {
			errs = append(errs, s.agent.config.Addresses.Remove(p.Addr()))
			s.agent.logger.Info("service address taken off", keyAddress, p.Addr().String())
		}
	}
	for _, p := range wanted {
		put, err := s.agent.config.Addresses.Put(p)
		errs = append(errs, err)
		if put {
			s.agent.logger.Info("service address put on", keyAddress, p.Addr().String())
			s.announce(p)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return s.save(addressEntry{epoch, wanted})
}

func (s *serviceAddresses) announce(p netip.Prefix) {
	s.agent.running.Go(func() {
		if err := s.agent.config.Addresses.Announce(s.agent.alive, p); err != nil {
			s.agent.logger.Warn("announcing a service address", keyAddress, p.Addr().String(), keyError, err)
		}
	})
}

// CheckAddress tells whether the host could have an address.
func (o orders) CheckAddress(_ context.Context, req *migratev1.CheckAddressRequest) (*migratev1.CheckAddressResponse, error) {
	p, err := netip.ParsePrefix(req.GetPrefix())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if err := o.agent.config.Addresses.Check(p); err != nil {
		return nil, status.Error(codes.FailedPrecondition, err.Error())
	}
	return &migratev1.CheckAddressResponse{}, nil
}

// SetAddresses tells the host all that it has.
func (o orders) SetAddresses(_ context.Context, req *migratev1.SetAddressesRequest) (*migratev1.SetAddressesResponse, error) {
	var wanted []netip.Prefix
	for _, text := range req.GetPrefixes() {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, status.Error(codes.InvalidArgument, err.Error())
		}
		wanted = append(wanted, p)
	}
	err := o.agent.addresses.set(req.GetEpoch(), wanted)
	if _, ok := status.FromError(err); !ok {
		err = status.Error(codes.Internal, err.Error())
	}
	if err != nil {
		return nil, err
	}
	return &migratev1.SetAddressesResponse{}, nil
}
