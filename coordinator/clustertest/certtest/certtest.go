// Package certtest makes credentials for tests: an authority of their own and
// what it issues, through files as in real life.
package certtest

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/pagurus-project/pagurus/trust"
)

// An Authority issues credentials that live as long as its test.
type Authority struct {
	authority *trust.Authority
	dir       string
}

// New makes an authority.
func New(t testing.TB) *Authority {
	t.Helper()
	a, err := trust.NewAuthority("test", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return &Authority{authority: a, dir: t.TempDir()}
}

// Files writes the certificate and key of an identity.
func (a *Authority) Files(t testing.TB, role trust.Role, name string) trust.Files {
	t.Helper()
	cert, key, err := a.authority.Issue(trust.Identity{Role: role, Name: name}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	base := filepath.Join(a.dir, string(role)+"-"+name)
	f := trust.Files{CA: filepath.Join(a.dir, "ca.pem"), Cert: base + ".pem", Key: base + ".key"}
	for path, content := range map[string][]byte{f.CA: a.authority.CertificatePEM(), f.Cert: cert, f.Key: key} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// Credentials are those files, loaded.
func (a *Authority) Credentials(t testing.TB, role trust.Role, name string) *trust.Credentials {
	t.Helper()
	c, err := trust.Load(a.Files(t, role, name))
	if err != nil {
		t.Fatal(err)
	}
	return c
}
