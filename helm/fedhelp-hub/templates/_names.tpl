{{/* Every name of this chart. Names that compiled pipelines refer to are fixed: fedhelp_pipelines.graphs has the same. */}}

{{- define "hub.federation" -}}fedhelp-federation{{- end }}
{{- define "hub.storeSecret" -}}fedhelp-store{{- end }}
{{- define "hub.mlflowSecret" -}}fedhelp-mlflow{{- end }}
{{- define "hub.pipelines" -}}fedhelp-pipelines{{- end }}
{{- define "hub.register" -}}fedhelp-register{{- end }}
{{- define "hub.unregister" -}}fedhelp-unregister{{- end }}
{{- define "hub.dashboard" -}}fedhelp-dashboard{{- end }}
{{- define "hub.alerts" -}}fedhelp-alerts{{- end }}

{{/* An image's full name. Takes {"root": $, "image": .Values.image}. */}}
{{- define "hub.image" -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ .image.tag | default .root.Chart.AppVersion }}
{{- end -}}
{{- end }}

{{- define "hub.labels" -}}
app.kubernetes.io/part-of: fedhelp
app.kubernetes.io/name: fedhelp-hub
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | quote }}
{{- end }}
