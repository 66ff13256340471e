// SPDX-License-Identifier: Apache-2.0

package cosigntest

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/big"

	"github.com/cyberphone/json-canonicalization/go/src/webpki.org/jsoncanonicalizer"
	commonpb "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	rekorpb "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	tilespb "github.com/sigstore/rekor-tiles/v2/pkg/generated/protobuf"
	tilesnote "github.com/sigstore/rekor-tiles/v2/pkg/note"
	"github.com/sigstore/rekor/pkg/generated/client/entries"
	"github.com/sigstore/rekor/pkg/generated/models"
	"github.com/sigstore/rekor/pkg/types"
	"github.com/sigstore/rekor/pkg/util"
	"github.com/sigstore/sigstore-go/pkg/tlog"
	"github.com/sigstore/sigstore/pkg/signature"
	checkpoint "github.com/transparency-dev/formats/log"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/note"
	"google.golang.org/protobuf/encoding/protojson"
)

// rekorHost is the log's name, which its checkpoints are signed under.
const rekorHost = "rekor.test"

// rekorV1 is the transparency log as cosign's libraries see it: each entry is the second of a tree of two.
type rekorV1 struct {
	entries.ClientService // what is not asked
	*Sigstore
	signed signed
}

func (r *rekorV1) CreateLogEntry(params *entries.CreateLogEntryParams, _ ...entries.ClientOption) (*entries.CreateLogEntryCreated, error) {
	impl, err := types.CreateVersionedEntry(params.ProposedEntry)
	if err != nil {
		return nil, err
	}
	body, err := types.CanonicalizeEntry(context.Background(), impl)
	if err != nil {
		return nil, err
	}
	var (
		b64     = base64.StdEncoding.EncodeToString(body)
		id      = hex.EncodeToString(logID(r.rekor))
		at      = r.signed.at.Unix()
		index   = must(rand.Int(rand.Reader, big.NewInt(1<<40))).Int64() + 1
		sibling = rfc6962.DefaultHasher.HashLeaf([]byte("an entry of somebody else"))
		root    = rfc6962.DefaultHasher.HashChildren(sibling, rfc6962.DefaultHasher.HashLeaf(body))
		signer  = must(signature.LoadECDSASignerVerifier(r.rekor, crypto.SHA256))
		promise = must(jsoncanonicalizer.Transform(must(json.Marshal(tlog.RekorPayload{Body: b64, IntegratedTime: at, LogIndex: index, LogID: id}))))
		head    = string(must(util.CreateAndSignCheckpoint(context.Background(), rekorHost, 7, 2, root, signer)))
	)
	return &entries.CreateLogEntryCreated{ETag: "entry", Payload: models.LogEntry{"entry": {
		Body: b64, IntegratedTime: &at, LogIndex: &index, LogID: &id,
		Verification: &models.LogEntryAnonVerification{
			SignedEntryTimestamp: must(signer.SignMessage(bytes.NewReader(promise))),
			InclusionProof: &models.InclusionProof{
				Checkpoint: &head, Hashes: []string{hex.EncodeToString(sibling)},
				LogIndex: ptr[int64](1), RootHash: ptr(hex.EncodeToString(root)), TreeSize: ptr[int64](2),
			},
		},
	}}}, nil
}

// rekorV2 is the log on tiles: it promises nothing and says no time, so a proof and a checkpoint are all there is.
type rekorV2 struct{ *Sigstore }

func (r rekorV2) Add(ctx context.Context, entry any) (*rekorpb.TransparencyLogEntry, error) {
	req, ok := entry.(*tilespb.HashedRekordRequestV002)
	if !ok {
		return nil, fmt.Errorf("rekor v2 has no entries of %T", entry)
	}
	raw := must(protojson.Marshal(&tilespb.Entry{
		ApiVersion: "0.0.2", Kind: "hashedrekord",
		Spec: &tilespb.Spec{Spec: &tilespb.Spec_HashedRekordV002{HashedRekordV002: &tilespb.HashedRekordLogEntryV002{
			Data:      &commonpb.HashOutput{Algorithm: commonpb.HashAlgorithm_SHA2_256, Digest: req.Digest},
			Signature: req.Signature,
		}}},
	}))
	body := must(jsoncanonicalizer.Transform(raw))
	root := rfc6962.DefaultHasher.HashLeaf(body)
	signer := must(tilesnote.NewNoteSigner(ctx, rekorHost, must(signature.LoadECDSASignerVerifier(r.rekor, crypto.SHA256))))
	head := must(note.Sign(&note.Note{Text: string(checkpoint.Checkpoint{Origin: rekorHost, Size: 1, Hash: root}.Marshal())}, signer))
	return &rekorpb.TransparencyLogEntry{
		LogId:             &commonpb.LogId{KeyId: logID(r.rekor)},
		KindVersion:       &rekorpb.KindVersion{Kind: "hashedrekord", Version: "0.0.2"},
		InclusionProof:    &rekorpb.InclusionProof{TreeSize: 1, RootHash: root, Checkpoint: &rekorpb.Checkpoint{Envelope: string(head)}},
		CanonicalizedBody: body,
	}, nil
}

func ptr[T any](v T) *T { return &v }
