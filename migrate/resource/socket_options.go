package resource

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/tcprepair/inet"
)

// An optionName names an option of a socket that is not of the internet families.
type optionName struct{ level, name int }

// readSocketOptions reads those of them that the socket, on this kernel, has.
func readSocketOptions(fd int, names []optionName) ([]image.Option, error) {
	var all []image.Option
	for _, n := range names {
		value, err := inet.Get(fd, n.level, n.name, inet.Longest)
		if inet.Unknown(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reading option %d of level %d: %w", n.name, n.level, err)
		}
		all = append(all, image.Option{Level: n.level, Name: n.name, Value: value})
	}
	return all, nil
}

// setSocketOptions sets those that are not as they should be already: some undo others.
func (r *TreeRestore) setSocketOptions(fd int, options []image.Option) error {
	for _, o := range options {
		if have, err := inet.Get(fd, o.Level, o.Name, inet.Longest); err == nil && bytes.Equal(have, o.Value) {
			continue
		}
		name, value := o.Name, string(o.Value)
		if o.Level == unix.SOL_SOCKET && (name == unix.SO_SNDBUF || name == unix.SO_RCVBUF) {
			// The kernel doubles what it is given (socket(7)), and the limits on it
			// do not hold for what it was able to have at the source.
			if len(o.Value) != 4 {
				return fmt.Errorf("option %d has %d bytes", name, len(o.Value))
			}
			name = map[int]int{unix.SO_SNDBUF: unix.SO_SNDBUFFORCE, unix.SO_RCVBUF: unix.SO_RCVBUFFORCE}[name]
			value = string(binary.NativeEndian.AppendUint32(nil, binary.NativeEndian.Uint32(o.Value)/2))
		}
		if err := unix.SetsockoptString(fd, o.Level, name, value); err != nil {
			return fmt.Errorf("option %d: %w", o.Name, err)
		}
	}
	return nil
}
