// SPDX-License-Identifier: Apache-2.0

// Package hostile makes what an attacker would push, small to store and large to read. The tests of trust and the
// benchmark of memory publish it.
package hostile

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"strings"
	"sync"
)

// GzipBomb is head and 1 GiB of zeros, in about a megabyte: members of a gzip file may be repeated.
func GzipBomb(head []byte) []byte {
	return append(member(head), bytes.Repeat(member(make([]byte, 1<<20)), 1<<10)...)
}

// MillionEntries is a gzip archive with that many empty files.
var MillionEntries = sync.OnceValue(func() []byte {
	var thousand []byte
	for i := range 1000 {
		thousand = append(thousand, TarHeader(fmt.Sprint(i), 0)...)
	}
	return bytes.Repeat(member(thousand), 1000)
})

// TarHeader is the beginning of an archive: a file of this size follows.
func TarHeader(name string, size int64) []byte {
	var b bytes.Buffer
	if err := tar.NewWriter(&b).WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: size}); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// Deep nests brackets.
func Deep(bracket string, n int) []byte { return []byte(strings.Repeat(bracket, n)) }

// member is data as one member of a gzip file.
func member(data []byte) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(data); err != nil {
		panic(err)
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return b.Bytes()
}
