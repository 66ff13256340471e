{{/* SPDX-License-Identifier: Apache-2.0 */}}

{{- define "bpfvol.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "bpfvol.fullname" -}}
{{- $name := include "bpfvol.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* What a workload's selector asks for: never changes, as selectors cannot. */}}
{{- define "bpfvol.selector" -}}
app.kubernetes.io/name: {{ include "bpfvol.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "bpfvol.labels" -}}
app.kubernetes.io/name: {{ include "bpfvol.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "bpfvol.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "bpfvol.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "bpfvol.fullname" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{/* The driver's name is part of every pod and PersistentVolume that uses it, so it is no value. */}}
{{- define "bpfvol.driver" -}}csi.bpfvol.io{{- end -}}

{{/* What is in /etc/bpfvol: the files, and that of the registries. */}}
{{- define "bpfvol.config" -}}
{{- $files := deepCopy .Values.files -}}
{{- with .Values.registries.config -}}
{{- $_ := set $files "registries.yaml" (toYaml .) -}}
{{- end -}}
{{- if $files -}}
{{ toYaml $files }}
{{- end -}}
{{- end -}}

{{- define "bpfvol.uninstallHook" -}}
helm.sh/hook: pre-delete
helm.sh/hook-weight: {{ . | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end -}}
