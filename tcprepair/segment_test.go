package tcprepair

import (
	"encoding/binary"
	"encoding/json"
	"net/netip"
	"testing"

	"github.com/pagurus-project/pagurus/tcprepair/inet"
)

// Summed up with its checksums, a packet is zero (RFC 1071).
func TestChecksums(t *testing.T) {
	for _, ends := range [][2]string{{"10.1.2.3:4", "192.168.0.1:65535"}, {"[2001:db8::1]:80", "[fe80::2]:1"}, {"[::ffff:10.0.0.1]:1", "[::ffff:10.0.0.2]:2"}} {
		g := segment{
			from: netip.MustParseAddrPort(ends[0]), to: netip.MustParseAddrPort(ends[1]),
			seq: 0xfedcba98, ack: 0x01234567, flags: flagACK | flagFIN, window: 0xabcd, data: []byte("odd"),
		}
		packet := g.packet()
		length := header6Bytes
		var addresses []byte
		if packet[0]>>4 == 4 {
			length = headerBytes
			if sum := inet.Checksum(packet[:length]); sum != 0 {
				t.Errorf("%v: the IP header sums up to %#x", ends, sum)
			}
			addresses = packet[12:20]
		} else {
			addresses = packet[8:40]
		}
		pseudo := binary.BigEndian.AppendUint32(append([]byte(nil), addresses...), protocolTCP)
		pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(len(packet)-length))
		if sum := inet.Checksum(pseudo, packet[length:]); sum != 0 {
			t.Errorf("%v: the segment sums up to %#x", ends, sum)
		}
	}
}

// What passes Validate is consistent enough to be taken apart by Restore.
func FuzzValidate(f *testing.F) {
	f.Add([]byte(`{"State":1,"Local":"10.0.0.1:80","Remote":"10.0.0.2:9","Receive":{"Seq":4294967290,"Data":"aGVsbG8="},"Send":{"Data":"aGVsbG8="},"Unsent":2,"Negotiated":{"MSS":1460}}`))
	f.Add([]byte(`{"State":10,"IPv6":true,"MPTCP":true,"Local":"[::]:80","Backlog":128}`))
	f.Add([]byte(`{"State":7,"Local":"10.0.0.1:80","Ended":true,"Receive":{"Data":"aGVsbG8="}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var s Socket
		if json.Unmarshal(data, &s) != nil || s.Validate() != nil {
			return
		}
		_ = s.Send.Data[:len(s.Send.Data)-s.Unsent]
		for i := range s.Options {
			if inet.TCP.Kind(s.Options[i].Level, s.Options[i].Name) == nil {
				t.Errorf("option %v", s.Options[i])
			}
		}
		for _, a := range []netip.AddrPort{s.Local, s.Remote} {
			if !a.IsValid() {
				continue
			}
			if _, err := inet.Sockaddr(a, s.IPv6); err != nil {
				t.Errorf("address %v: %v", a, err)
			}
		}
	})
}
