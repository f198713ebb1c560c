package resource

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/fxamacker/cbor/v2"

	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/tcprepair"
	"github.com/pagurus-project/pagurus/tcprepair/inet"
	"github.com/pagurus-project/pagurus/tcprepair/udp"
)

// An Arrival is what is left to do for the sockets of a restored tree when it is to run
// here: their addresses are the host's by then. It is plain data, to be kept for who takes
// over from an agent that died.
type Arrival struct {
	Connections []Connection   // that are in repair mode
	Datagrams   []udp.Datagram // that were not read yet
	Lost        int            // datagrams that cannot be delivered
	Unread      []string       // what was left behind in the queues of raw, ping and packet sockets
	Names       []Name         // of unix sockets, under which nobody finds them yet
	Lodging     Lodging        // of connections at addresses of other hosts
	Waiting     int            // connections in the source's listeners: who has its word asks for them
	TimeWaits   image.TimeWaits
}

// ArrivalOf is that of an image's sockets, the name that of guests. It is to be kept before they
// are made, and again afterwards.
func ArrivalOf(m *image.Image, name string) (a Arrival, err error) {
	a.Connections = connections(m, (*tcprepair.Socket).Rest)
	a.Datagrams, a.Lost = datagrams(m)
	a.Unread = unread(m)
	a.Names, err = names(m)
	a.Lodging = Lodging{name, StayingFlows(m)}
	a.Waiting = m.Waiting
	a.TimeWaits = timeWaits(m)
	return a, err
}

func (a *Arrival) empty() bool {
	return len(a.Connections) == 0 && len(a.Datagrams) == 0 && a.Lost == 0 && len(a.Unread) == 0 && len(a.Names) == 0 && a.Waiting == 0
}

// Discard takes away what stands ready for an arrival that will not be. It may be repeated.
func (a *Arrival) Discard() error {
	var errs []error
	for i := range a.Names {
		errs = append(errs, a.Names[i].Staged.Discard())
	}
	return errors.Join(errs...)
}

// Arrive lets the connections live, delivers the datagrams and puts unix sockets where they
// are found, before the processes run.
// It may be repeated; datagrams can come twice then, as in any network. What is lost is
// returned.
func (a *Arrival) Arrive() (lost []error) {
	if a.empty() {
		return nil
	}
	guests, err := a.Lodging.enter()
	if err != nil {
		lost = append(lost, fmt.Errorf("connections at addresses of other hosts: %w", err))
	}
	restorer, err := tcprepair.NewRestorer()
	if err != nil {
		restorer = &tcprepair.Restorer{} // slower
	}
	lost = append(lost, forEach(a.Connections, func(fd int, s *tcprepair.Socket) error {
		if guests[flowOf(s)] {
			if err := inet.SetTransparent(fd, s.IPv6, 1); err != nil {
				return err
			}
		}
		if err := tcprepair.Arrive(fd, s); err != nil {
			return err
		}
		return restorer.Activate(fd, s)
	})...)
	for i := range a.Names {
		if err := a.Names[i].Staged.Publish(); err != nil {
			lost = append(lost, err)
			_ = a.Names[i].Staged.Discard() // has failed for the same reason, if it does
		}
	}
	if err := deliverDatagrams(a.Datagrams); err != nil {
		lost = append(lost, err)
	}
	if a.Lost > 0 {
		lost = append(lost, fmt.Errorf("%d datagrams that were not read yet, and that this host cannot deliver as they came", a.Lost))
	}
	for _, what := range a.Unread {
		lost = append(lost, errors.New(what))
	}
	return lost
}

// Save keeps it in a file. If there is nothing to do, there is none.
func (a *Arrival) Save(path string) error {
	if a.empty() && len(a.TimeWaits.All) == 0 {
		RemoveArrival(path)
		return nil
	}
	data, err := cbor.Marshal(a)
	if err == nil { // as a whole or not at all
		err = os.WriteFile(path+half, data, 0o600)
	}
	if err == nil {
		err = os.Rename(path+half, path)
	}
	if err != nil {
		return fmt.Errorf("keeping the state of sockets: %w", err)
	}
	return nil
}

// half ends the name of one that is being written.
const half = ".new"

// RemoveArrival removes the file, if there is one.
func RemoveArrival(path string) {
	for _, name := range []string{path, path + half} {
		_ = os.Remove(name) // may not be there
	}
}

// LoadArrival is the other half of Save.
func LoadArrival(path string) (a Arrival, err error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return a, nil
	}
	if err == nil {
		err = cbor.Unmarshal(data, &a)
	}
	if err != nil {
		return a, fmt.Errorf("reading the state of sockets back: %w", err)
	}
	return a, nil
}
