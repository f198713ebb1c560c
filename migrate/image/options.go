package image

import (
	"encoding/binary"
	"slices"

	"github.com/pagurus-project/pagurus/tcprepair/inet"
)

// A writtenImage is an image as it crosses: a thousand connections have forty options each, of
// which most are the same, so each is written once.
type writtenImage struct {
	*Image
	Options []inet.Option `cbor:"options,omitempty"`
	// Used are the options of each TCP socket among the files, as unsigned varints: their
	// places in Options.
	Used [][]byte `cbor:"used,omitempty"`
}

// written leaves the image as it is.
func (m *Image) written() *writtenImage {
	type key struct {
		level, name int
		value       string
	}
	short := *m
	w := &writtenImage{Image: &short}
	short.Files = slices.Clone(m.Files)
	places := make(map[key]uint64)
	for i := range short.Files {
		f := &short.Files[i]
		if f.TCP == nil {
			continue
		}
		var used []byte
		for _, o := range f.TCP.Options {
			k := key{o.Level, o.Name, string(o.Value)}
			place, ok := places[k]
			if !ok {
				place = uint64(len(w.Options))
				places[k] = place
				w.Options = append(w.Options, o)
			}
			used = binary.AppendUvarint(used, place)
		}
		s := *f.TCP
		s.Options, f.TCP = nil, &s
		w.Used = append(w.Used, used)
	}
	return w
}

// image gives the sockets their options back.
func (w *writtenImage) image() (*Image, error) {
	m, used := w.Image, w.Used
	known := make(map[string][]inet.Option) // sockets that have the same ones share them
	for i := range m.Files {
		s := m.Files[i].TCP
		if s == nil {
			continue
		}
		if len(used) == 0 {
			return nil, invalid("a TCP socket without a word about its options")
		}
		options, ok := known[string(used[0])]
		for rest := used[0]; !ok && len(rest) > 0; {
			place, n := binary.Uvarint(rest)
			if n <= 0 || place >= uint64(len(w.Options)) {
				return nil, invalid("options of file %d that are not there", i)
			}
			options, rest = append(options, w.Options[place]), rest[n:]
		}
		known[string(used[0])] = options
		s.Options, used = options, used[1:]
	}
	if len(used) > 0 {
		return nil, invalid("options of %d sockets that are not there", len(used))
	}
	return m, nil
}
