package acceptqueue

import (
	"bytes"
	"fmt"
	"os"
)

// Settings of the network namespace of the thread that opens them
// (Documentation/networking/ip-sysctl.rst).
const (
	cookiesSetting = "/proc/sys/net/ipv4/tcp_syncookies"
	migrateSetting = "/proc/sys/net/ipv4/tcp_migrate_req"
)

// allow turns a setting on that is off. undo makes it what it was.
func allow(setting string) (undo func() error, err error) {
	was, err := os.ReadFile(setting)
	if err != nil {
		return nil, fmt.Errorf("reading a setting: %w", err)
	}
	if was = bytes.TrimSpace(was); string(was) != "0" {
		return func() error { return nil }, nil
	}
	set := func(to []byte) error {
		if err := os.WriteFile(setting, to, 0); err != nil {
			return fmt.Errorf("changing a setting: %w", err)
		}
		return nil
	}
	return func() error { return set(was) }, set([]byte("1"))
}
