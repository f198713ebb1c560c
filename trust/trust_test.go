package trust

import (
	"crypto/tls"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// issue writes credentials for id and loads them again.
func issue(t *testing.T, a *Authority, id Identity, lifetime time.Duration) (*Credentials, error) {
	t.Helper()
	dir := t.TempDir()
	cert, key, err := a.Issue(id, lifetime)
	if err != nil {
		t.Fatal(err)
	}
	f := Files{CA: filepath.Join(dir, "ca.pem"), Cert: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem")}
	for path, content := range map[string][]byte{f.CA: a.CertificatePEM(), f.Cert: cert, f.Key: key} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return Load(f)
}

func authority(t *testing.T) *Authority {
	t.Helper()
	a, err := NewAuthority("test", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func credentials(t *testing.T, a *Authority, role Role, name string) *Credentials {
	t.Helper()
	c, err := issue(t, a, Identity{role, name}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// handshake connects two ends and returns what each side says of it.
func handshake(server, client *tls.Config) (serverErr, clientErr error) {
	s, c := net.Pipe()
	defer s.Close()
	defer c.Close()
	deadline := time.Now().Add(10 * time.Second)
	_ = s.SetDeadline(deadline)
	_ = c.SetDeadline(deadline)
	done := make(chan error, 1)
	go func() {
		conn := tls.Server(s, server)
		err := conn.Handshake()
		if err == nil {
			_, err = conn.Write([]byte("x"))
		}
		s.Close()
		done <- err
	}()
	conn := tls.Client(c, client)
	clientErr = conn.Handshake()
	if clientErr == nil {
		// In TLS 1.3 a client learns only by reading that it was refused.
		_, clientErr = conn.Read(make([]byte, 1))
	}
	c.Close()
	return <-done, clientErr
}

func TestHandshake(t *testing.T) {
	ours, theirs := authority(t), authority(t)
	agent := credentials(t, ours, RoleAgent, "host-a")
	coordinator := credentials(t, ours, RoleCoordinator, "host-b")
	stranger := credentials(t, theirs, RoleCoordinator, "host-b")
	onlyCoordinators := AllowRoles(RoleCoordinator)
	toAgentA := AllowOnly(Identity{RoleAgent, "host-a"})
	for _, tt := range []struct {
		name   string
		client *tls.Config
		ok     bool
	}{
		{"coordinator orders agent", coordinator.Client(toAgentA), true},
		{"wrong host expected", coordinator.Client(AllowOnly(Identity{RoleAgent, "host-c"})), false},
		{"agent orders agent", agent.Client(toAgentA), false},
		{"another authority", stranger.Client(toAgentA), false},
		{"no certificate", &tls.Config{InsecureSkipVerify: true}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			serverErr, clientErr := handshake(agent.Server(onlyCoordinators), tt.client)
			if ok := serverErr == nil && clientErr == nil; ok != tt.ok {
				t.Errorf("server says %v, client says %v; want success %v", serverErr, clientErr, tt.ok)
			}
		})
	}
}

func TestLoadRefusesWhatCannotWork(t *testing.T) {
	a := authority(t)
	if _, err := issue(t, a, Identity{RoleAgent, "host-a"}, -time.Minute); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("loading an expired certificate: %v", err)
	}
	if _, err := Load(Files{}); err == nil {
		t.Error("loading nothing succeeded")
	}
}

func TestIdentity(t *testing.T) {
	a := authority(t)
	for _, id := range []Identity{{"root", "x"}, {RoleAgent, ""}, {RoleAgent, "a/b"}, {RoleAgent, "-a"}, {RoleAgent, strings.Repeat("a", 64)}} {
		if _, _, err := a.Issue(id, time.Hour); err == nil {
			t.Errorf("issued a certificate for %q", id)
		}
	}
	if _, err := identityOf(a.cert); !errors.Is(err, ErrNoIdentity) {
		t.Errorf("identity of the authority's own certificate: %v", err)
	}
}

func TestAuthorityRoundTrip(t *testing.T) {
	a := authority(t)
	key, err := a.KeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	b, err := ParseAuthority(a.CertificatePEM(), key)
	if err != nil {
		t.Fatal(err)
	}
	// What the copy issues, the original's users trust.
	server := credentials(t, a, RoleAgent, "host-a")
	client := credentials(t, b, RoleCoordinator, "host-b")
	serverErr, clientErr := handshake(server.Server(AllowRoles(RoleCoordinator)), client.Client(AllowRoles(RoleAgent)))
	if serverErr != nil || clientErr != nil {
		t.Errorf("server says %v, client says %v", serverErr, clientErr)
	}
}
