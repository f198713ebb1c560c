package resource

import (
	"os"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate/image"
)

// A netlink socket that is made again has its port, its groups, also those beyond the 32nd,
// and who it sends to.
func TestNetlinkAgain(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	for name, want := range map[string]image.Netlink{
		"new":    {Type: unix.SOCK_RAW},
		"bound":  {Type: unix.SOCK_DGRAM, Port: 4_000_001},
		"groups": {Type: unix.SOCK_RAW, Port: 4_000_002, Groups: []int{unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_NEXTHOP, unix.RTNLGRP_STATS}},
		"peer":   {Type: unix.SOCK_RAW, Port: 4_000_003, ToPort: 4_000_002, ToGroups: 4},
	} {
		t.Run(name, func(t *testing.T) {
			for range 2 { // what was read of the first is what the second is made of
				fd, err := makeNetlink(&want)
				if err != nil {
					t.Fatal(err)
				}
				again := image.Netlink{Type: want.Type}
				err = readNetlinkAddresses(&again, fd)
				if err != nil {
					t.Error(err)
				}
				slices.Sort(again.Groups)
				if diff := cmp.Diff(want, again); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
				if err := unix.Close(fd); err != nil {
					t.Fatal(err)
				}
				want = again
			}
		})
	}
}
