package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"sync"

	"github.com/fxamacker/cbor/v2"

	"github.com/pagurus-project/pagurus/migrate/image"
)

// Kinds of messages of the page stream.
const (
	KindLayout  uint8 = 1 // image.Layout, before a round's pages
	KindState   uint8 = 2 // State, after the last round's
	KindSignals uint8 = 3 // Signals, after COMMIT
	KindBarrier uint8 = 4 // EncodeBarrier, after a round before the last: answered with Placed
	KindQueues  uint8 = 5 // image.AcceptQueues, as the answer to Accepting
)

// EncodeBarrier writes the number of a round down.
func EncodeBarrier(round uint32) []byte { return binary.LittleEndian.AppendUint32(nil, round) }

// DecodeBarrier reads the number of a round.
func DecodeBarrier(data []byte) (uint32, error) {
	if len(data) != 4 {
		return 0, fmt.Errorf("decoding a barrier of %d bytes", len(data))
	}
	return binary.LittleEndian.Uint32(data), nil
}

// Hello is the first thing that a source sends.
type Hello struct {
	Migration string `cbor:"migration"`
	Epoch     uint64 `cbor:"epoch"`
	Token     []byte `cbor:"token"`
}

// ReplyKind says what a Reply is.
type ReplyKind string

const (
	Welcome  ReplyKind = "welcome"
	Placed   ReplyKind = "placed"   // Round: everything of it is in its place
	Differs  ReplyKind = "differs"  // Runs: they are to be sent again, and the state after them
	Prepared ReplyKind = "prepared" // everything is built; what is left is to thaw
	// After COMMIT, before the process runs: the source's listeners are to be emptied, which
	// cannot be undone.
	Accepting ReplyKind = "accepting"
	Running   ReplyKind = "running" // after COMMIT: the process runs
	Failed    ReplyKind = "failed"  // Reason: the migration cannot go on here
)

// Reply is what a destination says.
type Reply struct {
	Kind   ReplyKind `cbor:"kind"`
	Round  uint32    `cbor:"round,omitempty"`
	Reason string    `cbor:"reason,omitempty"`
	// Took is, of Prepared, how long ago the state was taken in, in nanoseconds.
	Took int64 `cbor:"took,omitempty"`
	// Addresses are, of Prepared, where the network finds the host.
	Addresses []netip.Addr `cbor:"addresses,omitempty"`
	// Runs are, of Differs, pages that are not as the source has them: some, if they
	// are too many for one reply.
	Runs []Run `cbor:"runs,omitempty"`
}

// MaxRuns is how many a reply can name.
const MaxRuns = 1000

// State is what crosses after the last pages.
type State struct {
	Image []byte `cbor:"image"` // image.Image, encoded by itself
	// Verify is nil unless all of the memory is to be compared.
	Verify *Verify `cbor:"verify,omitempty"`
}

// Verify is what the source's memory consisted of while it was frozen.
type Verify struct {
	Runs       []Run  `cbor:"runs"`
	ChunkPages uint64 `cbor:"chunk_pages"` // pages that a digest covers, counted through all runs
	// Repair asks for the chunks that differ, to be sent again, where otherwise a
	// difference is the end.
	Repair  bool     `cbor:"repair,omitempty"`
	Digests []uint64 `cbor:"digests"` // pageserver.DigestChunks of the runs
}

// Run is a run of pages in a space.
type Run struct {
	Space uint32 `cbor:"space"`
	First uint64 `cbor:"first"`
	Pages uint64 `cbor:"pages"`
}

// Signals are those that reached the frozen source after its dump.
type Signals struct {
	Processes []ProcessSignals `cbor:"processes"`
}

// ProcessSignals are struct siginfo (signal(7)) of one process.
type ProcessSignals struct {
	PID     int             `cbor:"pid"`
	Shared  [][]byte        `cbor:"shared"` // for the process
	Threads []ThreadSignals `cbor:"threads"`
}

// ThreadSignals are those for one thread.
type ThreadSignals struct {
	TID     int      `cbor:"tid"`
	Pending [][]byte `cbor:"pending"`
}

// Empty reports whether there are none.
func (s *Signals) Empty() bool {
	for _, p := range s.Processes {
		if len(p.Shared) > 0 {
			return false
		}
		for _, t := range p.Threads {
			if len(t.Pending) > 0 {
				return false
			}
		}
	}
	return true
}

// Bounds of what is decoded.
const (
	maxFrameBytes  = 64 << 10
	maxReasonBytes = 4 << 10
	maxElements    = 1 << 22
	siginfoBytes   = 128
	maxPages       = 1 << 36 // of 4 KiB: the 48 bits of an address
)

var decMode = sync.OnceValue(func() cbor.DecMode {
	mode, err := cbor.DecOptions{
		DupMapKey:         cbor.DupMapKeyEnforcedAPF,
		MaxNestedLevels:   8,
		MaxArrayElements:  maxElements,
		MaxMapPairs:       64,
		IndefLength:       cbor.IndefLengthForbidden,
		TagsMd:            cbor.TagsForbidden,
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
	}.DecMode()
	if err != nil {
		panic(err) // the options are constants
	}
	return mode
})

