package main

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/pagurus-project/pagurus/e2e/workload/verdict"
)

// gosched is an ordinary Go program: goroutines that hand tokens round by
// channels and pipes, timers, and garbage. Numbers are consecutive everywhere,
// so what is lost, doubled or out of order shows.
type gosched struct {
	goroutines int
	journal    *journal

	rings []*ring
	ticks *ticks
	heap  *heap
}

func newGosched(flags *flag.FlagSet, j *journal) program {
	g := &gosched{journal: j}
	flags.IntVar(&g.goroutines, "goroutines", 200, "how many goroutines a ring has")
	return g
}

func (g *gosched) start() error {
	if g.goroutines < 2 {
		return fmt.Errorf("a ring of %d goroutines: it takes 2", g.goroutines)
	}
	byChannel, err := newRing("channel", g.goroutines, g.journal, func() (link, error) {
		return channelLink(make(chan int64, 1)), nil
	})
	if err != nil {
		return err
	}
	byPipe, err := newRing("pipe", min(g.goroutines, 16), g.journal, newPipeLink)
	if err != nil {
		return err
	}
	g.rings = []*ring{byChannel, byPipe}
	g.ticks = &ticks{journal: g.journal}
	g.heap = &heap{journal: g.journal}
	for _, r := range g.rings {
		r.start()
	}
	go g.ticks.run()
	go g.heap.run()
	return nil
}

// verify waits for each part to have got further than it was.
func (g *gosched) verify() findings {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	f := findings{counts: make(map[string]int64), threads: []verdict.Thread{}}
	for _, r := range g.rings {
		f.counts[r.name+" rounds"] = g.advance(ctx, r.name+" ring", r.rounds.value)
	}
	f.counts["ticks"] = g.advance(ctx, "ticker", g.ticks.count.value)
	f.counts["collections"] = g.advance(ctx, "heap", g.heap.rounds.value)
	f.counts["goroutines"] = int64(runtime.NumGoroutine())
	return f
}

func (g *gosched) advance(ctx context.Context, what string, value func() int64) int64 {
	first := value()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for value() == first {
		select {
		case <-tick.C:
		case <-ctx.Done():
			g.journal.problemf("the %s stands still", what)
			return first
		}
	}
	return value()
}

// A tally is a number that one goroutine counts up and others read.
type tally struct {
	mu sync.Mutex
	n  int64
}

func (t *tally) add() int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.n++
	return t.n
}

func (t *tally) value() int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.n
}

// A link carries tokens from one goroutine of a ring to the next.
type link interface {
	send(token int64) error
	receive() (int64, error)
}

type channelLink chan int64

func (c channelLink) send(token int64) error  { c <- token; return nil }
func (c channelLink) receive() (int64, error) { return <-c, nil }

// A pipeLink is non-blocking: the runtime waits for it with its own epoll.
type pipeLink struct{ r, w *os.File }

func newPipeLink() (link, error) {
	r, w, err := os.Pipe()
	return pipeLink{r, w}, err
}

func (p pipeLink) send(token int64) error {
	_, err := p.w.Write(binary.LittleEndian.AppendUint64(nil, uint64(token)))
	return err
}

func (p pipeLink) receive() (int64, error) {
	var b [8]byte
	_, err := io.ReadFull(p.r, b[:])
	return int64(binary.LittleEndian.Uint64(b[:])), err
}

// A ring hands one token round. Each goroutine adds 1, so each knows what must come.
type ring struct {
	name    string
	links   []link
	journal *journal
	rounds  tally
}

func newRing(name string, size int, j *journal, makeLink func() (link, error)) (*ring, error) {
	r := &ring{name: name, journal: j}
	for range size {
		l, err := makeLink()
		if err != nil {
			return nil, err
		}
		r.links = append(r.links, l)
	}
	return r, nil
}

func (r *ring) start() {
	for i := range r.links {
		go r.pass(i)
	}
}

func (r *ring) pass(i int) {
	from, to := r.links[i], r.links[(i+1)%len(r.links)]
	size := int64(len(r.links))
	want := int64(i)
	if i == 0 {
		// The token is made here and comes back as size.
		if err := to.send(1); err != nil {
			r.journal.problemf("%s ring: %v", r.name, err)
			return
		}
		want = size
	}
	for ; ; want += size {
		token, err := from.receive()
		if err == nil && token != want {
			err = fmt.Errorf("token %d and not %d", token, want)
		}
		if i == 0 {
			r.rounds.add()
			// A breath, so that it does not take the whole CPU.
			<-time.After(time.Millisecond)
		}
		if err = errors.Join(err, to.send(want+1)); err != nil {
			r.journal.problemf("%s ring, goroutine %d: %v", r.name, i, err)
			return
		}
	}
}

// ticks compares timers with the clock.
type ticks struct {
	journal *journal
	count   tally
}

func (t *ticks) run() {
	const period = 5 * time.Millisecond
	for {
		start := time.Now()
		fired := <-time.After(period)
		if passed := fired.Sub(start); passed < period {
			t.journal.problemf("a timer of %v fired after %v", period, passed)
		}
		t.count.add()
	}
}

// heap makes garbage beside a tree that stays, and checks the tree.
type heap struct {
	journal *journal
	rounds  tally
	root    *node
}

type node struct {
	left, right *node
	key         uint64
	payload     []byte
}

const heapDepth = 12

func (h *heap) run() {
	h.root = grow(1, heapDepth)
	for n := 0; ; n++ {
		// One branch is made anew each time.
		path, at := mix(uint64(n)), &h.root
		for range heapDepth / 2 {
			if path&1 == 0 {
				at = &(*at).left
			} else {
				at = &(*at).right
			}
			path >>= 1
		}
		*at = grow((*at).key, heapDepth-heapDepth/2)
		if err := h.root.check(1, heapDepth); err != nil {
			h.journal.problemf("%v", err)
		}
		if n%8 == 0 {
			runtime.GC()
		}
		h.rounds.add()
		<-time.After(10 * time.Millisecond)
	}
}

// grow makes a tree whose keys follow from their places.
func grow(key uint64, depth int) *node {
	if depth == 0 {
		return nil
	}
	payload := make([]byte, 64+key%64)
	for i := range payload {
		payload[i] = byte(mix(key) >> (i % 8 * 8))
	}
	return &node{grow(2*key, depth-1), grow(2*key+1, depth-1), key, payload}
}

func (n *node) check(key uint64, depth int) error {
	if depth == 0 {
		if n != nil {
			return fmt.Errorf("the tree has a node too many below %d", key/2)
		}
		return nil
	}
	if n == nil || n.key != key {
		return fmt.Errorf("the tree has no node %d", key)
	}
	for i, b := range n.payload {
		if b != byte(mix(key)>>(i%8*8)) {
			return fmt.Errorf("node %d has a wrong payload", key)
		}
	}
	return errors.Join(n.left.check(2*key, depth-1), n.right.check(2*key+1, depth-1))
}
