package source

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/migrate/wire"
	"github.com/pagurus-project/pagurus/pageserver"
	"github.com/pagurus-project/pagurus/pageserver/pagetest"
)

// A replica is a destination that keeps pages in its own memory, by what
// layouts and rounds say and nothing else.
type replica struct {
	memory pagetest.Memory

	mu       sync.Mutex
	layout   *image.Layout
	image    *image.Image
	verify   *wire.Verify
	signals  *wire.Signals
	rounds   int
	problem  error
	hello    wire.Hello
	refuseAt int           // round whose barrier is answered with a refusal
	silent   bool          // says nothing to a state
	way      time.Duration // that the state is on its way
	builds   time.Duration // that it takes to be prepared then
	onRound  func(n uint32)
	ended    chan struct{}
}

func newReplica() *replica { return &replica{refuseAt: -1, ended: make(chan struct{})} }

// listen serves one connection over loopback TCP.
func (r *replica) listen(t testing.TB) (address string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		defer close(r.ended)
		defer listener.Close()
		conn, err := listener.Accept()
		if err != nil {
			r.fail(err)
			return
		}
		defer conn.Close()
		r.fail(r.serve(conn))
	}()
	return listener.Addr().String()
}

// connect returns the source's end of a connection to the replica.
func (r *replica) connect(t testing.TB) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", r.listen(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		<-r.ended
	})
	return conn
}

func (r *replica) fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.problem = err
}

// wait waits for the end of the stream and returns what it came to.
func (r *replica) wait() error {
	<-r.ended
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.problem
}

func (r *replica) serve(conn net.Conn) error {
	var err error
	if r.hello, err = wire.ReadHello(conn); err != nil {
		return err
	}
	if err := wire.WriteReply(conn, wire.Reply{Kind: wire.Welcome}); err != nil {
		return err
	}
	receiver := pageserver.NewReceiver(conn, &r.memory, pageserver.ReceiverOptions{})
	for {
		m, err := receiver.Next(context.Background())
		if errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := r.take(conn, m); err != nil {
			return err
		}
	}
}

func (r *replica) take(conn net.Conn, m pageserver.Message) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch m.Kind {
	case wire.KindLayout:
		l, err := image.DecodeLayout(m.Payload)
		if err != nil {
			return err
		}
		r.apply(l)
		return nil
	case wire.KindBarrier:
		n, err := wire.DecodeBarrier(m.Payload)
		if err != nil {
			return err
		}
		if int(n) == r.refuseAt {
			return wire.WriteReply(conn, wire.Reply{Kind: wire.Failed, Reason: "no more room"})
		}
		if r.onRound != nil {
			r.onRound(n)
		}
		return wire.WriteReply(conn, wire.Reply{Kind: wire.Placed, Round: n})
	case wire.KindState:
		var err error
		if r.image, r.verify, err = wire.DecodeState(m.Payload); err != nil {
			return err
		}
		if r.silent {
			return nil
		}
		<-time.After(r.way)
		arrived := time.Now()
		<-time.After(r.builds)
		return wire.WriteReply(conn, wire.Reply{Kind: wire.Prepared, Took: int64(time.Since(arrived))})
	case wire.KindSignals:
		var err error
		r.signals, err = wire.DecodeSignals(m.Payload)
		return err
	}
	return fmt.Errorf("message of kind %d", m.Kind)
}

// apply does to the pages what the destination's mappings do to them.
func (r *replica) apply(l *image.Layout) {
	r.rounds++
	for i := range l.Processes {
		var before []image.Mapping
		if r.layout != nil {
			before = r.layout.Processes[i].Mappings
		}
		p := &l.Processes[i]
		change := image.Diff(before, p.Mappings)
		for _, u := range change.Unmap {
			r.remove(p.Space, u)
		}
		for _, m := range change.Map {
			r.remove(p.Space, m.AddressRange)
		}
	}
	for i := range l.Objects {
		o := &l.Objects[i]
		r.remove(o.Space, image.AddressRange{Start: pageAlign(o.Bytes), End: 1 << 40})
	}
	r.layout = l
}

func (r *replica) remove(space uint32, a image.AddressRange) {
	for _, run := range r.memory.Runs() {
		if run.Space != pageserver.SpaceID(space) {
			continue
		}
		first, end := uint64(run.First), uint64(run.First)+run.Pages
		for page := max(first, a.Start/image.PageSize); page < min(end, a.End/image.PageSize); page++ {
			r.memory.Remove(run.Space, pageserver.PageNo(page))
		}
	}
}

