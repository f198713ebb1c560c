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
	"strings"

	"github.com/BurntSushi/toml"

	"github.com/pagurus-project/pagurus/coordinator"
	"github.com/pagurus-project/pagurus/trust"
)

// configHelp explains the file to a reader of --help.
const configHelp = `  name = "host-a"                   # of this server, for ever; its certificate's
  advertise = "10.77.0.1"           # IP address where the others reach it
  expect = 3                        # servers that form a new cluster, 1 or 3, the
                                    # same on all; leave it out to be added to one
  join = ["10.77.0.2:7410"]         # gossip of other servers, any that are known
  data_dir = "/var/lib/pagurus"     # of raft's log and snapshots
  gossip_key_file = "gossip.key"    # 32 bytes in base64, the same everywhere
  http_socket = "coordinator.sock"  # optional: the API for whoever may open it
  log_level = "info"                # debug, info, warn or error
  gossip_port = 7410                # these four are the defaults
  raft_port = 7411
  grpc_port = 7412
  http_port = 7413

  [tls]                             # pagurus://coordinator/host-a
  ca = "ca.pem"
  cert = "coordinator.pem"
  key = "coordinator.key"
`

// settings are what the configuration file says.
type settings struct {
	Name          string      `toml:"name"`
	Advertise     netip.Addr  `toml:"advertise"`
	GossipPort    uint16      `toml:"gossip_port"`
	RaftPort      uint16      `toml:"raft_port"`
	GRPCPort      uint16      `toml:"grpc_port"`
	HTTPPort      uint16      `toml:"http_port"`
	Expect        int         `toml:"expect"`
	Join          []string    `toml:"join"`
	DataDir       string      `toml:"data_dir"`
	GossipKeyFile string      `toml:"gossip_key_file"`
	HTTPSocket    string      `toml:"http_socket"`
	LogLevel      slog.Level  `toml:"log_level"`
	TLS           trust.Files `toml:"tls"`
}

// load reads the file. A key that means nothing is an error, since it is a
// mistyped one that does.
func load(path string) (settings, error) {
	s := settings{GossipPort: 7410, RaftPort: 7411, GRPCPort: 7412, HTTPPort: 7413}
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

// coordinator turns settings into what package coordinator needs, and reads
// the files that they name. It reports everything that is wrong.
func (s settings) coordinator(stderr io.Writer) (coordinator.Config, error) {
	c := coordinator.Config{
		Name: s.Name, Advertise: s.Advertise,
		GossipPort: s.GossipPort, RaftPort: s.RaftPort, GRPCPort: s.GRPCPort, HTTPPort: s.HTTPPort,
		Expect: s.Expect, Join: s.Join, DataDir: s.DataDir, HTTPSocket: s.HTTPSocket, Version: version(),
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
