package main

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/BurntSushi/toml"

	"github.com/pagurus-project/pagurus/agent"
	"github.com/pagurus-project/pagurus/migrate/freezer"
	"github.com/pagurus-project/pagurus/trust"
)

// configHelp explains the file to a reader of --help.
const configHelp = `  host = "host-a"                   # of this host, for ever; its certificate's
  advertise = "10.77.0.1"           # IP address where the others reach it
  join = ["10.77.0.1:7410"]         # gossip of coordinators, any that are known
  gossip_key_file = "gossip.key"    # 32 bytes in base64, the same everywhere
  sockets = ["/run/pagurus/agent.sock"]  # the coordinators' API for whoever may
                                    # open them; migratectl looks for this one
  state_dir = "/run/pagurus"        # the journal; has to go with the next boot
  cgroup = ""                       # directory of a cgroup2 file system below which
                                    # arrived processes get groups of their own;
                                    # default: pagurus at the top of the hierarchy
  log_level = "info"                # debug, info, warn or error
  gossip_port = 7420                # these three are the defaults
  grpc_port = 7421
  page_port = 7422

  [tls]                             # pagurus://agent/host-a
  ca = "ca.pem"
  cert = "agent.pem"
  key = "agent.key"
`

// settings are what the configuration file says.
type settings struct {
	Host          string      `toml:"host"`
	Advertise     netip.Addr  `toml:"advertise"`
	GossipPort    uint16      `toml:"gossip_port"`
	GRPCPort      uint16      `toml:"grpc_port"`
	PagePort      uint16      `toml:"page_port"`
	Join          []string    `toml:"join"`
	GossipKeyFile string      `toml:"gossip_key_file"`
	Sockets       []string    `toml:"sockets"`
	StateDir      string      `toml:"state_dir"`
	Cgroup        string      `toml:"cgroup"`
	LogLevel      slog.Level  `toml:"log_level"`
	TLS           trust.Files `toml:"tls"`
}

// load reads the file. A key that means nothing is an error, since it is a
// mistyped one that does.
func load(path string) (settings, error) {
	s := settings{
		GossipPort: 7420, GRPCPort: 7421, PagePort: 7422,
		Sockets: []string{"/run/pagurus/agent.sock"}, StateDir: "/run/pagurus",
	}
	meta, err := toml.DecodeFile(path, &s)
	if err != nil {
		return s, fmt.Errorf("reading the configuration: %w", err)
	}
	if unknown := meta.Undecoded(); len(unknown) > 0 {
		var names []string
		for _, key := range unknown {
			names = append(names, key.String())
		}
		return s, fmt.Errorf("%s: unknown keys: %s", path, strings.Join(names, ", "))
	}
	return s, nil
}

// agent turns settings into what package agent needs, engines aside, and reads
// the files that they name.
func (s settings) agent(stderr io.Writer) (agent.Config, error) {
	c := agent.Config{
		Host: s.Host, Advertise: s.Advertise, GRPCPort: s.GRPCPort, PagePort: s.PagePort, GossipPort: s.GossipPort,
		Join: s.Join, Sockets: s.Sockets, StateDir: s.StateDir, Version: version(),
		Logger: slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: s.LogLevel})),
	}
	var keyErr, tlsErr error
	c.Key, keyErr = readKey(s.GossipKeyFile)
	c.Credentials, tlsErr = trust.Load(s.TLS)
	if tlsErr != nil {
		tlsErr = fmt.Errorf("tls: %w", tlsErr)
	}
	if err := errors.Join(keyErr, tlsErr); err != nil {
		return c, err
	}
	return c, c.Validate()
}

// groups is the directory below which arrived processes get their groups.
func (s settings) groups() (string, error) {
	if s.Cgroup != "" {
		return s.Cgroup, nil
	}
	mount, err := freezer.Mount()
	if err != nil {
		return "", err
	}
	return filepath.Join(mount, "pagurus"), nil
}

// readKey reads the key that encrypts gossip.
func readKey(path string) ([]byte, error) {
	if path == "" {
		return nil, errors.New("gossip_key_file is needed")
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the gossip key: %w", err)
	}
	key, err := base64.StdEncoding.DecodeString(string(bytes.TrimSpace(content)))
	if err != nil {
		return nil, fmt.Errorf("reading the gossip key: %s: not in base64: %w", path, err)
	}
	return key, nil
}
