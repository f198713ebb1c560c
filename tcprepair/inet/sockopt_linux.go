package inet

import (
	"bytes"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Longest is more than any value of a Kind without a size.
const Longest = 64

// Get reads it from a socket.
func (k *Kind) Get(fd int) ([]byte, error) {
	most := k.Bytes
	if most == 0 {
		most = Longest
	}
	value, err := Get(fd, k.Level, k.Name, most)
	if err == nil && k.Bytes == 0 {
		value = bytes.TrimRight(value, "\x00")
	}
	return value, err
}

// Unknown reports an option that this kernel or this socket does not have.
func Unknown(err error) bool {
	return errors.Is(err, unix.ENOPROTOOPT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL)
}

// Read reads all options of a socket that is not in repair mode.
func (t *Table) Read(fd int, ipv6 bool) ([]Option, error) {
	var all []Option
	for i := range t.kinds {
		k := &t.kinds[i]
		if !k.applies(ipv6) {
			continue
		}
		value, err := k.Get(fd)
		if Unknown(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", k.Label, err)
		}
		all = append(all, Option{Level: k.Level, Name: k.Name, Value: value})
	}
	return all, nil
}

// Fresh is how options are in a new socket.
type Fresh map[*Kind][]byte

// Fresh looks at a new socket.
func (t *Table) Fresh(fd int, ipv6 bool) (Fresh, error) {
	all, err := t.Read(fd, ipv6)
	if err != nil {
		return nil, err
	}
	f := make(Fresh)
	for _, o := range all {
		f[t.Kind(o.Level, o.Name)] = o.Value
	}
	return f, nil
}

// Set sets those options of one phase that are not as they should be
// already: what a program never set needs no privilege to be given back. fresh is how
// they are in a new socket, as this one still is; nil: that is not known.
func (t *Table) Set(fd int, wanted []Option, fresh Fresh, p Phase) error {
	for i := range wanted {
		o := &wanted[i]
		k := t.Kind(o.Level, o.Name)
		if k.Phase != p {
			continue
		}
		if is, known := fresh[k]; known {
			if bytes.Equal(is, o.Value) {
				continue
			}
		} else if have, err := k.Get(fd); err == nil && bytes.Equal(have, o.Value) {
			continue
		}
		if err := Set(fd, o.Level, o.Name, o.Value); err != nil {
			return fmt.Errorf("setting %s: %w", k.Label, err)
		}
	}
	return nil
}

// Set is setsockopt(2) with a value as the kernel has it.
func Set(fd, level, name int, value []byte) error {
	return unix.SetsockoptString(fd, level, name, string(value))
}

// SetInt is setsockopt(2) with an unsigned number.
func SetInt(fd, level, name int, value uint32) error {
	return unix.SetsockoptInt(fd, level, name, int(int32(value)))
}

// GetInt is getsockopt(2) of an unsigned number.
func GetInt(fd, level, name int) (uint32, error) {
	value, err := unix.GetsockoptInt(fd, level, name)
	return uint32(value), err
}
