package image

import (
	"fmt"

	"github.com/pagurus-project/pagurus/tcprepair"
)

// AcceptQueues are connections that nobody has accepted when the process left.
type AcceptQueues struct {
	Queues []AcceptQueue `cbor:"queues"`
	Lost   []string      `cbor:"lost,omitempty"` // why, of those that could not be taken along
}

// An AcceptQueue is what waits in one listener, in order.
type AcceptQueue struct {
	PID         int                 `cbor:"pid"`
	FD          int                 `cbor:"fd"` // one of the listener's descriptors there
	Connections []*tcprepair.Socket `cbor:"connections"`
}

// Encode writes the queues down.
func (q *AcceptQueues) Encode() ([]byte, error) { return encode(q) }

// DecodeAcceptQueues reads queues that may come from anybody and checks them.
func DecodeAcceptQueues(data []byte) (*AcceptQueues, error) {
	var q AcceptQueues
	if err := decode(data, &q); err != nil {
		return nil, fmt.Errorf("decoding connections that wait: %w", err)
	}
	for _, queue := range q.Queues {
		for _, s := range queue.Connections {
			if s == nil || !s.State.Connected() {
				return nil, invalid("a connection that waits, and is none")
			}
			if err := s.Validate(); err != nil {
				return nil, fmt.Errorf("decoding connections that wait: %w", err)
			}
		}
	}
	return &q, nil
}
