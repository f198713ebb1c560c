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

	"github.com/pagurus-project/pagurus/migrate"
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
	// Silence keeps the host from answering for addresses, and from asking in their
	// name, until Speak with the same name, which may be repeated. It outlives the
	// process. To be silent twice under one name is an error.
	Silence(name string, addresses []netip.Addr) error
	Speak(name string) error
}

// announcePauses are those between announcements: one may be lost, and a switch
// that has just learned of a new link may not pass the first ones on.
var announcePauses = []time.Duration{
	100 * time.Millisecond, 300 * time.Millisecond, time.Second, 2 * time.Second, 4 * time.Second,
}

// serviceAddresses are those that the log has given this host, by the coordinators'
// lists and by decisions of migrations. They outlive the agent, in the kernel and, as
// long as the host is up, in STATE_DIR/addresses.json, which says what may have been
// put on: others are not touched. It stays when they are gone: a list of before must
// not bring them back.
//
//	set                  a list: what is not in it is taken off
//	hush                 a process is frozen: it is undecided who has its addresses
//	├─ stay              it runs on here, and they are announced once more
//	└─ depart, speak     it runs elsewhere, and they are taken off
//	arrive               it runs here now: they are put on and announced
type serviceAddresses struct {
	agent *Agent
	path  string

	mu        sync.Mutex
	known     addressEntry
	announced map[netip.Prefix]bool // by this agent; those that are put on
	silent    map[netip.Prefix]bool
}

// An addressEntry is that file.
type addressEntry struct {
	Index    uint64         `json:"index"` // of the log's last entry that is taken account of
	Prefixes []netip.Prefix `json:"prefixes"`
}

func (a *Agent) openAddresses() (*serviceAddresses, error) {
	s := &serviceAddresses{agent: a, path: filepath.Join(a.config.StateDir, "addresses.json"), announced: map[netip.Prefix]bool{}, silent: map[netip.Prefix]bool{}}
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
	case len(e.Prefixes) == 0 && s.known.Index == 0:
		return nil // it never had any
	case e.Index != s.known.Index || !slices.Equal(e.Prefixes, s.known.Prefixes):
		err = replace(s.path, e)
	}
	if err == nil {
		s.known = e
	}
	return err
}

// unfit says what keeps this host from having an address; empty if nothing does, or
// if it has it because it was told to.
func (s *serviceAddresses) unfit(p netip.Prefix) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if slices.Contains(s.known.Prefixes, p) {
		return "", nil
	}
	return s.agent.config.Addresses.Check(p)
}

// blockers are what keeps addresses from coming here with a process.
func (s *serviceAddresses) blockers(prefixes []netip.Prefix) ([]migrate.Finding, error) {
	var all []migrate.Finding
	for _, p := range prefixes {
		unfit, err := s.unfit(p)
		if err != nil {
			return nil, err
		}
		if unfit != "" {
			all = append(all, migrate.Findingf(migrate.CodeAddressMissing, "choose a host in the network of the address",
				"service address %v would go along, and %s cannot have it: %s", p.Addr(), s.agent.config.Host, unfit))
		}
	}
	return all, nil
}

