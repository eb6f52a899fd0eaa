{{/*
A compiled pipeline, made ready for this installation. Takes {"root": $, "name": "fedhelp"}; gives JSON
{"pipelineSpec": ..., "platformSpec": ...} with this release's images, a node for each of the federation's silos (HOSPITAL stands for them), a form that shows the federation's own settings, and the
public images mounted where tasks read them.
*/}}
{{- define "hub.pipeline" -}}
{{- $root := .root -}}
{{- $text := $root.Files.Get (printf "files/pipelines/%s.yaml" .name) -}}
{{- range $name, $image := dict "hub" $root.Values.image "silo" $root.Values.siloImage -}}
{{- $text = $text | replace (printf "image: fedhelp/%s:%s" $name $root.Chart.AppVersion) (printf "image: %s" (include "hub.image" (dict "root" $root "image" $image))) -}}
{{- end -}}
{{- $documents := splitList "\n---\n" $text -}}
{{- $spec := index $documents 0 | fromYaml -}}
{{- $platform := index $documents 1 | fromYaml -}}
{{- range $parameter, $value := include "hub.form" $root | fromJson -}}
{{- $field := index $spec.root.inputDefinitions.parameters $parameter -}}
{{- if and $field.literals (not (has $value $field.literals)) -}}
{{- fail (printf "federation: a pipeline runs %s %s, got %v; change it" $parameter (join ", " $field.literals) $value) -}}
{{- end -}}
{{- $_ := set $field "defaultValue" $value -}}
{{- end -}}
{{- $tasks := $spec.root.dag.tasks -}}
{{- $silos := list -}}
{{- range $root.Values.federation.silos -}}
{{- $silos = append $silos .name -}}
{{- end -}}
{{- $silos = gt (len $silos) 50 | ternary list $silos -}} {{/* fedhelp_pipelines.compile has the same bound */}}
{{- $nodes := list -}}
{{- with get $tasks "train-HOSPITAL" -}}
{{- $nodes = $silos -}}
{{- $pattern := toJson . -}}
{{- $_ := unset $tasks "train-HOSPITAL" -}}
{{- range $silos -}}
{{- $_ := set $tasks (printf "train-%s" .) ($pattern | replace "HOSPITAL" . | fromJson) -}}
{{- end -}}
{{- end -}}
{{- $_ := set $tasks.check.inputs.parameters "nodes" (dict "runtimeValue" (dict "constant" $nodes)) -}}
{{- with $root.Values.publicImages.claimName -}}
{{- $folder := ($root.Values.federation.public_set | default dict).images | required "publicImages.claimName: federation.public_set.images must say where the public images are mounted, such as /public" -}}
{{- $mount := dict "mountPath" $folder "constant" . "pvcNameParameter" (dict "runtimeValue" (dict "constant" .)) -}}
{{- range $executor, $settings := $platform.platforms.kubernetes.deploymentSpec.executors -}}
{{- if or (eq $executor "exec-check") (hasPrefix "exec-soft-label-prefetch" $executor) -}}
{{- $_ := set $settings "pvcMount" (list $mount) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- dict "pipelineSpec" $spec "platformSpec" $platform | toJson -}}
{{- end }}

{{/* What the federation says of the run form's parameters; JSON {parameter: value}. The rest keep the paper's settings. */}}
{{- define "hub.form" -}}
{{- $found := dict -}}
{{- range $parameter, $path := .Files.Get "files/form.yaml" | fromYaml -}}
{{- $value := $.Values.federation -}}
{{- range splitList "." $path -}}
{{- $value = dig . "" ($value | default dict) -}}
{{- end -}}
{{- if not (or (kindIs "invalid" $value) (eq (toString $value) "")) -}}
{{- $_ := set $found $parameter $value -}}
{{- end -}}
{{- end -}}
{{- $found | toJson -}}
{{- end }}