// WriteHello opens a page connection.
func WriteHello(w io.Writer, h Hello) error { return writeFrame(w, h) }

// ReadHello reads what a connection is about.
func ReadHello(r io.Reader) (Hello, error) {
	var h Hello
	if err := readFrame(r, &h); err != nil {
		return h, err
	}
	if h.Migration == "" || len(h.Token) == 0 {
		return h, errors.New("reading a greeting: it names no migration or brings no token")
	}
	return h, nil
}

// WriteReply sends one reply. A reason may hold the names of files, which are
// any bytes, and be of any length; it is made to fit.
func WriteReply(w io.Writer, r Reply) error {
	r.Runs = r.Runs[:min(len(r.Runs), MaxRuns)]
	r.Reason = strings.ToValidUTF8(r.Reason[:min(len(r.Reason), maxReasonBytes)], "?")
	return writeFrame(w, r)
}

// ReadReply reads the next reply. It returns io.EOF where the destination has
// closed its direction.
func ReadReply(r io.Reader) (Reply, error) {
	var reply Reply
	if err := readFrame(r, &reply); err != nil {
		return reply, err
	}
	if err := validateRuns(reply.Runs); err != nil {
		return reply, fmt.Errorf("reading a reply: %w", err)
	}
	switch reply.Kind {
	case Welcome, Placed, Differs, Prepared, Accepting, Running, Failed:
		return reply, nil
	}
	return reply, fmt.Errorf("reading a reply: its kind %q is unknown", reply.Kind)
}

func writeFrame(w io.Writer, v any) error {
	body, err := cbor.Marshal(v)
	if err != nil {
		return err
	}
	if len(body) > maxFrameBytes {
		return fmt.Errorf("a frame of %d bytes is longer than %d", len(body), maxFrameBytes)
	}
	_, err = w.Write(append(binary.LittleEndian.AppendUint32(nil, uint32(len(body))), body...))
	return err
}

func readFrame(r io.Reader, v any) error {
	var size [4]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return err
	}
	n := binary.LittleEndian.Uint32(size[:])
	if n > maxFrameBytes {
		return fmt.Errorf("reading a frame: %d bytes are more than %d", n, maxFrameBytes)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return fmt.Errorf("reading a frame: %w", err)
	}
	if err := decMode().Unmarshal(body, v); err != nil {
		return fmt.Errorf("reading a frame: %w", err)
	}
	return nil
}

// Encode writes the state down.
func (s *State) Encode() ([]byte, error) { return cbor.Marshal(s) }

// DecodeState reads a state that may come from anybody, and the image in it.
func DecodeState(data []byte) (*image.Image, *Verify, error) {
	var s State
	if err := decMode().Unmarshal(data, &s); err != nil {
		return nil, nil, fmt.Errorf("decoding a state: %w", err)
	}
	m, err := image.Decode(s.Image)
	if err != nil {
		return nil, nil, err
	}
	if v := s.Verify; v != nil {
		if err := v.validate(); err != nil {
			return nil, nil, fmt.Errorf("decoding a state: %w", err)
		}
	}
	return m, s.Verify, nil
}

func (v *Verify) validate() error {
	if v.ChunkPages == 0 || v.ChunkPages > maxPages {
		return errors.New("chunks to compare have no pages, or too many")
	}
	if err := validateRuns(v.Runs); err != nil {
		return err
	}
	var pages uint64
	for _, r := range v.Runs {
		pages += r.Pages
	}
	chunks := (pages + v.ChunkPages - 1) / v.ChunkPages
	if chunks != uint64(len(v.Digests)) {
		return fmt.Errorf("%d digests for %d chunks to compare", len(v.Digests), chunks)
	}
	return nil
}

func validateRuns(runs []Run) error {
	var pages uint64
	for _, r := range runs {
		if r.Pages == 0 || r.Pages > maxPages || r.First > maxPages || r.First+r.Pages > maxPages {
			return fmt.Errorf("pages %d+%d are out of range", r.First, r.Pages)
		}
		if pages += r.Pages; pages > maxPages {
			return fmt.Errorf("more than %d pages", uint64(maxPages))
		}
	}
	return nil
}

// Encode writes the signals down.
func (s *Signals) Encode() ([]byte, error) { return cbor.Marshal(s) }

// DecodeSignals reads signals that may come from anybody.
func DecodeSignals(data []byte) (*Signals, error) {
	var s Signals
	if err := decMode().Unmarshal(data, &s); err != nil {
		return nil, fmt.Errorf("decoding signals: %w", err)
	}
	for _, p := range s.Processes {
		lists := [][][]byte{p.Shared}
		for _, t := range p.Threads {
			lists = append(lists, t.Pending)
		}
		for _, list := range lists {
			for _, info := range list {
				if len(info) != siginfoBytes {
					return nil, fmt.Errorf("decoding signals: a siginfo of %d bytes", len(info))
				}
			}
		}
	}
	return &s, nil
}
