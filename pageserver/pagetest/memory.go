package pagetest

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/pagurus-project/pagurus/pageserver"
)

// Memory is sparse memory, a [pageserver.Source] and a [pageserver.Sink]. Its
// methods may be called from any goroutine. The zero value is empty and ready.
type Memory struct {
	mu    sync.RWMutex
	pages map[address]*page
}

var (
	_ pageserver.Source = (*Memory)(nil)
	_ pageserver.Sink   = (*Memory)(nil)
)

type address struct {
	space pageserver.SpaceID
	page  pageserver.PageNo
}

type page = [pageserver.PageSize]byte

// Set writes content at the beginning of a page; the rest of it is zero.
func (m *Memory) Set(space pageserver.SpaceID, no pageserver.PageNo, content []byte) {
	p := new(page)
	copy(p[:], content)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.set(space, no, p)
}

func (m *Memory) set(space pageserver.SpaceID, no pageserver.PageNo, p *page) {
	if m.pages == nil {
		m.pages = make(map[address]*page)
	}
	m.pages[address{space, no}] = p
}

// Remove makes a page vanish.
func (m *Memory) Remove(space pageserver.SpaceID, no pageserver.PageNo) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.pages, address{space, no})
}

// Page returns a copy of a page, nil if there is none.
func (m *Memory) Page(space pageserver.SpaceID, no pageserver.PageNo) []byte {
	m.mu.RLock()
	defer m.mu.RUnlock()
	p := m.pages[address{space, no}]
	if p == nil {
		return nil
	}
	return slices.Clone(p[:])
}

// Runs returns all pages that there are, in order, adjacent ones joined.
func (m *Memory) Runs() []pageserver.Run {
	m.mu.RLock()
	defer m.mu.RUnlock()
	addresses := slices.SortedFunc(maps.Keys(m.pages), func(a, b address) int {
		return cmp.Or(cmp.Compare(a.space, b.space), cmp.Compare(a.page, b.page))
	})
	var runs []pageserver.Run
	for _, a := range addresses {
		if n := len(runs); n > 0 {
			last := &runs[n-1]
			if last.Space == a.space && last.First+pageserver.PageNo(last.Pages) == a.page {
				last.Pages++
				continue
			}
		}
		runs = append(runs, pageserver.Run{Space: a.space, Range: pageserver.Range{First: a.page, Pages: 1}})
	}
	return runs
}

// Differs says where m and other differ first, or nothing if they are equal. A page
// that is not there differs from one of zeros.
func (m *Memory) Differs(other *Memory) string {
	a, b := m.Runs(), other.Runs()
	if !slices.Equal(a, b) {
		return fmt.Sprintf("pages %v and %v", a, b)
	}
	for _, run := range a {
		for i := range pageserver.PageNo(run.Pages) {
			if no := run.First + i; !slices.Equal(m.Page(run.Space, no), other.Page(run.Space, no)) {
				return fmt.Sprintf("content of page %#x of space %d", no, run.Space)
			}
		}
	}
	return ""
}

// Read implements [pageserver.Source].
func (m *Memory) Read(space pageserver.SpaceID, ranges []pageserver.Range, buf []byte) (missing []pageserver.Range, err error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	for _, r := range ranges {
		for i := range pageserver.PageNo(r.Pages) {
			if p := m.pages[address{space, r.First + i}]; p != nil {
				copy(buf, p[:])
			} else {
				missing = append(missing, pageserver.Range{First: r.First + i, Pages: 1})
			}
			buf = buf[pageserver.PageSize:]
		}
	}
	return missing, nil
}

// Write implements [pageserver.Sink].
func (m *Memory) Write(space pageserver.SpaceID, ranges []pageserver.Range, buf []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range ranges {
		for i := range pageserver.PageNo(r.Pages) {
			m.set(space, r.First+i, (*page)(slices.Clone(buf[:pageserver.PageSize])))
			buf = buf[pageserver.PageSize:]
		}
	}
	return nil
}

// Zero implements [pageserver.Sink].
func (m *Memory) Zero(space pageserver.SpaceID, ranges []pageserver.Range) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range ranges {
		for i := range pageserver.PageNo(r.Pages) {
			m.set(space, r.First+i, new(page))
		}
	}
	return nil
}

// Drop implements [pageserver.Sink].
func (m *Memory) Drop(space pageserver.SpaceID, ranges []pageserver.Range) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range ranges {
		for i := range pageserver.PageNo(r.Pages) {
			delete(m.pages, address{space, r.First + i})
		}
	}
	return nil
}
