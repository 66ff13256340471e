// SPDX-License-Identifier: Apache-2.0

// Package cosign checks and makes signatures as sigstore's cosign does. It is the only package that imports sigstore.
//
// An authority is a key or an identity. Either reads what cosign v2 and v3 write (testdata holds signatures that they made with keys,
// TestReadsWhatCosignWrites; package cosigntest makes those without, TestKeylessSignatures):
//
//	sha256-<hex>.sig tag, OCI 1.1 referrer   simple signing payload   key: cosign/v2; identity: sigstore-go, as a bundle of v0.1
//	OCI 1.1 referrer                         sigstore bundle          sigstore-go
//
// Invariants, and the test that holds each:
//
//   - A signature is bound to the digest that is asked for (TestTransplantedSignature, TestKeylessTransplants).
//   - A certificate, log entry or timestamp counts for the signature that it was made for (TestProofOfAnotherSignature), and
//     every certificate of the chain was valid when it was made (TestExpiredIntermediateIsRefused).
//   - A policy's expression matches all of an identity and never just anybody (TestIdentityMatchesWholly,
//     TestKeylessThatIsRefusedAtOnce).
//   - An attestation is no signature, whoever signed it (TestAttestationIsNoSignature, TestKeylessAttestationIsNoSignature).
//   - A trusted root that is replaced holds for the next signature; a broken one changes nothing
//     (TestRotatedRootHoldsForTheNextPublish, TestBrokenRootKeepsTheLastGood).
//   - Nothing here asks anyone: no registry, no transparency log, no TUF (TestVerifiesWithoutNetwork).
//   - No signature ends the process: cosign/v2 panics on some (TestMalformedRekorBundle, TestEveryPartOfABundleMayBeHostile,
//     TestEveryAnnotationMayBeHostile, FuzzVerify, FuzzKeyless), or keeps it from its work (TestGiantKeyIsNotVerifiedWith,
//     TestDeepTimestampIsNotReadDown).
package cosign
