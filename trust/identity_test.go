package trust

import (
	"crypto/x509"
	"net/url"
	"testing"
)

func FuzzIdentity(f *testing.F) {
	for _, seed := range []string{
		"pagurus://agent/host-a", "pagurus://operator/anna.b_c", "pagurus://agent/", "pagurus://root/x", "pagurus://agent/a/b",
		"pagurus://u:p@agent:1/a?b#c", "https://agent/host-a", "pagurus:agent/host-a", "pagurus://agent/%61", "pagurus://AGENT/a",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		id, err := ParseIdentity(text)
		if err == nil && (id.Validate() != nil || id.String() != text) {
			t.Errorf("%q is read as %s", text, id)
		}
		// A certificate's is read the same way.
		u, failed := url.Parse(text)
		if failed != nil {
			return
		}
		of, ofErr := identityOf(&x509.Certificate{URIs: []*url.URL{u}})
		if of != id || (ofErr == nil) != (err == nil) {
			t.Errorf("%q is %s, %v, and in a certificate %s, %v", text, id, err, of, ofErr)
		}
	})
}
