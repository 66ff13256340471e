// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Files in the directory of a cluster.
const (
	servingCert = "serving.crt"
	servingKey  = "serving.key"
	accountKey  = "account.key"
	tokenFile   = "tokens.csv"
)

// secrets are what a cluster's parties know each other by.
type secrets struct {
	admin string // token of system:masters
	node  string // token of the kubelet of a node
	cert  []byte // the serving certificate in PEM, its own CA
}

// makeSecrets makes them and writes what the components read of them into dir. The API server has the addresses.
func makeSecrets(dir string, addresses ...netip.Addr) (secrets, error) {
	s := secrets{admin: rand.Text(), node: rand.Text()}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return s, err
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "kube-apiserver"},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(24 * time.Hour),
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		DNSNames:              []string{"kubernetes.default.svc"},
		IsCA:                  true,
		BasicConstraintsValid: true,
	}
	for _, a := range addresses {
		template.IPAddresses = append(template.IPAddresses, a.AsSlice())
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return s, err
	}
	s.cert = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	account, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return s, err
	}
	files := map[string][]byte{
		servingCert: s.cert,
		tokenFile:   fmt.Appendf(nil, "%s,admin,admin,system:masters\n%s,system:node:%s,%[3]s,system:nodes\n", s.admin, s.node, NodeName),
	}
	for name, k := range map[string]*ecdsa.PrivateKey{servingKey: key, accountKey: account} {
		der, err := x509.MarshalECPrivateKey(k)
		if err != nil {
			return s, err
		}
		files[name] = pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			return s, err
		}
	}
	return s, nil
}

// client trusts the cluster's certificate and nothing else.
func (s secrets) client(dial func(context.Context, string, string) (net.Conn, error)) *http.Client {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(s.cert)
	return &http.Client{
		Timeout:   30 * time.Second,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, DialContext: dial},
	}
}

// reservedPort is a port of 127.0.0.1 that nobody else gets: a socket is bound to it and never listens. The API
// server binds to it, too (--permit-port-sharing), now and after a restart.
type reservedPort struct {
	fd     int
	number uint16
}

func reservePort() (_ *reservedPort, err error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
		}
	}()
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
		return nil, fmt.Errorf("SO_REUSEPORT: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return nil, fmt.Errorf("bind: %w", err)
	}
	addr, err := unix.Getsockname(fd)
	if err != nil {
		return nil, fmt.Errorf("getsockname: %w", err)
	}
	return &reservedPort{fd: fd, number: uint16(addr.(*unix.SockaddrInet4).Port)}, nil
}

func (p *reservedPort) release() { unix.Close(p.fd) }
