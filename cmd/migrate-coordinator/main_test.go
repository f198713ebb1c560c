package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/pagurus-project/pagurus/coordinator/api"
	"github.com/pagurus-project/pagurus/coordinator/clustertest/certtest"
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
	files := certtest.New(t).Files(t, trust.RoleCoordinator, "one")
	key := base64.StdEncoding.EncodeToString(make([]byte, 32))
	if err := os.WriteFile(filepath.Join(dir, "gossip.key"), []byte(key+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	content := fmt.Sprintf(`name = "one"
advertise = "127.0.0.1"
gossip_port = 0
raft_port = 0
grpc_port = 0
http_port = 0
expect = 1
data_dir = "%[1]s/data"
gossip_key_file = "%[1]s/gossip.key"
http_socket = "%[1]s/sock"
log_level = "warn"

[tls]
ca = %[2]q
cert = %[3]q
key = %[4]q
`, dir, files.CA, files.Cert, files.Key)
	path = filepath.Join(dir, "coordinator.toml")
	if err := os.WriteFile(path, []byte(change(content)), 0o600); err != nil {
		t.Fatal(err)
	}
	return path, dir
}

// TestBootAndShutdown runs the program twice on one directory: from nothing,
// and on what the first run has left.
func TestBootAndShutdown(t *testing.T) {
	path, dir := write(t, func(s string) string { return s })
	var term uint64
	for range 2 {
		ctx, cancel := context.WithCancel(t.Context())
		var stderr bytes.Buffer
		ended := make(chan int)
		go func() { ended <- run(ctx, []string{"--config", path}, &bytes.Buffer{}, &stderr) }()

		client, err := api.NewClient(api.Config{Socket: filepath.Join(dir, "sock"), Patience: 30 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		// The leader answers this one; it has to be found first.
		if _, err := client.Migrations(t.Context(), ""); err != nil {
			t.Error(err)
		}
		status, err := client.Status(t.Context())
		if err != nil || status.Leader != "one" || status.Term <= term {
			t.Errorf("status %+v after term %d, %v", status, term, err)
		}
		term = status.Term
		if info, err := os.Stat(filepath.Join(dir, "sock")); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("socket: %v, %v", info, err)
		}
		client.Close()
		cancel()
		if code := <-ended; code != exitDone {
			t.Errorf("ended with %d: %s", code, stderr.String())
		}
	}
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
		{"unknown key", replace("expect", "expcet"), "unknown keys: expcet"},
		{"unknown key in a table", replace("ca =", "caa ="), "unknown keys: tls.caa"},
		{"no TOML", replace(`name = "one"`, "name"), "reading the configuration"},
		{"address", replace("127.0.0.1", "localhost"), "localhost"},
		{"unspecified address", replace("127.0.0.1", "0.0.0.0"), "advertise needs the IP address"},
		{"log level", replace(`"warn"`, `"loud"`), "loud"},
		{"another's certificate", replace(`"one"`, `"two"`), "pagurus://coordinator/one"},
		{"no key", replace("gossip.key", "gossip.kee"), "reading the gossip key"},
		{"key that is none", replace("gossip.key", "coordinator.toml"), "not in base64"},
		{"certificate", replace("one.pem", "two.pem"), "tls: "},
		{"nobody to join", replace("expect = 1", "expect = 3"), "join needs the addresses"},
		{"even number", replace("expect = 1", "expect = 2\njoin = [\"127.0.0.1:1\"]"), "expect is 2"},
		{"no directory", replace("data_dir", "#"), "data_dir is needed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path, _ := write(t, tt.change)
			var stderr bytes.Buffer
			if code := run(t.Context(), []string{"--config", path}, &bytes.Buffer{}, &stderr); code != exitConfig {
				t.Errorf("ended with %d", code)
			}
			if !strings.Contains(stderr.String(), tt.want) {
				t.Errorf("says %q, not %q", stderr.String(), tt.want)
			}
		})
	}
}

func TestFails(t *testing.T) {
	path, dir := write(t, func(s string) string { return s })
	// A file where the directory should be.
	if err := os.WriteFile(filepath.Join(dir, "data"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	if code := run(t.Context(), []string{"--config", path}, &bytes.Buffer{}, &stderr); code != exitFailed {
		t.Errorf("ended with %d: %s", code, stderr.String())
	}
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{{}, {"--config", "/nowhere"}, {"--confg", "x"}, {"--config", "x", "y"}} {
		var stderr bytes.Buffer
		if code := run(t.Context(), args, &bytes.Buffer{}, &stderr); code != exitConfig || stderr.Len() == 0 {
			t.Errorf("%v ended with %d: %s", args, code, stderr.String())
		}
	}
	var stdout bytes.Buffer
	if code := run(t.Context(), []string{"--help"}, &stdout, &bytes.Buffer{}); code != exitDone || !strings.Contains(stdout.String(), "gossip_key_file") {
		t.Errorf("--help ended with %d: %s", code, stdout.String())
	}
}

// TestHelpIsTrue: the file that --help shows is one that can be loaded.
func TestHelpIsTrue(t *testing.T) {
	path := filepath.Join(t.TempDir(), "coordinator.toml")
	if err := os.WriteFile(path, []byte(configHelp), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := load(path)
	if err != nil || s.HTTPPort != 7413 || s.TLS.Key != "coordinator.key" {
		t.Errorf("%+v, %v", s, err)
	}
}
