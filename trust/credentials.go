package trust

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"slices"
)

// Files are the paths of what a daemon or client needs to prove who it is.
type Files struct {
	CA   string `toml:"ca"`
	Cert string `toml:"cert"`
	Key  string `toml:"key"`
}

// Validate reports paths that are missing.
func (f Files) Validate() error {
	if f.CA == "" || f.Cert == "" || f.Key == "" {
		return errors.New("ca, cert and key are all needed")
	}
	return nil
}

// Credentials are a loaded certificate, its key and the authority it trusts.
type Credentials struct {
	self Identity
	cert tls.Certificate
	pool *x509.CertPool
}

// Load reads and checks the files: the certificate must be signed by the
// authority, be valid now and carry one identity.
func Load(f Files) (*Credentials, error) {
	if err := f.Validate(); err != nil {
		return nil, err
	}
	ca, err := os.ReadFile(f.CA)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("%s: no certificate in PEM form", f.CA)
	}
	cert, err := tls.LoadX509KeyPair(f.Cert, f.Key)
	if err != nil {
		return nil, fmt.Errorf("loading %s with %s: %w", f.Cert, f.Key, err)
	}
	c := &Credentials{cert: cert, pool: pool}
	c.self, err = c.verify(cert.Leaf)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Cert, err)
	}
	return c, nil
}

// Self is the identity that these credentials prove.
func (c *Credentials) Self() Identity { return c.self }

func (c *Credentials) verify(leaf *x509.Certificate) (Identity, error) {
	_, err := leaf.Verify(x509.VerifyOptions{Roots: c.pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return Identity{}, err
	}
	return identityOf(leaf)
}

// ErrRefused says that the peer is who it claims to be, and is not allowed here.
var ErrRefused = errors.New("peer is not allowed here")

// AllowRoles lets every holder of one of the roles in.
func AllowRoles(roles ...Role) func(Identity) error {
	return func(id Identity) error {
		if slices.Contains(roles, id.Role) {
			return nil
		}
		return fmt.Errorf("%w: %s", ErrRefused, id)
	}
}

// AllowOnly lets exactly one identity in.
func AllowOnly(want Identity) func(Identity) error {
	return func(id Identity) error {
		if id == want {
			return nil
		}
		return fmt.Errorf("%w: %s instead of %s", ErrRefused, id, want)
	}
}

// Server is the TLS configuration of a listener; allow decides about each client.
func (c *Credentials) Server(allow func(Identity) error) *tls.Config {
	return c.config(allow)
}

// Client is the TLS configuration of a dialer; allow decides about the server.
func (c *Credentials) Client(allow func(Identity) error) *tls.Config {
	config := c.config(allow)
	// The name in a URL or an address proves nothing here: VerifyConnection
	// checks the chain and the identity instead.
	config.InsecureSkipVerify = true
	return config
}

func (c *Credentials) config(allow func(Identity) error) *tls.Config {
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{c.cert},
		ClientAuth:   tls.RequireAnyClientCert,
		VerifyConnection: func(state tls.ConnectionState) error {
			if len(state.PeerCertificates) == 0 {
				return fmt.Errorf("%w: no certificate", ErrNoIdentity)
			}
			id, err := c.verify(state.PeerCertificates[0])
			if err != nil {
				return err
			}
			return allow(id)
		},
	}
}
