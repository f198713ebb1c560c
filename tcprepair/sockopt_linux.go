package tcprepair

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// longestOption is more than any value of an optionKind without a size.
const longestOption = 64

func (k *optionKind) get(fd int) ([]byte, error) {
	most := k.bytes
	if most == 0 {
		most = longestOption
	}
	value, err := getsockopt(fd, k.level, k.name, most)
	if err == nil && k.bytes == 0 {
		value = bytes.TrimRight(value, "\x00")
	}
	return value, err
}

// unknown reports an option that this kernel or this socket does not have.
func unknown(err error) bool {
	return errors.Is(err, unix.ENOPROTOOPT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL)
}

// options reads all options of a socket that is not in repair mode.
func options(fd int, ipv6 bool) ([]Option, error) {
	var all []Option
	for i := range kinds {
		k := &kinds[i]
		if !k.applies(ipv6) {
			continue
		}
		value, err := k.get(fd)
		if unknown(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", k.label, err)
		}
		all = append(all, Option{Level: k.level, Name: k.name, Value: value})
	}
	return all, nil
}

// setOptions sets those options of one phase that are not as they should be
// already: what a program never set needs no privilege to be given back. fresh is how
// they are in a new socket, as this one still is; nil: that is not known.
func setOptions(fd int, wanted []Option, fresh fresh, p phase) error {
	for i := range wanted {
		o := &wanted[i]
		k := kindOf(o.Level, o.Name)
		if k.phase != p {
			continue
		}
		if is, known := fresh[k]; known {
			if bytes.Equal(is, o.Value) {
				continue
			}
		} else if have, err := k.get(fd); err == nil && bytes.Equal(have, o.Value) {
			continue
		}
		if err := setsockopt(fd, o.Level, o.Name, o.Value); err != nil {
			return fmt.Errorf("setting %s: %w", k.label, err)
		}
	}
	return nil
}

func setsockopt(fd, level, name int, value []byte) error {
	return unix.SetsockoptString(fd, level, name, string(value))
}

func setInt(fd, level, name int, value uint32) error {
	return unix.SetsockoptInt(fd, level, name, int(int32(value)))
}

func getInt(fd, level, name int) (uint32, error) {
	value, err := unix.GetsockoptInt(fd, level, name)
	return uint32(value), err
}

// encode is a struct of 32-bit fields as the kernel has it.
func encode(fields ...uint32) []byte {
	var b []byte
	for _, f := range fields {
		b = binary.NativeEndian.AppendUint32(b, f)
	}
	return b
}

func decode(b []byte, fields ...*uint32) bool {
	if len(b) < 4*len(fields) {
		return false
	}
	for i, f := range fields {
		*f = binary.NativeEndian.Uint32(b[4*i:])
	}
	return true
}
