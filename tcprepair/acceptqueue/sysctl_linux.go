package acceptqueue

import (
	"bytes"
	"fmt"
	"os"
	"sync"
)

// Settings of the network namespace of the thread that opens them
// (Documentation/networking/ip-sysctl.rst).
const (
	cookiesSetting = "/proc/sys/net/ipv4/tcp_syncookies"
	migrateSetting = "/proc/sys/net/ipv4/tcp_migrate_req"
)

// allowed are the settings that were turned on and are to be turned off, by their names and
// namespaces: how many need each.
var allowed = struct {
	sync.Mutex
	users map[string]int
}{users: make(map[string]int)}

// allow turns a setting on that is off. undo makes it what it was when nobody needs it any more;
// it is to be called from the same namespace.
func allow(setting string) (undo func() error, err error) {
	namespace, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("looking for the network namespace: %w", err)
	}
	key := namespace + setting
	allowed.Lock()
	defer allowed.Unlock()
	if allowed.users[key] == 0 {
		was, err := os.ReadFile(setting)
		if err != nil {
			return nil, fmt.Errorf("reading a setting: %w", err)
		}
		if string(bytes.TrimSpace(was)) != "0" {
			return func() error { return nil }, nil
		}
		if err := os.WriteFile(setting, []byte("1"), 0); err != nil {
			return nil, fmt.Errorf("changing a setting: %w", err)
		}
	}
	allowed.users[key]++
	return func() error {
		allowed.Lock()
		defer allowed.Unlock()
		if allowed.users[key]--; allowed.users[key] > 0 {
			return nil
		}
		delete(allowed.users, key)
		if err := os.WriteFile(setting, []byte("0"), 0); err != nil {
			return fmt.Errorf("changing a setting: %w", err)
		}
		return nil
	}, nil
}
