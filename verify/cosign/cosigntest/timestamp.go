// SPDX-License-Identifier: Apache-2.0

package cosigntest

import (
	"bytes"
	"crypto"
	"encoding/asn1"
	"io"
	"net/http"

	"github.com/digitorus/timestamp"
	"github.com/sigstore/sigstore-go/pkg/sign"
)

// stamper answers timestamp queries. It is the transport of a client that never leaves the process. (RFC 3161)
type stamper struct {
	*Sigstore
	signed signed
}

func (s *Sigstore) timestamps(how signed) *sign.TimestampAuthority {
	return sign.NewTimestampAuthority(&sign.TimestampAuthorityOptions{URL: "https://tsa.test", Transport: stamper{s, how}})
}

func (s stamper) RoundTrip(r *http.Request) (*http.Response, error) {
	query, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	req, err := timestamp.ParseRequest(query)
	if err != nil {
		return nil, err
	}
	reply := timestamp.Timestamp{
		HashAlgorithm: req.HashAlgorithm, HashedMessage: req.HashedMessage,
		Time: s.signed.stamped, Policy: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 2},
	}
	raw, err := reply.CreateResponseWithOpts(s.stamper.cert, s.stamper.key, crypto.SHA256)
	if err != nil {
		return nil, err
	}
	return &http.Response{StatusCode: http.StatusCreated, Body: io.NopCloser(bytes.NewReader(raw)), Request: r}, nil
}
