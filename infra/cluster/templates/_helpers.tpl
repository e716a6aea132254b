{{/* The text of the environment file, and its content. */}}
{{- define "moeline.environment" -}}
{{ .Values.environment | default (.Files.Get "files/cluster.toml") }}
{{- end }}

{{- define "moeline.parsed" -}}
{{- $read := include "moeline.environment" . | fromToml }}
{{- if hasKey $read "Error" }}{{ fail (printf "environment is not TOML: %s. Start from infra/env/cluster.toml: --set-file environment=mine.toml" $read.Error) }}{{ end }}
{{- range list "paths" "prices" "resources" "services" }}
{{- if not (hasKey $read .) }}{{ fail (printf "environment has no table [%s]. Start from infra/env/cluster.toml: --set-file environment=mine.toml" .) }}{{ end }}
{{- end }}
{{- if not (hasKey $read.resources "default") }}{{ fail "environment has no [resources.default]: the size of stages that name none" }}{{ end }}
{{- $tables := $read.paths.tables | default "" }}
{{- if and $tables (not (hasPrefix "s3://" $tables)) }}
{{- fail (printf "environment: tables = %q is no bucket. Write tables = \"s3://bucket/tables\", or leave it out" $tables) }}
{{- end }}
{{- $read | toJson }}
{{- end }}

{{/* (root, stage): {cores, memory_gib, gpus} of [resources.<stage>], filled up from [resources.default]. */}}
{{- define "moeline.stageResources" -}}
{{- $all := (include "moeline.parsed" .root | fromJson).resources }}
{{- merge (deepCopy (get $all .stage | default dict)) $all.default | toJson }}
{{- end }}

{{/* (root, component): "yes" where it opens what lies in a store: the landing zone, or the tables. Trainings on Ray read files that their stage wrote. */}}
{{- define "moeline.readsStore" -}}
{{- $paths := (include "moeline.parsed" .root | fromJson).paths }}
{{- $readers := list }}
{{- if or (contains "://" $paths.landing) $paths.tables }}{{ $readers = list "stage" "spark-connect" "spark-executor" }}{{ end }}
{{- if $paths.tables }}{{ $readers = append $readers "api-server" }}{{ end }}
{{- if has .component $readers }}yes{{ end }}
{{- end }}

{{/* (root, component): what tells our code, and the AWS SDK in a JVM, of a store. Keys by secretKeyRef; the rest of the Secret comes by envFrom.
The region twice: boto, which s3fs asks with, knows the second name only. A JVM reads tables, and no landing zone. */}}
{{- define "moeline.storeVariables" -}}
{{- if include "moeline.readsStore" . }}
{{- $jvm := and (include "moeline.parsed" .root | fromJson).paths.tables (hasPrefix "spark" .component) }}
{{- with .root.Values.store }}
- {name: AWS_REGION, value: {{ .region | quote }}}
- {name: AWS_DEFAULT_REGION, value: {{ .region | quote }}}
{{- if .endpoint }}
- {name: FSSPEC_S3_ENDPOINT_URL, value: {{ .endpoint | quote }}}
{{- end }}
{{- if and .existingSecret $jvm }}
{{- $keys := dict "AWS_ACCESS_KEY_ID" "FSSPEC_S3_KEY" "AWS_SECRET_ACCESS_KEY" "FSSPEC_S3_SECRET" "AWS_SESSION_TOKEN" "FSSPEC_S3_TOKEN" }}
{{- range $name, $key := $keys }}
- name: {{ $name }}
  valueFrom: {secretKeyRef: {name: {{ $.root.Values.store.existingSecret }}, key: {{ $key }}, optional: true}}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* (root, component): the Secret of a store as an entry of envFrom, or nothing */}}
{{- define "moeline.storeSecret" -}}
{{- if and (include "moeline.readsStore" .) .root.Values.store.existingSecret -}}
- secretRef: {name: {{ .root.Values.store.existingSecret }}}
{{- end }}
{{- end }}

{{- define "moeline.labels" -}}
app.kubernetes.io/name: moeline
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/part-of: moeline
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{/* (root, component) */}}
{{- define "moeline.podLabels" -}}
app.kubernetes.io/name: moeline
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* (root, name): the reference of an image */}}
{{- define "moeline.image" -}}
{{- $image := get .root.Values.images .name }}
{{- if $image.digest }}{{ $image.repository }}@{{ $image.digest }}{{ else }}{{ $image.repository }}:{{ $image.tag }}{{ end }}
{{- end }}

{{/* (cores, memoryGib, gpus, gpuResource): requests equal limits, because what is held is what is paid for */}}
{{- define "moeline.resources" -}}
{{- $size := dict "cpu" (printf "%dm" (mulf .cores 1000 | int)) "memory" (printf "%dMi" (mulf .memoryGib 1024 | int)) }}
{{- if .gpus }}{{ $_ := set $size .gpuResource (.gpus | int | toString) }}{{ end -}}
requests: {{ $size | toJson }}
limits: {{ $size | toJson }}
{{- end }}

