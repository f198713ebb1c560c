// Package trust decides who is who: every connection between daemons and from
// clients is mutual TLS 1.3, and a certificate carries exactly one [Identity],
// a role with a name, as a URI:
//
//	pagurus://agent/host-a
//	pagurus://coordinator/host-a
//	pagurus://operator/anna
//
// Names are matched by role and name, never by DNS name or IP address, so a
// host may change its address without a new certificate.
//
// The package makes certificates ([Authority]), loads them ([Load]) and builds
// the TLS configurations of servers and clients. It knows no protocol above TLS.
// All functions may be called from any goroutine.
package trust
