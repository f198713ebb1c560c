package timewait

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/tcprepair"
)

// MaxAddresses is for how many local addresses can be asked at once.
const MaxAddresses = 1024

// A Lister lists what is in TIME-WAIT.
type Lister struct {
	layout *layout
	tick   time.Duration // a jiffy

	mu        sync.Mutex // one list at a time
	addresses *ebpf.Map
	counts    *ebpf.Map
	program   *ebpf.Program
	iterator  *link.Iter
}

// NewLister loads the BPF program. Its error wraps errors.ErrUnsupported where the kernel has not
// what it takes. The caller needs CAP_BPF and CAP_PERFMON.
func NewLister() (*Lister, error) {
	l := &Lister{}
	if err := l.load(); err != nil {
		return nil, errors.Join(fmt.Errorf("loading the iterator over TCP sockets: %w", unsupported(err)), l.Close())
	}
	return l, nil
}

func (l *Lister) load() error {
	types, err := btf.LoadKernelSpec()
	if err != nil {
		return err
	}
	if l.layout, err = layoutOf(types); err != nil {
		return err
	}
	// The coarse clocks go by jiffies (KTIME_LOW_RES, include/linux/hrtimer_defs.h).
	var tick unix.Timespec
	if err := unix.ClockGetres(unix.CLOCK_MONOTONIC_COARSE, &tick); err != nil {
		return fmt.Errorf("asking for the length of a jiffy: %w", err)
	}
	l.tick = time.Duration(tick.Nano())
	l.addresses, err = ebpf.NewMap(&ebpf.MapSpec{Name: "pagurus_along", Type: ebpf.Hash, KeySize: addressBytes, ValueSize: 4, MaxEntries: MaxAddresses})
	if err != nil {
		return err
	}
	if l.counts, err = ebpf.NewMap(&ebpf.MapSpec{Name: "pagurus_counts", Type: ebpf.Array, KeySize: 4, ValueSize: countBytes, MaxEntries: 1}); err != nil {
		return err
	}
	spec, err := program(l.layout, l.addresses, l.counts)
	if err != nil {
		return err
	}
	if l.program, err = ebpf.NewProgram(spec); err != nil {
		return err
	}
	l.iterator, err = link.AttachIter(link.IterOptions{Program: l.program})
	return err
}

// Close unloads the program. It may be nil.
func (l *Lister) Close() error {
	if l == nil {
		return nil
	}
	var errs []error
	if l.iterator != nil {
		errs = append(errs, l.iterator.Close())
	}
	if l.program != nil {
		errs = append(errs, l.program.Close())
	}
	for _, m := range []*ebpf.Map{l.addresses, l.counts} {
		if m != nil {
			errs = append(errs, m.Close())
		}
	}
	return errors.Join(errs...)
}

// List lists those of local addresses, up to a limit, and counts the others: those above it, and
// those that cannot be restored as they are, bound to a device, or signed (RFC 2385, RFC 5925).
// The kernel goes through all places for sockets that it has: that takes some milliseconds on a machine
// with much memory.
func (l *Lister) List(local []netip.Addr, limit int) (all []tcprepair.TimeWait, others int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer func() { err = errors.Join(err, l.forget(local)) }()
	for _, a := range local {
		if err := l.addresses.Put(key(a), uint32(1)); err != nil {
			return nil, 0, fmt.Errorf("asking for %v: %w", a, err)
		}
	}
	counts := make([]byte, countBytes)
	binary.NativeEndian.PutUint64(counts[countLimit:], uint64(max(limit, 0)))
	if err := l.counts.Put(uint32(0), counts); err != nil {
		return nil, 0, fmt.Errorf("preparing to count: %w", err)
	}
	data, err := l.read()
	if err != nil {
		return nil, 0, fmt.Errorf("iterating over TCP sockets: %w", err)
	}
	if err := l.counts.Lookup(uint32(0), &counts); err != nil {
		return nil, 0, fmt.Errorf("asking how many there are: %w", err)
	}
	others = int(binary.NativeEndian.Uint64(counts[countMore:]))
	for size := l.layout.record(); len(data) >= size; data = data[size:] {
		if w, ok := l.timeWait(data[:size]); ok {
			all = append(all, w)
		} else {
			others++
		}
	}
	return all, others, nil
}

func (l *Lister) read() ([]byte, error) {
	file, err := l.iterator.Open()
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return io.ReadAll(file)
}

// forget empties the map of addresses.
func (l *Lister) forget(local []netip.Addr) error {
	var errs []error
	for _, a := range local {
		if err := l.addresses.Delete(key(a)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// timeWait is that of a record, if it can be restored.
func (l *Lister) timeWait(record []byte) (w tcprepair.TimeWait, ok bool) {
	f, b := l.layout, record[recordSocket:]
	if f.device.Number(b) != 0 || f.md5.Number(b) != 0 || f.ao.Number(b) != 0 {
		return w, false
	}
	now := binary.NativeEndian.Uint64(record[recordNow:])
	left := int64(f.expires.Number(b) - binary.NativeEndian.Uint64(record[recordJiffies:]))
	w = tcprepair.TimeWait{
		FinWait: f.substate.Number(b) == uint64(tcprepair.FinWait2), Reuse: f.reuse.Number(b) != 0,
		SendNext: uint32(f.sendNext.Number(b)), ReceiveNext: uint32(f.receiveNext.Number(b)),
		Window: uint32(f.window.Number(b)), ReceiveScale: uint8(f.scale.Number(b)),
		Timestamps: f.stamp.Number(b) != 0,
		Mark:       uint32(f.mark.Number(b)), Priority: uint32(f.priority.Number(b)), TOS: uint8(f.tos.Number(b)),
		Left: time.Duration(max(left, 0)) * l.tick,
	}
	if w.Timestamps {
		w.Recent, w.Timestamp = uint32(f.recent.Number(b)), timestamp(now, uint32(f.offset.Number(b)), f.micro.Number(b) != 0)
	}
	port, peer := uint16(f.port.Number(b)), binary.BigEndian.Uint16(f.dport.Bytes(b))
	from, to := netip.AddrFrom4([4]byte(f.saddr.Bytes(b))), netip.AddrFrom4([4]byte(f.daddr.Bytes(b)))
	if w.IPv6 = f.family.Number(b) == unix.AF_INET6; w.IPv6 {
		from, to = netip.AddrFrom16([16]byte(f.saddr6.Bytes(b))), netip.AddrFrom16([16]byte(f.daddr6.Bytes(b)))
	}
	w.Local, w.Remote = netip.AddrPortFrom(from, port), netip.AddrPortFrom(to, peer)
	return w, w.Validate() == nil
}

// timestamp is what getsockopt(2) would tell (TCP_TIMESTAMP; tcp_clock_ts, include/net/tcp.h): its lowest
// bit says whether it counts microseconds.
func timestamp(now uint64, offset uint32, micro bool) uint32 {
	if micro {
		return (uint32(now/1e3) + offset) | 1
	}
	return (uint32(now/1e6) + offset) &^ 1
}
