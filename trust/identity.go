package trust

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"regexp"
)

// A Role says what the holder of a certificate may do.
type Role string

const (
	RoleCoordinator Role = "coordinator" // orders agents, votes in raft
	RoleAgent       Role = "agent"       // acts on one host, sends and receives pages, asks coordinators for those who may open its sockets
	RoleOperator    Role = "operator"    // asks coordinators for anything
	RoleViewer      Role = "viewer"      // asks coordinators, changes nothing
)

func (r Role) valid() bool {
	switch r {
	case RoleCoordinator, RoleAgent, RoleOperator, RoleViewer:
		return true
	}
	return false
}

// An Identity is who holds a certificate.
type Identity struct {
	Role Role
	Name string
}

const scheme = "pagurus"

// namePattern keeps names usable in URIs, file names and log lines.
var namePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

// ErrNoIdentity says that a certificate, or a text, does not carry exactly one
// identity of ours.
var ErrNoIdentity = errors.New("no identity")

// Validate reports an unknown role or a name that is not 1 to 63 letters,
// digits, dots, underscores or hyphens.
func (id Identity) Validate() error {
	if !id.Role.valid() {
		return fmt.Errorf("role %q is none of coordinator, agent, operator, viewer", id.Role)
	}
	if !namePattern.MatchString(id.Name) {
		return fmt.Errorf("name %q is not 1 to 63 letters, digits, dots, underscores or hyphens", id.Name)
	}
	return nil
}

func (id Identity) String() string { return id.uri().String() }

func (id Identity) uri() *url.URL {
	return &url.URL{Scheme: scheme, Host: string(id.Role), Path: "/" + id.Name}
}

// identityOf reads the one identity of a certificate.
func identityOf(cert *x509.Certificate) (Identity, error) {
	if len(cert.URIs) != 1 {
		return Identity{}, fmt.Errorf("%w: %d URIs", ErrNoIdentity, len(cert.URIs))
	}
	return fromURI(cert.URIs[0])
}

// ParseIdentity reads an identity as String writes it.
func ParseIdentity(text string) (Identity, error) {
	u, err := url.Parse(text)
	if err != nil {
		return Identity{}, fmt.Errorf("reading an identity: %w", err)
	}
	return fromURI(u)
}

func fromURI(u *url.URL) (Identity, error) {
	if u.Scheme != scheme || len(u.Path) < 2 {
		return Identity{}, fmt.Errorf("%w: %s", ErrNoIdentity, u)
	}
	id := Identity{Role: Role(u.Host), Name: u.Path[1:]}
	if err := id.Validate(); err != nil || id.String() != u.String() {
		return Identity{}, fmt.Errorf("%w: %s", ErrNoIdentity, u)
	}
	return id, nil
}

// Peer is the identity at the other end of a connection whose handshake is done.
func Peer(state tls.ConnectionState) (Identity, error) {
	if len(state.PeerCertificates) == 0 {
		return Identity{}, fmt.Errorf("%w: no certificate", ErrNoIdentity)
	}
	return identityOf(state.PeerCertificates[0])
}
