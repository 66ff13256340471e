// SPDX-License-Identifier: Apache-2.0

package admission

// variables bring the question into one form: which repositories, for which service account. Each step is that of
// image.ParseReference; names stand in the order of images.
func variables(driver string) []namedExpression {
	return []namedExpression{
		{"spec", `request.kind.kind == 'Pod' ? dyn(object).spec : ` + template(`object`) + `.spec`},
		{"account", `has(variables.spec.serviceAccountName) && variables.spec.serviceAccountName != '' ? variables.spec.serviceAccountName : 'default'`},
		{"volumes", `has(variables.spec.volumes) ? variables.spec.volumes.filter(v, has(v.csi) && v.csi.driver == ` + quote(driver) + `) : []`},
		{"images", `variables.volumes.filter(v, has(v.csi.volumeAttributes) && 'image' in v.csi.volumeAttributes).map(v, v.csi.volumeAttributes['image'])`},
		{"undigested", `variables.images.map(s, s.split('@')[0])`},
		{"untagged", `variables.undigested.map(n, n.matches(':[^/]*$') ? n.substring(0, n.lastIndexOf(':')) : n)`},
		{"hosted", `variables.untagged.map(n, n.matches('^[^/]*[.:[][^/]*/|^(?i:localhost)/') ? n.substring(0, n.indexOf('/')).lowerAscii() + n.substring(n.indexOf('/')) : 'docker.io/' + n)`},
		{"shortened", `variables.hosted.map(n, n.matches('^[[][0-9a-f:]+[]]') && isIP(n.substring(1, n.indexOf(']'))) ? '[' + string(ip(n.substring(1, n.indexOf(']')))) + n.substring(n.indexOf(']')) : n)`},
		{"hubbed", `variables.shortened.map(n, n.matches('^(index[.]docker[.]io|registry-1[.]docker[.]io|registry[.]hub[.]docker[.]com)/') ? 'docker.io' + n.substring(n.indexOf('/')) : n)`},
		{"names", `variables.hubbed.map(n, n.matches('^docker[.]io/[^/]*$') ? 'docker.io/library/' + n.substring(size('docker.io/')) : n)`},
		{"malformed", `variables.images.filter(s, !s.matches(` + quote(referenceTail) + `)) + variables.names.filter(n, size(n) > 255 || !n.matches(` + quote(name) + `))`},
	}
}

// The grammar of package image, host and repository apart.
const (
	label      = `(?:[a-z0-9]|[a-z0-9][a-z0-9-]*[a-z0-9])`
	ipv6       = `\[[0-9a-f:]+\]`
	port       = `(?::(?:[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]))?`
	element    = `[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*`
	repository = element + `(?:/` + element + `)*`
	name       = `^(?:` + label + `(?:\.` + label + `)*|` + ipv6 + `)` + port + `/` + repository + `$`
	// referenceTail is any name, then tag and digest.
	referenceTail = `^(?:[^@]*/)?[^@/:]+(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?:@sha256:[a-f0-9]{64})?$`
)