// set makes these the host's service addresses, as the log has them at that index.
// What could not be put on or taken off is returned by address.
func (s *serviceAddresses) set(ctx context.Context, index uint64, wanted []netip.Prefix) (failed map[netip.Addr]error, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	// Who has sent it may have given up waiting, and sent another list.
	if ctx.Err() != nil {
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	if index < s.known.Index {
		return nil, status.Errorf(codes.FailedPrecondition, "a list as of entry %d is older than what is known, %d", index, s.known.Index)
	}
	had := s.known.Prefixes
	if err := s.saveLocked(addressEntry{index, union(wanted, had)}); err != nil {
		return nil, err
	}
	failed = map[netip.Addr]error{}
	left := slices.Clone(wanted)
	for _, p := range had {
		if slices.ContainsFunc(wanted, func(w netip.Prefix) bool { return w.Addr() == p.Addr() }) {
			continue
		}
		if err := s.removeLocked(p); err != nil {
			failed[p.Addr()] = err
			left = append(left, p)
		}
	}
	for _, p := range wanted {
		put, err := s.putLocked(p)
		switch {
		case err != nil:
			failed[p.Addr()] = err
		case s.silent[p]:
		// An agent that died may have put it on without a word.
		case put || !s.announced[p]:
			s.announceLocked(p)
		}
	}
	return failed, s.saveLocked(addressEntry{index, left})
}

// union returns what is in a or b.
func union(a, b []netip.Prefix) []netip.Prefix {
	all := slices.Clone(a)
	for _, p := range b {
		if !slices.Contains(all, p) {
			all = append(all, p)
		}
	}
	return all
}

func (s *serviceAddresses) putLocked(p netip.Prefix) (put bool, err error) {
	put, err = s.agent.config.Addresses.Put(p)
	if put {
		s.agent.logger.Info("service address put on", keyAddress, p.Addr().String())
	}
	return put, err
}

func (s *serviceAddresses) removeLocked(p netip.Prefix) error {
	delete(s.announced, p)
	err := s.agent.config.Addresses.Remove(p.Addr())
	if err == nil {
		s.agent.logger.Info("service address taken off", keyAddress, p.Addr().String())
	}
	return err
}

// arrive makes addresses this host's, by a decision that the log has at that index;
// 0: it is as it was. What cannot be done is tried again when the next list comes.
func (s *serviceAddresses) arrive(index uint64, prefixes []netip.Prefix) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.saveLocked(addressEntry{max(index, s.known.Index), union(s.known.Prefixes, prefixes)}); err != nil {
		s.agent.logger.Error("noting service addresses", keyError, err)
		return // what is not noted could not be taken off
	}
	for _, p := range prefixes {
		if _, err := s.putLocked(p); err != nil {
			s.agent.logger.Error("putting a service address on", keyAddress, p.Addr().String(), keyError, err)
			continue
		}
		s.announceLocked(p)
	}
}

// depart takes addresses off this host, by a decision that the log has at that index.
func (s *serviceAddresses) depart(index uint64, prefixes []netip.Prefix) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	left := slices.Clone(s.known.Prefixes)
	for _, p := range prefixes {
		if !slices.Contains(s.known.Prefixes, p) {
			continue
		}
		if err := s.removeLocked(p); err != nil {
			errs = append(errs, err)
			continue
		}
		left = slices.DeleteFunc(left, func(l netip.Prefix) bool { return l == p })
	}
	return errors.Join(append(errs, s.saveLocked(addressEntry{max(index, s.known.Index), left}))...)
}

// hush keeps this host silent about addresses, under the name of a migration.
func (s *serviceAddresses) hush(name string, prefixes []netip.Prefix) error {
	s.markSilent(prefixes)
	var all []netip.Addr
	for _, p := range prefixes {
		all = append(all, p.Addr())
	}
	return s.agent.config.Addresses.Silence(name, all)
}

// markSilent keeps addresses from being announced, of which an agent that died has
// silenced this host.
func (s *serviceAddresses) markSilent(prefixes []netip.Prefix) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range prefixes {
		s.silent[p] = true
	}
}

// speak ends a silence.
func (s *serviceAddresses) speak(name string, prefixes []netip.Prefix) error {
	if err := s.agent.config.Addresses.Speak(name); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range prefixes {
		delete(s.silent, p)
	}
	return nil
}

// stay ends the silence about addresses that are this host's, and announces them. With
// an index the log says so, and they may have been taken off meanwhile.
func (s *serviceAddresses) stay(name string, index uint64, prefixes []netip.Prefix) error {
	if err := s.speak(name, prefixes); err != nil {
		return err
	}
	if index == 0 {
		s.mu.Lock()
		known := s.known.Prefixes
		s.mu.Unlock()
		prefixes = slices.DeleteFunc(slices.Clone(prefixes), func(p netip.Prefix) bool { return !slices.Contains(known, p) })
	}
	s.arrive(index, prefixes)
	return nil
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
			if s.announced[p] && !s.silent[p] {
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
	unfit, err := o.agent.addresses.unfit(p)
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
	wanted, err := prefixesOf(req.GetPrefixes())
	if err != nil {
		return nil, err
	}
	failed, err := o.agent.addresses.set(ctx, req.GetIndex(), wanted)
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
