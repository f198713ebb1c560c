package packet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/tcprepair/inet"
)

// told is what the kernel tells of a socket only in its list (sock_diag(7)).
type told struct {
	copyThreshold uint32
	memberships   []Membership
	rings, group  bool // of memory, and of sockets that share packets
}

// ask goes through the list: of a single packet socket the kernel cannot be asked
// (packet_diag_handler_dump, net/packet/diag.c).
func ask(inode uint32) (told, error) {
	conn, err := netlink.Dial(unix.NETLINK_SOCK_DIAG, nil)
	if err != nil {
		return told{}, fmt.Errorf("asking for packet sockets: %w", err)
	}
	defer conn.Close()
	request := make([]byte, diagReqBytes)
	request[0] = unix.AF_PACKET
	binary.NativeEndian.PutUint32(request[8:], showInfo|showMCList|showRings|showFanout)
	messages, err := conn.Execute(netlink.Message{Header: netlink.Header{Type: sockDiagByFamily, Flags: netlink.Request | netlink.Dump}, Data: request})
	if err != nil {
		return told{}, fmt.Errorf("asking for packet sockets: %w", err)
	}
	for _, m := range messages {
		if len(m.Data) < diagMsgBytes || binary.NativeEndian.Uint32(m.Data[4:]) != inode {
			continue
		}
		t, err := parse(m.Data[diagMsgBytes:])
		if err != nil {
			return t, fmt.Errorf("asking for packet sockets: %w", err)
		}
		return t, nil
	}
	return told{}, fmt.Errorf("asking for packet socket %d: %w", inode, fs.ErrNotExist)
}

// parse reads the attributes behind a struct packet_diag_msg.
func parse(data []byte) (told, error) {
	var t told
	attributes, err := netlink.NewAttributeDecoder(data)
	if err != nil {
		return t, err
	}
	known := 0
	for attributes.Next() {
		b := attributes.Bytes()
		switch attributes.Type() {
		case diagInfo:
			if len(b) < infoBytes {
				return t, fmt.Errorf("%d bytes about a packet socket", len(b))
			}
			t.copyThreshold = binary.NativeEndian.Uint32(b[infoCopyThresh:])
			known++
		case diagMCList:
			if t.memberships, err = parseMemberships(b); err != nil {
				return t, err
			}
			known++
		case diagRXRing, diagTXRing:
			t.rings = true
		case diagFanout:
			t.group = true
		}
	}
	if err := attributes.Err(); err != nil {
		return t, err
	}
	if known != 2 {
		return t, errors.New("an answer without a socket's memberships")
	}
	return t, nil
}

// parseMemberships reads structs packet_diag_mclist.
func parseMemberships(b []byte) (all []Membership, err error) {
	for ; len(b) >= mclistBytes; b = b[mclistBytes:] {
		m := Membership{Count: binary.NativeEndian.Uint32(b[4:]), Type: binary.NativeEndian.Uint16(b[8:])}
		device, err := net.InterfaceByIndex(int(binary.NativeEndian.Uint32(b)))
		if err != nil {
			return nil, fmt.Errorf("a packet socket with a membership of a device that is gone %w", inet.ErrUnsupported)
		}
		m.Device = device.Name
		if n := min(int(binary.NativeEndian.Uint16(b[10:])), addressBytes); n > 0 {
			m.Address = append(m.Address, b[12:12+n]...)
		}
		all = append(all, m)
	}
	return all, nil
}
