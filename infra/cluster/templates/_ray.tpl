{{/* A Ray container: (root, size, image, port, path of a page that says it is well) */}}
{{- define "moeline.rayContainer" -}}
image: {{ include "moeline.image" (dict "root" .root "name" .image) }}
imagePullPolicy: {{ .root.Values.images.pullPolicy }}
env:
  {{- include "moeline.variables" .root | nindent 2 }}
  - {name: RAY_enable_metrics_collection, value: "0"}     # pages that ask for no token
  - {name: DASHBOARD_METRIC_PORT, value: "65536"}
securityContext:
  {{- include "moeline.containerSecurity" .root | nindent 2 }}
resources:
  {{- include "moeline.resources" .size | nindent 2 }}
{{- $well := printf "import urllib.request; urllib.request.urlopen('http://127.0.0.1:%v%s', timeout=5)" .port .path }}
startupProbe:
  exec: {command: [python, -c, {{ $well | quote }}]}
  failureThreshold: 60
  periodSeconds: 5
  timeoutSeconds: 10
livenessProbe:
  exec: {command: [python, -c, {{ $well | quote }}]}
  periodSeconds: 30
  timeoutSeconds: 10
  failureThreshold: 5
readinessProbe:
  exec: {command: [python, -c, {{ $well | quote }}]}
  periodSeconds: 10
  timeoutSeconds: 10
volumeMounts:
  {{- include "moeline.mounts" .root | nindent 2 }}
{{- end }}

{{/* The pod template of a worker group: (root, size, image, gpu) */}}
{{- define "moeline.rayWorker" -}}
metadata:
  labels:
    {{- include "moeline.podLabels" (dict "component" "ray-worker") | nindent 4 }}
  annotations:
    karpenter.sh/do-not-disrupt: "true"
spec:
  {{- include "moeline.podSecurity" .root | nindent 2 }}
  terminationGracePeriodSeconds: 120     # a notice of the end becomes a checkpoint
  {{- if .gpu }}
  {{- include "moeline.gpuPlacement" .root | nindent 2 }}
  {{- end }}
  containers:
    - name: ray
      {{- include "moeline.rayContainer" (dict "root" .root "size" .size "image" .image "path" "/api/local_raylet_healthz" "port" 52365) | nindent 6 }}
  volumes:
    {{- include "moeline.volumes" .root | nindent 4 }}
{{- end }}
