package resource

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate"
	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/tcprepair"
	"github.com/pagurus-project/pagurus/tcprepair/inet"
)

// Addresses to which sockets are bound go along, and those that are asked for.
func TestAddressesAlong(t *testing.T) {
	four, six := netip.MustParsePrefix("10.0.0.100/24"), netip.MustParsePrefix("fd00::100/64")
	service := []netip.Prefix{four, six}
	listener := func(local string, only6 bool) image.File {
		s := &tcprepair.Socket{State: tcprepair.Listen, Local: netip.MustParseAddrPort(local)}
		s.IPv6 = s.Local.Addr().Is6()
		if only6 {
			s.Options = []inet.Option{{Level: unix.SOL_IPV6, Name: unix.IPV6_V6ONLY, Value: []byte{1, 0, 0, 0}}}
		}
		return image.File{TCP: s}
	}
	bound := listener("10.0.0.100:80", false)
	bound.TCP.State = tcprepair.Closed
	for name, tt := range map[string]struct {
		files []image.File
		asked []string
		want  []netip.Prefix
		codes []migrate.Code
	}{
		"nothing":           {nil, nil, nil, nil},
		"another address":   {[]image.File{listener("10.0.0.1:80", false), {}}, nil, nil, nil},
		"IPv4":              {[]image.File{listener("10.0.0.100:80", false)}, nil, []netip.Prefix{four}, nil},
		"bound":             {[]image.File{bound}, nil, []netip.Prefix{four}, nil},
		"IPv4 by IPv6":      {[]image.File{listener("[::ffff:10.0.0.100]:80", false)}, nil, []netip.Prefix{four}, nil},
		"IPv6":              {[]image.File{listener("[fd00::100]:80", false)}, nil, []netip.Prefix{six}, nil},
		"asked":             {nil, []string{"fd00::100", "10.0.0.100"}, service, nil},
		"asked, not there":  {nil, []string{"10.0.0.101"}, nil, []migrate.Code{migrate.CodeAddressMissing}},
		"all of IPv4":       {[]image.File{listener("0.0.0.0:80", false)}, nil, nil, []migrate.Code{migrate.CodeAddressStays}},
		"all":               {[]image.File{listener("[::]:80", false)}, nil, nil, []migrate.Code{migrate.CodeAddressStays, migrate.CodeAddressStays}},
		"all of IPv6":       {[]image.File{listener("[::]:80", true)}, nil, nil, []migrate.Code{migrate.CodeAddressStays}},
		"all, one asked":    {[]image.File{listener("[::]:80", false)}, []string{"10.0.0.100"}, []netip.Prefix{four}, []migrate.Code{migrate.CodeAddressStays}},
		"all, and one more": {[]image.File{listener("0.0.0.0:80", false), listener("10.0.0.100:81", false)}, nil, []netip.Prefix{four}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			var asked []netip.Addr
			for _, text := range tt.asked {
				asked = append(asked, netip.MustParseAddr(text))
			}
			d := NewTreeDump(image.Host{}, Readers{}, nil)
			got := d.AddressesAlong(&image.Image{Files: tt.files}, service, asked)
			if diff := cmp.Diff(tt.want, got, cmpopts.EquateComparable(netip.Prefix{}), cmpopts.EquateEmpty()); diff != "" {
				t.Error(diff)
			}
			var codes []migrate.Code
			for _, f := range append(d.Blockers, d.Warnings...) {
				codes = append(codes, f.Code)
			}
			if !cmp.Equal(tt.codes, codes) {
				t.Errorf("found %v, want %v", codes, tt.codes)
			}
		})
	}
}

// Another process that has a socket at an address is in the way of its going along;
// what belongs to the tree is not, and neither is who listens on all addresses.
func TestAddressInUse(t *testing.T) {
	const a = "127.0.0.123" // of this machine for itself, and nobody's
	along := []netip.Prefix{netip.MustParsePrefix(a + "/8")}
	blockers := func(pids ...int) []migrate.Finding {
		t.Helper()
		d := NewTreeDump(image.Host{}, Readers{}, nil)
		if err := d.CheckAddressesAlong(along, pids); err != nil {
			t.Fatal(err)
		}
		return d.Blockers
	}
	all, err := net.Listen("tcp4", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer all.Close()
	if got := blockers(); len(got) > 0 {
		t.Errorf("who listens on all addresses is in the way: %v", got)
	}
	open := map[string]func() (interface{ Close() error }, string, error){
		"TCP": func() (interface{ Close() error }, string, error) {
			l, err := net.Listen("tcp4", a+":0")
			if err != nil {
				return nil, "", err
			}
			return l, l.Addr().String(), nil
		},
		"TCP connection": func() (interface{ Close() error }, string, error) {
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(a)}}
			c, err := d.Dial("tcp4", fmt.Sprintf("127.0.0.1:%d", all.Addr().(*net.TCPAddr).Port))
			if err != nil {
				return nil, "", err
			}
			return c, c.LocalAddr().String(), nil
		},
		"UDP": func() (interface{ Close() error }, string, error) {
			c, err := net.ListenPacket("udp4", a+":0")
			if err != nil {
				return nil, "", err
			}
			return c, c.LocalAddr().String(), nil
		},
		"TCP by IPv6": func() (interface{ Close() error }, string, error) {
			fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return nil, "", err
			}
			f := os.NewFile(uintptr(fd), "socket")
			err = unix.Bind(fd, &unix.SockaddrInet6{Addr: netip.MustParseAddr("::ffff:" + a).As16()})
			if err == nil {
				err = unix.Listen(fd, 1)
			}
			return f, a, err
		},
	}
	for name, f := range open {
		t.Run(name, func(t *testing.T) {
			s, at, err := f()
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			got := blockers()
			who := fmt.Sprintf("process %d (", os.Getpid())
			if len(got) != 1 || got[0].Code != migrate.CodeAddressInUse || !strings.Contains(got[0].Detail, who) || !strings.Contains(got[0].Detail, at) {
				t.Errorf("found %v, not %s at %s", got, who, at)
			}
			if got := blockers(os.Getpid()); len(got) > 0 {
				t.Errorf("its own: %v", got)
			}
		})
	}
}
