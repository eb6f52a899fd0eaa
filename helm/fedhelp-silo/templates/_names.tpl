{{/* Every name of this chart. The names are fixed, since a namespace holds one silo and the hub looks for them. */}}

{{- define "silo.worker" -}}fedhelp-worker{{- end }}
{{- define "silo.config" -}}fedhelp-silo{{- end }}
{{- define "silo.state" -}}{{ .Values.state.claimName | default "fedhelp-state" }}{{- end }}
{{- define "silo.hub" -}}fedhelp-hub{{- end }}
{{- define "silo.doctor" -}}fedhelp-doctor{{- end }}
{{- define "silo.serving" -}}fedhelp-serving{{- end }}
{{- define "silo.model" -}}fedhelp-model{{- end }}
{{- define "silo.defaultDeny" -}}fedhelp-default-deny{{- end }}

{{/* The policy is cluster-scoped: the namespace makes its name unique. */}}
{{- define "silo.policy" -}}fedhelp-worker.{{ .Release.Namespace }}{{- end }}

{{- define "silo.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}

{{/* Labels of every pod of a worker, and what policies select them by. */}}
{{- define "silo.podLabels" -}}
app.kubernetes.io/part-of: fedhelp
app.kubernetes.io/name: fedhelp-silo
fedhelp.io/silo: {{ .Values.silo.name | quote }}
{{- end }}

{{/* Labels of the pods that serve: none of them is a worker's pod to the policies. */}}
{{- define "silo.servingLabels" -}}
app.kubernetes.io/part-of: fedhelp
app.kubernetes.io/name: fedhelp-serving
fedhelp.io/silo: {{ .Values.silo.name | quote }}
{{- end }}

{{- define "silo.labels" -}}
{{ include "silo.podLabels" . }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | quote }}
{{- end }}

{{/* A Kubernetes quantity such as 500m, 2 or 8Gi as a plain number. */}}
{{- define "silo.quantity" -}}
{{- $units := dict "m" 0.001 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "Ki" 1024.0 "Mi" 1048576.0 "Gi" 1073741824.0 "Ti" 1099511627776.0 -}}
{{- $text := toString . -}}
{{- $unit := regexFind "[a-zA-Z]+$" $text -}}
{{- mulf (trimSuffix $unit $text | float64) (get $units $unit | default 1.0) -}}
{{- end }}
