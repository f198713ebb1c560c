package image

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pagurus-project/pagurus/tcprepair"
	"github.com/pagurus-project/pagurus/tcprepair/inet"
)

func withSockets() *Image {
	m := sample()
	for _, options := range [][]inet.Option{
		{{Level: 1, Name: 2, Value: []byte{1, 0, 0, 0}}, {Level: 6, Name: 1, Value: []byte{1, 0, 0, 0}}},
		nil,
		{{Level: 1, Name: 2, Value: []byte{1, 0, 0, 0}}, {Level: 6, Name: 1, Value: []byte{0, 0, 0, 0}}},
	} {
		m.Files = append(m.Files, File{
			Kind: FileTCP, Object: None, Pipe: None, Socket: None,
			TCP: &tcprepair.Socket{State: tcprepair.Listen, Local: netip.MustParseAddrPort("10.0.0.1:80"), Backlog: 1, Options: options},
		})
	}
	return m
}

// Options that sockets have in common are written once, and are each socket's own again.
func TestOptionsOfManySockets(t *testing.T) {
	m := withSockets()
	before := withSockets()
	data, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before.Files, m.Files, sameAs); diff != "" {
		t.Errorf("writing has changed the image:\n%s", diff)
	}
	got, err := Decode(data)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(m, got, sameAs); diff != "" {
		t.Errorf("image (-want +got):\n%s", diff)
	}
	if w := m.written(); len(w.Options) != 3 || len(w.Used) != 3 {
		t.Errorf("%d options of %d sockets are written", len(w.Options), len(w.Used))
	}
}

// What says nonsense about options is refused.
func TestOptionsOfSocketsThatAreNotThere(t *testing.T) {
	for name, spoil := range map[string]func(*writtenImage){
		"too few sockets":     func(w *writtenImage) { w.Used = w.Used[:2] },
		"too many sockets":    func(w *writtenImage) { w.Used = append(w.Used, nil) },
		"beyond the list":     func(w *writtenImage) { w.Used[1] = []byte{3} },
		"a number is cut off": func(w *writtenImage) { w.Used[1] = []byte{0x80} },
		"a number is endless": func(w *writtenImage) { w.Used[1] = []byte{255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1} },
	} {
		w := withSockets().written()
		w.Version = Version
		spoil(w)
		data, err := encode(w)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Decode(data); err == nil {
			t.Errorf("%s: nothing is wrong", name)
		}
	}
}
