{{/*
CEL: the sorted-by-appearance names of what differs between two maps, `free` names aside.
Takes {"asked": expression, "allowed": expression, "free": expression of a list}.
*/}}
{{- define "silo.differing" -}}
{{ .asked }}.filter(k, !(k in {{ .free }}) && (!(k in {{ .allowed }}) || {{ .asked }}[k] != {{ .allowed }}[k])) + {{ .allowed }}.filter(k, !(k in {{ .free }}) && !(k in {{ .asked }}))
{{- end }}
