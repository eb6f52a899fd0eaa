{{/*
The pod that serves the adopted model, of a Deployment or of KServe's InferenceService. It sees no image of the data volume, no run's state and no
credentials of the store: of the state volume it mounts the models, read-only, and the record of answers.
*/}}
{{- define "silo.servingPod" -}}
{{- with .Values -}}
serviceAccountName: {{ include "silo.serving" $ }}
automountServiceAccountToken: false
enableServiceLinks: false
terminationGracePeriodSeconds: {{ add .serving.timeoutSeconds 15 }}
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
{{- if gt (int .serving.gpu.count) 0 }}
{{- with .runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- end }}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
initContainers:
  # A folder that Kubernetes made for subPath would be root's: no hospital could adopt anything into it.
  - name: folders
    image: {{ include "silo.image" $ | quote }}
    imagePullPolicy: {{ .image.pullPolicy }}
    command: ["mkdir", "-p", "/state/models", "/state/answers"]
    resources:
      requests: {{ .serving.resources.requests | default dict | toJson }}
      limits: {{ .serving.resources.limits | default dict | toJson }}
    securityContext:
      allowPrivilegeEscalation: false
      privileged: false
      readOnlyRootFilesystem: true
      capabilities: {drop: [ALL]}
    volumeMounts:
      - {name: state, mountPath: /state}
containers:
  - name: {{ ternary "kserve-container" "serving" .serving.kserve }}
    image: {{ include "silo.image" $ | quote }}
    imagePullPolicy: {{ .image.pullPolicy }}
    {{- $args := list "serve" "--host" "0.0.0.0" "--port" "8080" "--max-batch" (toString .serving.maxBatch) "--max-mebibytes" (toString .serving.maxMebibytes) "--timeout" (toString .serving.timeoutSeconds) "--device" (ternary "cuda" "cpu" (gt (int .serving.gpu.count) 0)) }}
    {{- if .serving.model }}{{ $args = concat $args (list "--name" .serving.model) }}{{ end }}
    {{- if .serving.tokenSecret }}{{ $args = concat $args (list "--token-file" "/etc/fedhelp-token/token") }}{{ else }}{{ $args = append $args "--no-token" }}{{ end }}
    {{- if .serving.tlsSecret }}{{ $args = concat $args (list "--tls-cert" "/etc/fedhelp-tls/tls.crt" "--tls-key" "/etc/fedhelp-tls/tls.key") }}{{ end }}
    command: ["fedhelp"]
    args: {{ toJson $args }}
    env:
      - {name: FEDHELP_SILO_CONFIG, value: /etc/fedhelp/silo.yaml}
      - {name: HOME, value: /home/fedhelp}
      - {name: MPLCONFIGDIR, value: /home/fedhelp/matplotlib}
      - {name: TMPDIR, value: /tmp}
      {{- if .metrics.enabled }}
      - {name: FEDHELP_METRICS_PORT, value: "9090"}
      {{- end }}
    ports:
      - {name: {{ ternary "https" "http" (ne .serving.tlsSecret "") }}, containerPort: 8080, protocol: TCP}
      {{- if .metrics.enabled }}
      - {name: metrics, containerPort: 9090, protocol: TCP}
      {{- end }}
    {{- $scheme := ternary "HTTPS" "HTTP" (ne .serving.tlsSecret "") }}
    startupProbe:
      httpGet: {path: /v2/health/live, port: 8080, scheme: {{ $scheme }}}
      periodSeconds: 2
      failureThreshold: 60
    livenessProbe:
      httpGet: {path: /v2/health/live, port: 8080, scheme: {{ $scheme }}}
      periodSeconds: 10
      timeoutSeconds: 5
    readinessProbe:
      httpGet: {path: /v2/health/ready, port: 8080, scheme: {{ $scheme }}}
      periodSeconds: 5
      timeoutSeconds: 5
    lifecycle:
      preStop:
        exec: {command: ["sleep", "5"]} # until no Service sends new requests here
    resources:
      {{- $gpu := ternary (dict .gpu.resource (toString .serving.gpu.count)) (dict) (gt (int .serving.gpu.count) 0) }}
      requests: {{ merge (dict) $gpu (.serving.resources.requests | default dict) | toJson }}
      limits: {{ merge (dict) $gpu (.serving.resources.limits | default dict) | toJson }}
    securityContext:
      allowPrivilegeEscalation: false
      privileged: false
      readOnlyRootFilesystem: true
      capabilities: {drop: [ALL]}
    volumeMounts:
      - {name: state, mountPath: /state/models, subPath: models, readOnly: true}
      - {name: state, mountPath: /state/answers, subPath: answers}
      - {name: config, mountPath: /etc/fedhelp, readOnly: true}
      - {name: home, mountPath: /home/fedhelp}
      - {name: tmp, mountPath: /tmp}
      {{- if .serving.tokenSecret }}
      - {name: token, mountPath: /etc/fedhelp-token, readOnly: true}
      {{- end }}
      {{- if .serving.tlsSecret }}
      - {name: tls, mountPath: /etc/fedhelp-tls, readOnly: true}
      {{- end }}
volumes:
  - name: state
    persistentVolumeClaim: {claimName: {{ include "silo.state" $ }}}
  - name: config
    configMap: {name: {{ include "silo.config" $ }}}
  - name: home
    emptyDir: {}
  - name: tmp
    emptyDir: {}
  {{- with .serving.tokenSecret }}
  - name: token
    secret: {secretName: {{ . }}, items: [{key: token, path: token}]}
  {{- end }}
  {{- with .serving.tlsSecret }}
  - name: tls
    secret: {secretName: {{ . }}}
  {{- end }}
{{- end -}}
{{- end }}