{{- define "moeline.podSecurity" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  {{- include "moeline.securityContext" . | nindent 2 }}
{{- with .Values.images.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "moeline.securityContext" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "moeline.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* Variables of every process of ours. */}}
{{- define "moeline.variables" -}}
- {name: MOELINE_HOME, value: /var/lib/moeline}
- {name: MOELINE_ENV, value: /etc/moeline/environment/cluster.toml}
- {name: HOME, value: /tmp}
- {name: PYTHONUNBUFFERED, value: "1"}
- {name: TOKENIZERS_PARALLELISM, value: "false"}
- {name: MLFLOW_DISABLE_TELEMETRY, value: "true"}
- {name: MLFLOW_TRACKING_SERVER_CERT_PATH, value: /etc/moeline/ca/ca.crt}
- {name: GRPC_DEFAULT_SSL_ROOTS_FILE_PATH, value: /etc/moeline/ca/ca.crt}
- {name: GRPC_ENABLE_FORK_SUPPORT, value: "0"} # see jobs/services/ray_connection.py
- {name: RAY_USAGE_STATS_ENABLED, value: "0"}
- {name: RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO, value: "0"}
{{- end }}

{{- define "moeline.mounts" -}}
- {name: home, mountPath: /var/lib/moeline}
- {name: tmp, mountPath: /tmp}
- {name: environment, mountPath: /etc/moeline/environment, readOnly: true}
- {name: ca, mountPath: /etc/moeline/ca, readOnly: true}
{{- end }}

{{- define "moeline.volumes" -}}
- name: home
  persistentVolumeClaim: {claimName: {{ .Values.home.existingClaim | default "moeline-home" }}}
- name: tmp
  emptyDir: {}
- name: environment
  configMap: {name: moeline-environment}
- name: ca
  secret:
    secretName: {{ .Values.tls.existingSecret }}
    items: [{key: ca.crt, path: ca.crt}]
{{- end }}

{{/* (name, secret, key) */}}
{{- define "moeline.secretVariable" -}}
- name: {{ .name }}
  valueFrom:
    secretKeyRef: {name: {{ .secret }}, key: {{ .key }}}
{{- end }}

{{/* The token that KubeRay makes for a cluster with authOptions.mode token. */}}
{{- define "moeline.rayToken" -}}
- {name: RAY_AUTH_MODE, value: token}
{{ include "moeline.secretVariable" (dict "name" "RAY_AUTH_TOKEN" "secret" "moeline-ray" "key" "auth_token") }}
{{- end }}

{{/* TLS in front of a loopback port: (root, listen, to, alpn). Starts before the server and ends after it. */}}
{{- define "moeline.tlsFront" -}}
name: tls-front
image: {{ include "moeline.image" (dict "root" .root "name" "control") }}
imagePullPolicy: {{ .root.Values.images.pullPolicy }}
restartPolicy: Always
command: [python, -m, infra.cluster.tls_front, {{ .listen | quote }}, {{ .to | quote }}, --alpn, {{ .alpn }}]
ports:
  - {name: tls, containerPort: {{ .listen }}}
securityContext:
  {{- include "moeline.containerSecurity" .root | nindent 2 }}
resources:
  {{- include "moeline.resources" (dict "cores" 0.25 "memoryGib" 0.25) | nindent 2 }}
startupProbe:
  tcpSocket: {port: {{ .listen }}}
  failureThreshold: 30
  periodSeconds: 1
livenessProbe:
  tcpSocket: {port: {{ .listen }}}
  periodSeconds: 30
volumeMounts:
  - {name: tls, mountPath: /etc/moeline/tls, readOnly: true}
{{- end }}

{{- define "moeline.tlsVolume" -}}
- name: tls
  secret:
    secretName: {{ .Values.tls.existingSecret }}
    items: [{key: tls.crt, path: tls.crt}, {key: tls.key, path: tls.key}]
{{- end }}

{{/* Where pods with GPUs may run. */}}
{{- define "moeline.gpuPlacement" -}}
{{- $selector := deepCopy .Values.gpu.nodeSelector }}
{{- $tolerations := .Values.gpu.tolerations }}
{{- if .Values.gpu.spot.enabled }}
{{- $selector = merge $selector .Values.gpu.spot.nodeSelector }}
{{- $tolerations = concat $tolerations .Values.gpu.spot.tolerations }}
{{- end }}
nodeSelector: {{ $selector | toJson }}
tolerations: {{ $tolerations | toJson }}
{{- end }}

{{/* Connects to a port of this pod's loopback: (port) */}}
{{- define "moeline.loopbackProbe" -}}
exec:
  command: [python, -c, "import socket; socket.create_connection(('127.0.0.1', {{ .port }}), 5).close()"]
{{- end }}
