// SPDX-License-Identifier: Apache-2.0

// Package cosign checks and makes signatures as sigstore's cosign does. It is the only package that imports sigstore.
//
// It reads what cosign v2 and v3 write with a key (testdata holds such signatures, TestReadsWhatCosignWrites): the
// simple signing payload of the sha256-<hex>.sig tag and of the OCI 1.1 referrer through cosign/v2, the sigstore
// bundle through sigstore-go.
//
// Invariants, and the test that holds each:
//
//   - A signature is bound to the digest that is asked for (TestTransplantedSignature).
//   - An attestation is no signature, whoever signed it (TestAttestationIsNoSignature).
//   - Nothing here does I/O: no registry, no transparency log, no TUF (TestVerifiesWithoutNetwork).
//   - No signature ends the process: cosign/v2 panics on some (TestMalformedRekorBundle, FuzzVerify).
package cosign
