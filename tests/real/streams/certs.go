package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// The names that portico asks for: the Services', as in the manifests that tests/real/parts.sh and discovery/fleet.go write.
const (
	backendName = "streams.default.svc"
	fleetNames  = "*.default.svc"
)

const validFor = 24 * time.Hour

type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

// makeCertificates lays down in dir, as NAME.crt and NAME.key: an authority each for servers, clients and front proxies, and
// what they sign: portico's and the backends' serving certificates, an admin's and somebody's, portico's own towards kube-apiserver
// and as a front proxy, and a key for the tokens of service accounts, without which no kube-apiserver starts.
func makeCertificates(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	servers, err := newAuthority(dir, "serving-ca")
	if err != nil {
		return err
	}
	clients, err := newAuthority(dir, "client-ca")
	if err != nil {
		return err
	}
	proxies, err := newAuthority(dir, "front-proxy-ca")
	if err != nil {
		return err
	}
	strangers, err := newAuthority(dir, "own-proxy-ca")
	if err != nil {
		return err
	}
	local := []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
	for _, leaf := range []struct {
		signer *authority
		name   string
		cert   x509.Certificate
	}{
		{servers, "portico", x509.Certificate{DNSNames: []string{"localhost"}, IPAddresses: local}},
		{servers, "backend", x509.Certificate{DNSNames: []string{backendName, "localhost"}, IPAddresses: local}},
		{servers, "fleet", x509.Certificate{DNSNames: []string{fleetNames}}},
		{servers, "service-accounts", x509.Certificate{}},
		{clients, "admin", x509.Certificate{Subject: pkix.Name{CommonName: "admin", Organization: []string{"system:masters"}}}},
		// Masters are let in where others are told to come later, hence one who is none.
		{clients, "somebody", x509.Certificate{Subject: pkix.Name{CommonName: "somebody", Organization: []string{"testers"}}}},
		{clients, "core-client", x509.Certificate{Subject: pkix.Name{CommonName: "portico"}}},
		{proxies, "front-proxy", x509.Certificate{Subject: pkix.Name{CommonName: "front-proxy"}}},
		// One that no cluster knows.
		{strangers, "own-proxy", x509.Certificate{Subject: pkix.Name{CommonName: "front-proxy"}}},
	} {
		if err := leaf.signer.sign(dir, leaf.name, leaf.cert); err != nil {
			return err
		}
	}
	return nil
}

func newAuthority(dir, name string) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(validFor),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &authority{certificate, key}, write(dir, name, der, nil)
}

func (a *authority) sign(dir, name string, template x509.Certificate) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		return err
	}
	if template.Subject.CommonName == "" {
		template.Subject.CommonName = name
	}
	template.SerialNumber, template.NotBefore, template.NotAfter = serial, time.Now().Add(-time.Hour), time.Now().Add(validFor)
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	der, err := x509.CreateCertificate(rand.Reader, &template, a.certificate, &key.PublicKey, a.key)
	if err != nil {
		return err
	}
	return write(dir, name, der, key)
}

func write(dir, name string, der []byte, key *ecdsa.PrivateKey) error {
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if err := os.WriteFile(filepath.Join(dir, name+".crt"), text, 0o600); err != nil || key == nil {
		return err
	}
	encoded, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, name+".key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: encoded}), 0o600)
}
