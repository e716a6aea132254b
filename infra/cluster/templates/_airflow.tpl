{{/* Variables, mounts and size of a container of Airflow's servers: (root, server, name, variables) */}}
{{- define "moeline.airflowContainer" -}}
{{- $store := dict "root" .root "component" (.name | default "") }}
envFrom:
  - configMapRef: {name: moeline-airflow}
  {{- with include "moeline.storeSecret" $store }}
  {{- . | nindent 2 }}
  {{- end }}
env:
  {{- include "moeline.variables" .root | nindent 2 }}
  {{- with include "moeline.storeVariables" $store }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- with .root.Values }}
  {{- include "moeline.secretVariable" (dict "name" "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN" "secret" .postgres.existingSecret "key" "airflow-url") | nindent 2 }}
  {{- include "moeline.secretVariable" (dict "name" "AIRFLOW__CORE__FERNET_KEY" "secret" .airflow.existingSecret "key" "fernet-key") | nindent 2 }}
  {{- include "moeline.secretVariable" (dict "name" "AIRFLOW__API__SECRET_KEY" "secret" .airflow.existingSecret "key" "api-secret-key") | nindent 2 }}
  {{- include "moeline.secretVariable" (dict "name" "AIRFLOW__API_AUTH__JWT_SECRET" "secret" .airflow.existingSecret "key" "jwt-secret") | nindent 2 }}
  {{- end }}
  {{- with .variables }}
  {{- . | nindent 2 }}
  {{- end }}
securityContext:
  {{- include "moeline.containerSecurity" .root | nindent 2 }}
resources:
  {{- include "moeline.resources" .server.size | nindent 2 }}
volumeMounts:
  {{- include "moeline.mounts" .root | nindent 2 }}
  {{- if eq (.name | default "") "api-server" }}
  - {name: tls, mountPath: /etc/moeline/tls, readOnly: true}
  - {name: mlflow-password, mountPath: /etc/moeline/mlflow, readOnly: true}
  {{- else if eq (.name | default "") "scheduler" }}
  - {name: pods, mountPath: /etc/moeline/pods, readOnly: true}
  {{- end }}
{{- end }}

{{- define "moeline.apiServerVariables" -}}
- {name: AIRFLOW__API__SSL_CERT, value: /etc/moeline/tls/tls.crt}
- {name: AIRFLOW__API__SSL_KEY, value: /etc/moeline/tls/tls.key}
{{- end }}

{{/* (name, job) */}}
{{- define "moeline.airflowProbes" -}}
{{- if eq .name "api-server" }}
startupProbe:
  httpGet: {path: /api/v2/version, port: https, scheme: HTTPS}
  failureThreshold: 60
  periodSeconds: 5
  timeoutSeconds: 5
livenessProbe:
  httpGet: {path: /api/v2/version, port: https, scheme: HTTPS}
  periodSeconds: 20
  timeoutSeconds: 10
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /api/v2/monitor/health, port: https, scheme: HTTPS}
  periodSeconds: 10
  timeoutSeconds: 10
{{- else }}
{{- if eq .name "scheduler" }}
startupProbe:
  httpGet: {path: /health, port: health}
  failureThreshold: 60
  periodSeconds: 5
{{- end }}
livenessProbe:
  {{- if eq .name "scheduler" }}
  httpGet: {path: /health, port: health}
  periodSeconds: 30
  {{- else }}
  exec: {command: [airflow, jobs, check, --job-type, {{ .job }}, --local]}     # loads all of Airflow: seconds of a core, so not often
  initialDelaySeconds: 60
  periodSeconds: 120
  {{- end }}
  timeoutSeconds: 60
  failureThreshold: 5
{{- end }}
{{- end }}
