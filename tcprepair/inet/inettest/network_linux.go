package inettest

import (
	"os"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// EnterNetwork gives the test's goroutine a network of its own with a loopback device, in which
// it runs beside other tests. The thread ends with it. Without root the test is skipped.
func EnterNetwork(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	t.Parallel()
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatalf("making a network namespace: %v", err)
	}
	SetUp(t, "lo")
}

// AddPair adds a pair of devices that are up.
func AddPair(t *testing.T, name, peer string) {
	t.Helper()
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: peer}); err != nil {
		t.Fatal(err)
	}
	SetUp(t, name, peer)
}

// SetUp lets devices work.
func SetUp(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		link, err := netlink.LinkByName(name)
		if err == nil {
			err = netlink.LinkSetUp(link)
		}
		if err != nil {
			t.Fatalf("setting %s up: %v", name, err)
		}
	}
}