{{/* Whom the tasks of a run trust, as JSON: what the chart's own federation names, and what the values add. */}}
{{- define "hub.trust" -}}
{{- $trust := .Values.trust -}}
{{- $federation := .Values.federation -}}
{{- $hosts := $trust.teacherHosts | default list -}}
{{- $models := $trust.modelUris | default list -}}
{{- range dig "public_set" "teachers" list $federation -}}
{{- if eq (.kind | default "mlflow") "mlflow" -}}
{{- if not $trust.pyfunc -}}
{{- fail (printf "federation.public_set.teachers: %s is an MLflow model, which runs its author's code in the hub; set trust.pyfunc to true, or give kind openinference" .name) -}}
{{- end -}}
{{- $models = append $models .uri -}}
{{- else -}}
{{- $hosts = append $hosts (urlParse .uri).host -}}
{{- end -}}
{{- end -}}
{{- $found := dict "secret_folder" $trust.secretFolder "secret_variables" $trust.secretVariables "pyfunc" $trust.pyfunc -}}
{{- $_ := set $found "teacher_hosts" (uniq $hosts) -}}
{{- $_ := set $found "model_uris" (uniq $models) -}}
{{- $_ := set $found "tracking_uris" (dig "tracking" "uri" "" $federation | append ($trust.trackingUris | default list) | compact | uniq) -}}
{{- $_ := set $found "store_urls" (dig "store" "url" "" $federation | append ($trust.storeUrls | default list) | compact | uniq) -}}
{{- $_ := set $found "store_endpoints" (dig "store" "endpoint_url" "" $federation | append ($trust.storeEndpoints | default list) | compact | uniq) -}}
{{- $found | toPrettyJson -}}
{{- end }}

{{/* The name of this content: another content is another version. */}}
{{- define "hub.pipelineVersion" -}}
{{ .name }}-{{ include "hub.pipeline" . | sha256sum | trunc 8 }}
{{- end }}

{{/* A Job of the chart's own that calls `fedhelp register`. Takes {"root": $, "name": ..., "hook": ..., "args": [...]}. */}}
{{- define "hub.registerJob" -}}
{{- $root := .root -}}
apiVersion: batch/v1
kind: Job
metadata:
  name: {{ .name }}
  namespace: {{ $root.Release.Namespace }}
  labels: {{- include "hub.labels" $root | nindent 4 }}
  annotations:
    helm.sh/hook: {{ .hook }}
    helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
    helm.sh/hook-output-log-policy: hook-failed
spec:
  backoffLimit: 3
  activeDeadlineSeconds: 600
  ttlSecondsAfterFinished: 3600
  podFailurePolicy:
    rules:
      - action: FailJob
        onExitCodes:
          containerName: register
          operator: In
          values: [2, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19]
  template:
    metadata:
      labels: {{- include "hub.labels" $root | nindent 8 }}
    spec:
      restartPolicy: Never
      serviceAccountName: {{ $root.Values.serviceAccount.name }}
      automountServiceAccountToken: false
      enableServiceLinks: false
      securityContext:
        runAsNonRoot: true
        runAsUser: 10001
        runAsGroup: 10001
        fsGroup: 10001
        seccompProfile: {type: RuntimeDefault}
      {{- with $root.Values.image.pullSecrets }}
      imagePullSecrets:
        {{- range . }}
        - name: {{ . }}
        {{- end }}
      {{- end }}
      containers:
        - name: register
          image: {{ include "hub.image" (dict "root" $root "image" $root.Values.image) | quote }}
          imagePullPolicy: {{ $root.Values.image.pullPolicy }}
          command: [fedhelp, register]
          args: {{ toJson .args }}
          env:
            - {name: HOME, value: /tmp}
            {{- if $root.Values.pipelines.tokenAudience }}
            - {name: KF_PIPELINES_SA_TOKEN_PATH, value: /var/run/secrets/kubeflow/pipelines/token}
            {{- end }}
          resources:
            requests: {cpu: 100m, memory: 256Mi}
            limits: {cpu: "1", memory: 512Mi}
          securityContext:
            allowPrivilegeEscalation: false
            readOnlyRootFilesystem: true
            capabilities: {drop: [ALL]}
          volumeMounts:
            - {name: tmp, mountPath: /tmp}
            - {name: pipelines, mountPath: /etc/fedhelp-pipelines, readOnly: true}
            {{- if $root.Values.pipelines.tokenAudience }}
            - {name: token, mountPath: /var/run/secrets/kubeflow/pipelines, readOnly: true}
            {{- end }}
      volumes:
        - name: tmp
          emptyDir: {}
        - name: pipelines
          configMap: {name: {{ include "hub.pipelines" $root }}}
        {{- if $root.Values.pipelines.tokenAudience }}
        - name: token
          projected:
            sources:
              - serviceAccountToken: {path: token, audience: {{ $root.Values.pipelines.tokenAudience }}, expirationSeconds: 3600}
        {{- end }}
{{- end }}
