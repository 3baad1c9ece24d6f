{{- define "podgate.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "podgate.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else if contains (include "podgate.name" .) .Release.Name }}
{{- .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "podgate.name" .) | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* What a selector may hold: these never change. */}}
{{- define "podgate.selector" -}}
app.kubernetes.io/name: {{ include "podgate.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "podgate.labels" -}}
{{ include "podgate.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "podgate.serviceAccount" -}}
{{- default (include "podgate.fullname" .) .Values.serviceAccount.name }}
{{- end }}

{{- define "podgate.image" -}}
{{- if .Values.image.digest }}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) }}
{{- end }}
{{- end }}

{{/* Where this node answers probes: at a wildcard on the loopback too. */}}
{{- define "podgate.probed" -}}
{{- if has .Values.metrics.address (list "0.0.0.0" "127.0.0.1" "[::]") }}127.0.0.1
{{- else }}
{{- .Values.metrics.address | trimPrefix "[" | trimSuffix "]" }}
{{- end }}
{{- end }}

{{/* No container gets more than root's own files and the capabilities that it names. */}}
{{- define "podgate.restricted" -}}
runAsUser: 0
runAsGroup: 0
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
{{- with .Values.seLinuxType }}
seLinuxOptions:
  type: {{ . }}
{{- end }}
{{- end }}
