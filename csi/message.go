// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"google.golang.org/grpc/status"
)

// maxText is the size of a message: kubelet puts it with its own words into an event, whose note has at most 1024 bytes.
const maxText = 700

const ellipsis = "…"

// message is the text of err for a status. It may hold words of a registry, an image or the kernel, so whatever could
// break a line or deceive a terminal becomes a space.
func message(err error) string {
	text := err.Error()
	if s, ok := err.(interface{ GRPCStatus() *status.Status }); ok {
		text = s.GRPCStatus().Message()
	}
	return cut(printable(text), maxText)
}

func printable(text string) string {
	text = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, strings.ToValidUTF8(text, string(utf8.RuneError)))
	return strings.Join(strings.Fields(text), " ")
}

// cut shortens valid UTF-8 to at most limit bytes, between two characters.
func cut(text string, limit int) string {
	if len(text) <= limit {
		return text
	}
	end := limit - len(ellipsis)
	for !utf8.RuneStart(text[end]) {
		end--
	}
	return text[:end] + ellipsis
}
