package coordinator

import (
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"

	"github.com/pagurus-project/pagurus/trust"
)

// from is a request on a connection whose other end has shown a certificate.
func from(t *testing.T, id trust.Identity) *http.Request {
	t.Helper()
	u, err := url.Parse(id.String())
	if err != nil {
		t.Fatal(err)
	}
	r := httptest.NewRequest(http.MethodGet, "/v1/hosts", nil)
	r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{{URIs: []*url.URL{u}}}}
	return r
}

// Only a coordinator speaks for others, and for no one who could not be.
func FuzzRequester(f *testing.F) {
	for _, seed := range []string{
		"", "pagurus://operator/otto", "operator/otto", "https://operator/otto", "pagurus://operator/otto?x", "pagurus://nobody/x", "%",
	} {
		f.Add(seed, "1000")
	}
	f.Add("pagurus://agent/host-a", "-1")
	f.Fuzz(func(t *testing.T, behalf, uid string) {
		for _, role := range []trust.Role{trust.RoleCoordinator, trust.RoleAgent, trust.RoleOperator, trust.RoleViewer} {
			self := trust.Identity{Role: role, Name: "self"}
			r := from(t, self)
			r.Header.Set(onBehalfOf, behalf)
			r.Header.Set(localUser, uid)
			id, err := requester(r)
			switch {
			case err != nil:
			case behalf == "" && id == self:
			case role != trust.RoleCoordinator || id.Validate() != nil || id.String() != behalf:
				t.Errorf("%s on behalf of %q is %s", self, behalf, id)
			}
			served := false
			(&Server{}).authenticate(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				served = true
				if _, ok := r.Context().Value(uidKey{}).(uint64); ok && identityOf(r.Context()).Role != trust.RoleAgent {
					t.Errorf("%s has a local user %q", identityOf(r.Context()), uid)
				}
			})).ServeHTTP(httptest.NewRecorder(), r)
			if served != (err == nil) {
				t.Errorf("%s on behalf of %q: %v, served %t", self, behalf, err, served)
			}
		}
	})
}
