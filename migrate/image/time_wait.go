package image

import "github.com/pagurus-project/pagurus/tcprepair"

// MaxTimeWaits bounds how many connections that have ended go along: a busy server has
// hundreds of thousands (tcp_max_tw_buckets), and the state crosses while it stands still.
const MaxTimeWaits = 10_000

// TimeWaits are the connections at service addresses that go along which have ended, and
// which the kernel remembers.
type TimeWaits struct {
	All    []tcprepair.TimeWait `cbor:"all,omitempty"`
	Others int                  `cbor:"others,omitempty"` // that do not go along
	Failed string               `cbor:"failed,omitempty"` // why nobody knows of any
}

func (w *TimeWaits) validate() error {
	if len(w.All) > MaxTimeWaits || w.Others < 0 {
		return invalid("%d connections that have ended, and %d others", len(w.All), w.Others)
	}
	for i := range w.All {
		if err := w.All[i].Validate(); err != nil {
			return err
		}
	}
	return nil
}
