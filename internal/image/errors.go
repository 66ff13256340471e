// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"unicode"

	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/errdef"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/errcode"
)

// Errors that callers tell apart. Each is wrapped with the object and the cause.
var (
	ErrReference       = errors.New("bad image reference")
	ErrNotFound        = errors.New("not found")
	ErrNotCached       = errors.New("not in the cache")
	ErrUnauthenticated = errors.New("not authenticated")
	ErrUnavailable     = errors.New("unavailable")
	ErrHostNotAllowed  = errors.New("host not allowed")
	ErrTooLarge        = errors.New("over the limit")
	ErrDigestMismatch  = errors.New("bytes differ from their digest")
	ErrUnsupported     = errors.New("unsupported image")
	ErrNoObject        = errors.New("no BPF object")
	ErrAmbiguous       = errors.New("ambiguous image")
	ErrPlatform        = errors.New("wrong architecture")
	ErrPulling         = errors.New("pull still running")
)

var sentinels = []error{
	ErrReference, ErrNotFound, ErrNotCached, ErrUnauthenticated, ErrUnavailable, ErrHostNotAllowed, ErrTooLarge,
	ErrDigestMismatch, ErrUnsupported, ErrNoObject, ErrAmbiguous, ErrPlatform, ErrPulling,
}

func typed(err error) bool {
	for _, s := range sentinels {
		if errors.Is(err, s) {
			return true
		}
	}
	return false
}

// answered is the error for an HTTP status that is no success.
func answered(host string, status int) error {
	switch {
	case status == 401 || status == 403:
		return fmt.Errorf("%w: registry %s answered %d; check that the image exists and the credentials may pull it", ErrUnauthenticated, host, status)
	case status == 404:
		return fmt.Errorf("%w: registry %s answered 404; check repository and tag", ErrNotFound, host)
	}
	return fmt.Errorf("%w: registry %s answered %d; try again later", ErrUnavailable, host, status)
}

// classify gives an error from oras or the network one of this package's errors and a text that is the same each
// time: no local ports, no times, nothing of the answer but what is quoted and short.
func classify(host string, err error) error {
	if err == nil || errors.Is(err, context.Canceled) {
		return err
	}
	if typed(err) {
		return bare(err)
	}
	unavailable := func(cause string) error {
		return fmt.Errorf("%w: registry %s: %s", ErrUnavailable, host, cause)
	}
	var answer *errcode.ErrorResponse
	var dns *net.DNSError
	var timeout net.Error
	var unknownCA x509.UnknownAuthorityError
	var wrongName x509.HostnameError
	var invalid x509.CertificateInvalidError
	var errno syscall.Errno
	var failed *url.Error
	var op *net.OpError
	switch {
	case errors.As(err, &answer):
		return answered(host, answer.StatusCode)
	case errors.Is(err, errdef.ErrNotFound):
		return answered(host, 404)
	case errors.Is(err, auth.ErrBasicCredentialNotFound):
		return answered(host, 401)
	case errors.Is(err, content.ErrMismatchedDigest), errors.Is(err, content.ErrTrailingData):
		return fmt.Errorf("%w: sent by registry %s; push the image again", ErrDigestMismatch, host)
	case errors.Is(err, errdef.ErrSizeExceedsLimit), errors.Is(err, errdef.ErrTooManyPages):
		return fmt.Errorf("%w: answer of registry %s", ErrTooLarge, host)
	case errors.As(err, &dns):
		return unavailable("cannot look up the host name; check it")
	case errors.As(err, &unknownCA):
		return unavailable("certificate is signed by an unknown authority; set caFile in --registries")
	case errors.As(err, &wrongName), errors.As(err, &invalid):
		return unavailable("certificate is not valid for this host")
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return unavailable("no answer in time; try again later")
	case errors.As(err, &errno):
		return unavailable(errno.Error() + "; try again later")
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return unavailable("answer was cut off; try again later")
	case strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		return unavailable("speaks plain HTTP; set plainHTTP in --registries")
	case errors.As(err, &op):
		return unavailable("connection failed: " + quote(op.Err.Error())) // the error itself names the local port
	case errors.As(err, &failed):
		return unavailable("connection failed: " + quote(failed.Err.Error()))
	}
	return unavailable("unexpected answer: " + quote(err.Error()))
}

// bare is an error of this package without what the network packages put before it: addresses that change, and URLs of
// redirects, which may hold secrets.
func bare(err error) error {
	for {
		var failed *url.Error
		var op *net.OpError
		switch {
		case errors.As(err, &failed) && typed(failed.Err):
			err = failed.Err
		case errors.As(err, &op) && typed(op.Err):
			err = op.Err
		default:
			return err
		}
	}
}

// quote makes text of others fit to show: quoted and short.
func quote(s string) string {
	const most = 120
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, s)
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "..."
	}
	return strconv.Quote(s)
}
