{{/*
The pod of a worker. Takes {"root": $, "command": [...], "args": [...]}: the template and `helm test` run the same pod with
other commands.
*/}}
{{- define "silo.pod" -}}
{{- $root := .root -}}
{{- with $root.Values -}}
serviceAccountName: {{ include "silo.worker" $root }}
automountServiceAccountToken: false
enableServiceLinks: false
restartPolicy: Never
terminationGracePeriodSeconds: {{ .terminationGracePeriodSeconds }}
securityContext:
  runAsNonRoot: true
  runAsUser: {{ .runAsUser }}
  runAsGroup: {{ .runAsGroup }}
  fsGroup: {{ .runAsGroup }}
  fsGroupChangePolicy: OnRootMismatch
  {{- with .supplementalGroups }}
  supplementalGroups: {{ toJson . }}
  {{- end }}
  seccompProfile: {type: RuntimeDefault}
{{- with .image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .nodeSelector }}
nodeSelector: {{ toJson . }}
{{- end }}
{{- with .tolerations }}
tolerations: {{ toJson . }}
{{- end }}
{{- with .affinity }}
affinity: {{ toJson . }}
{{- end }}
{{- with .runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
containers:
  - name: worker
    image: {{ include "silo.image" $root | quote }}
    imagePullPolicy: {{ .image.pullPolicy }}
    command: {{ toJson $.command }}
    {{- with $.args }}
    args: {{ toJson . }}
    {{- end }}
    env:
      - {name: FEDHELP_SILO_CONFIG, value: /etc/fedhelp/silo.yaml}
      - {name: HOME, value: /home/fedhelp}
      - {name: MPLCONFIGDIR, value: /home/fedhelp/matplotlib}
      - {name: TMPDIR, value: /tmp}
      {{- if .store.caConfigMap }}
      - {name: AWS_CA_BUNDLE, value: /etc/fedhelp-ca/ca.crt}
      {{- end }}
      {{- if .metrics.enabled }}
      - {name: FEDHELP_METRICS_PORT, value: "9090"}
      {{- end }}
      {{- with .env }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
    {{- with .store.secretName }}
    envFrom:
      - secretRef: {name: {{ . }}}
    {{- end }}
    {{- if .metrics.enabled }}
    ports:
      - {name: metrics, containerPort: 9090, protocol: TCP}
    {{- end }}
    resources:
      {{- $gpu := ternary (dict .gpu.resource (toString .gpu.count)) (dict) (gt (int .gpu.count) 0) }}
      requests: {{ merge (dict) $gpu (.resources.requests | default dict) | toJson }}
      limits: {{ merge (dict) $gpu (.resources.limits | default dict) | toJson }}
    securityContext:
      allowPrivilegeEscalation: false
      privileged: false
      readOnlyRootFilesystem: true
      capabilities: {drop: [ALL]}
    volumeMounts:
      - name: data
        mountPath: /data
        readOnly: true
        {{- with .data.subPath }}
        subPath: {{ . }}
        {{- end }}
      - {name: state, mountPath: /state}
      - {name: config, mountPath: /etc/fedhelp, readOnly: true}
      - {name: home, mountPath: /home/fedhelp}
      - {name: tmp, mountPath: /tmp}
      - {name: shared-memory, mountPath: /dev/shm}
      {{- if .store.caConfigMap }}
      - {name: store-ca, mountPath: /etc/fedhelp-ca, readOnly: true}
      {{- end }}
volumes:
  - name: data
    persistentVolumeClaim: {claimName: {{ .data.claimName }}, readOnly: true}
  - name: state
    persistentVolumeClaim: {claimName: {{ include "silo.state" $root }}}
  - name: config
    configMap: {name: {{ include "silo.config" $root }}}
  - name: home
    emptyDir: {}
  - name: tmp
    emptyDir: {}
  - name: shared-memory
    emptyDir: {medium: Memory, sizeLimit: {{ .sharedMemory }}}
  {{- if .store.caConfigMap }}
  - name: store-ca
    configMap: {name: {{ .store.caConfigMap }}}
  {{- end }}
{{- end -}}
{{- end }}

{{/* Labels of a worker's Job: with Kueue, the queue it waits in. */}}
{{- define "silo.jobLabels" -}}
{{ include "silo.podLabels" . }}
{{- with .Values.kueue.queueName }}
kueue.x-k8s.io/queue-name: {{ . }}
{{- end }}
{{- end }}
