package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/pagurus-project/pagurus/coordinator/clustertest/certtest"
	"github.com/pagurus-project/pagurus/migrate/dirty"
	"github.com/pagurus-project/pagurus/migrate/freezer"
	"github.com/pagurus-project/pagurus/trust"
)

func TestMain(m *testing.M) {
	// memberlist does not wait for a probe that is under way when it shuts down.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/hashicorp/memberlist.(*Memberlist).probe"))
}

// write makes a configuration that works, but for what change does to its text.
func write(t *testing.T, change func(string) string) (path, dir string) {
	t.Helper()
	dir = t.TempDir()
	files := certtest.New(t).Files(t, trust.RoleAgent, "host-a")
	key := base64.StdEncoding.EncodeToString(make([]byte, 32))
	if err := os.WriteFile(filepath.Join(dir, "gossip.key"), []byte(key+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	content := fmt.Sprintf(`host = "host-a"
advertise = "127.0.0.1"
gossip_port = 0
grpc_port = 0
page_port = 0
join = ["127.0.0.1:1"]
gossip_key_file = "%[1]s/gossip.key"
sockets = ["%[1]s/agent.sock"]
state_dir = "%[1]s/state"
log_level = "error"

[tls]
ca = %[2]q
cert = %[3]q
key = %[4]q
`, dir, files.CA, files.Cert, files.Key)
	path = filepath.Join(dir, "agent.toml")
	if err := os.WriteFile(path, []byte(change(content)), 0o600); err != nil {
		t.Fatal(err)
	}
	return path, dir
}

// TestBootAndShutdown runs the program twice on one directory.
func TestBootAndShutdown(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("an agent needs root")
	}
	mount, err := freezer.Mount()
	if err != nil {
		t.Skip(err)
	}
	groups := filepath.Join(mount, fmt.Sprintf("pagurus-test-%d", os.Getpid()))
	t.Cleanup(func() {
		if err := os.Remove(groups); err != nil {
			t.Error(err)
		}
	})
	path, dir := write(t, func(s string) string { return fmt.Sprintf("cgroup = %q\n", groups) + s })
	for range 2 {
		ctx, cancel := context.WithCancel(t.Context())
		var stderr bytes.Buffer
		ended := make(chan int, 1)
		go func() { ended <- run(ctx, []string{"--config", path}, &bytes.Buffer{}, &stderr) }()
		awaitSocket(t, filepath.Join(dir, "agent.sock"))
		if _, err := os.Stat(groups); err != nil {
			t.Error(err)
		}
		cancel()
		if code := <-ended; code != exitDone {
			t.Errorf("ended with %d: %s", code, stderr.String())
		}
	}
}

// awaitSocket waits until a socket answers that no coordinator does.
func awaitSocket(t *testing.T, socket string) {
	t.Helper()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	defer transport.CloseIdleConnections()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	timeout := time.After(30 * time.Second)
	for {
		resp, err := transport.RoundTrip(must(http.NewRequestWithContext(t.Context(), http.MethodGet, "http://coordinator/v1/status", nil)))
		if err == nil {
			defer resp.Body.Close()
			var problem struct{ Code string }
			if err := json.NewDecoder(resp.Body).Decode(&problem); err != nil || problem.Code != "no-leader" {
				t.Errorf("answer %s: %+v, %v", resp.Status, problem, err)
			}
			return
		}
		select {
		case <-tick.C:
		case <-timeout:
			t.Fatalf("the socket does not answer: %v", err)
		}
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestRefusesWhatCannotWork(t *testing.T) {
	replace := func(from, to string) func(string) string {
		return func(s string) string { return strings.Replace(s, from, to, 1) }
	}
	for _, tt := range []struct {
		name   string
		change func(string) string
		want   string
	}{
		{"unknown key", replace("state_dir", "statedir"), "unknown keys: statedir"},
		{"unknown key in a table", replace("ca =", "caa ="), "unknown keys: tls.caa"},
		{"no TOML", replace(`host = "host-a"`, "host"), "reading the configuration"},
		{"address", replace("127.0.0.1", "localhost"), "localhost"},
		{"unspecified address", replace("127.0.0.1", "0.0.0.0"), "advertise needs the IP address"},
		{"log level", replace(`"error"`, `"loud"`), "loud"},
		{"another's certificate", replace(`"host-a"`, `"host-b"`), "pagurus://agent/host-a"},
		{"no key", replace("gossip.key", "gossip.kee"), "reading the gossip key"},
		{"key that is none", replace("gossip.key", "agent.toml"), "not in base64"},
		{"certificate", replace("host-a.pem", "host-b.pem"), "tls: "},
		{"nobody to join", replace(`["127.0.0.1:1"]`, "[]"), "join needs the gossip address"},
		{"relative directory", replace(`state_dir = "/`, `state_dir = "`), "is not an absolute path"},
		{"relative socket", replace(`sockets = ["/`, `sockets = ["`), "is not an absolute path"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path, _ := write(t, tt.change)
			var stderr bytes.Buffer
			if code := run(t.Context(), []string{"--config", path}, &bytes.Buffer{}, &stderr); code != exitConfig {
				t.Errorf("ended with %d", code)
			}
			if !strings.Contains(stderr.String(), tt.want) || strings.Count(stderr.String(), "Usage") > 0 {
				t.Errorf("says %s instead of %s", stderr.String(), tt.want)
			}
		})
	}
}

// What a machine lacks is said in one line, with what to do.
func TestProbe(t *testing.T) {
	err := probe(t.Context(), func(context.Context) error { return errors.Join(dirty.ErrNoTracker, errors.New("and more")) })
	const want = "this machine cannot take part in migrations: no dirty tracking: it needs PAGEMAP_SCAN with asynchronous " +
		"userfaultfd write protection (Linux 6.7) or CONFIG_MEM_SOFT_DIRTY: unsupported operation; and more"
	if err == nil || err.Error() != want {
		t.Errorf("says %v", err)
	}
	var out bytes.Buffer
	code, said := run(t.Context(), []string{"--probe"}, &out, &out), "" // this machine lacks nothing
	if os.Getuid() != 0 {
		code, said = code-exitConfig, "migrate-agent: this machine cannot take part in migrations: it takes root to stop and rebuild processes: try again with sudo\n"
	}
	if code != exitDone || out.String() != said {
		t.Errorf("--probe here ends with %d and says %q", code, out.String())
	}
}

func TestUsage(t *testing.T) {
	for _, tt := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"--help"}, exitDone, "state_dir = "},
		{[]string{"--version"}, exitDone, "migrate-agent "},
		{nil, exitConfig, "at least one of the flags in the group [config probe] is required"},
		{[]string{"--config", "x", "--probe"}, exitConfig, "none of the others can be"},
		{[]string{"--config", "/nonexistent"}, exitConfig, "no such file"},
		{[]string{"start"}, exitConfig, "unknown command"},
	} {
		var out bytes.Buffer
		if code := run(t.Context(), tt.args, &out, &out); code != tt.code || !strings.Contains(out.String(), tt.want) {
			t.Errorf("%q ends with %d and says %s", tt.args, code, out.String())
		}
	}
}
