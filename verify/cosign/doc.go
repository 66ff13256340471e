package cosign