// compare compares everything with the frozen process, page by page, as it
// reads its own memory.
func (r *replica) compare(t testing.TB, pid int) {
	t.Helper()
	memory, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	wrong, compared := 0, 0
	report := func(format string, args ...any) {
		if wrong++; wrong <= 10 {
			t.Errorf(format, args...)
		}
	}
	for i := range r.image.Processes {
		mem := &r.image.Processes[i].Memory
		for j := range mem.Mappings {
			m := &mem.Mappings[j]
			if m.Backing == image.BackingKernel {
				continue
			}
			compared += r.compareMapping(memory, mem, m, report)
		}
		for _, run := range r.memory.Runs() {
			at := uint64(run.First) * image.PageSize
			if run.Space != pageserver.SpaceID(mem.Space) {
				continue
			}
			for range run.Pages {
				if m := mem.At(at); m == nil || !m.Private() {
					report("replica holds page %#x, where nothing private is mapped", at)
				}
				at += image.PageSize
			}
		}
	}
	if compared == 0 {
		t.Error("nothing was compared")
	}
	if wrong > 10 {
		t.Errorf("%d differences in all", wrong)
	}
}

// compareMapping reads what the process sees in a mapping, and what it would
// see at the destination.
func (r *replica) compareMapping(memory *os.File, mem *image.Memory, m *image.Mapping, report func(string, ...any)) int {
	guards := ranges(slices.Clone(mem.Guards))
	compared := 0
	page := make([]byte, image.PageSize)
	for at := m.Start; at < m.End; at += image.PageSize {
		_, err := memory.ReadAt(page, int64(at))
		guard := len(ranges{{Start: at, End: at + image.PageSize}}.within(guards)) > 0
		if err != nil {
			// Beyond the end of a file, or a guard page.
			held := r.memory.Page(pageserver.SpaceID(mem.Space), pageserver.PageNo(at/image.PageSize))
			if m.Private() && held != nil {
				report("page %#x cannot be read (%v) and the replica holds it", at, err)
			}
			if m.Backing == image.BackingAnonymous && !guard {
				report("page %#x cannot be read (%v) and is no guard", at, err)
			}
			continue
		}
		if guard {
			report("page %#x can be read and is taken for a guard", at)
		}
		want := r.expect(mem, m, at)
		compared++
		if !bytes.Equal(page, want) {
			report("page %#x of %s mapping %#x-%#x (shared: %v, %s) differs: % x... instead of % x...", at, m.Backing, m.Start, m.End, m.Shared, m.Name, want[:16], page[:16])
		}
	}
	return compared
}

// expect is what the process would read at the destination.
func (r *replica) expect(mem *image.Memory, m *image.Mapping, at uint64) []byte {
	if m.Private() {
		if page := r.memory.Page(pageserver.SpaceID(mem.Space), pageserver.PageNo(at/image.PageSize)); page != nil {
			return page
		}
	}
	page := make([]byte, image.PageSize)
	offset := at - m.Start + m.Offset
	switch m.Backing {
	case image.BackingObject:
		if held := r.memory.Page(pageserver.SpaceID(r.image.Objects[m.Object].Space), pageserver.PageNo(offset/image.PageSize)); held != nil {
			return held
		}
	case image.BackingFile:
		file, err := os.Open(r.image.Files[m.File].Path)
		if err == nil {
			_, err = file.ReadAt(page, int64(offset))
			file.Close()
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return []byte(err.Error() + "................")
		}
	}
	return page
}

// compareObject compares one object with an open file of it.
func (r *replica) compareObject(t testing.TB, index int, file *os.File) {
	t.Helper()
	o := &r.image.Objects[index]
	want := make([]byte, pageAlign(o.Bytes))
	if _, err := unix.Pread(int(file.Fd()), want, 0); err != nil {
		t.Fatal(err)
	}
	for at := uint64(0); at < uint64(len(want)); at += image.PageSize {
		got := r.memory.Page(pageserver.SpaceID(o.Space), pageserver.PageNo(at/image.PageSize))
		if got == nil {
			got = make([]byte, image.PageSize)
		}
		if !bytes.Equal(got, want[at:at+image.PageSize]) {
			t.Errorf("page %#x of object %d (%s) differs", at, index, o.Kind)
			return
		}
	}
}

// shown is what a replica shows where the image maps it: of private mappings of
// files, the files' own pages too.
type shown struct{ *replica }

func (s shown) Read(space pageserver.SpaceID, ranges []pageserver.Range, buf []byte) ([]pageserver.Range, error) {
	for i := range s.image.Processes {
		mem := &s.image.Processes[i].Memory
		if space != pageserver.SpaceID(mem.Space) {
			continue
		}
		for _, r := range ranges {
			for page := range r.Pages {
				at := (uint64(r.First) + page) * image.PageSize
				m := mem.At(at)
				if m == nil {
					return nil, fmt.Errorf("nothing is mapped at %#x", at)
				}
				buf = buf[copy(buf, s.expect(mem, m, at)):]
			}
		}
		return nil, nil
	}
	return s.memory.Read(space, ranges, buf)
}
