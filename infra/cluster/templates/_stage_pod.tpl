{{/* The pod of one stage: (root, stage). train and forecast launch on Ray, which holds their resources. */}}
{{- define "moeline.stagePod" -}}
{{- $launches := has .stage (list "train" "forecast") }}
{{- $size := include "moeline.stageResources" (dict "root" .root "stage" ($launches | ternary "default" .stage)) | fromJson }}
apiVersion: v1
kind: Pod
metadata:
  name: stage
  labels:
    {{- include "moeline.podLabels" (dict "component" "stage") | nindent 4 }}
  annotations:
    cluster-autoscaler.kubernetes.io/safe-to-evict: "false"
    karpenter.sh/do-not-disrupt: "true"
spec:
  {{- include "moeline.podSecurity" .root | nindent 2 }}
  restartPolicy: Never
  terminationGracePeriodSeconds: 60     # a stopped stage writes its cost row
  {{- if $size.gpus }}
  {{- include "moeline.gpuPlacement" .root | nindent 2 }}
  {{- end }}
  containers:
    - name: base     # the name Airflow looks for; it fills in what to run
      image: {{ include "moeline.image" (dict "root" .root "name" (gt ($size.gpus | int) 0 | ternary "train" "control")) }}
      imagePullPolicy: {{ .root.Values.images.pullPolicy }}
      envFrom:
        - configMapRef: {name: moeline-airflow}
        {{- with include "moeline.storeSecret" (dict "root" .root "component" "stage") }}
        {{- . | nindent 8 }}
        {{- end }}
      env:
        {{- include "moeline.variables" .root | nindent 8 }}
        {{- with include "moeline.storeVariables" (dict "root" .root "component" "stage") }}
        {{- . | nindent 8 }}
        {{- end }}
        - {name: AIRFLOW__API__SSL_CA_FILE, value: /etc/moeline/ca/ca.crt}
        {{- include "moeline.secretVariable" (dict "name" "SPARK_CONNECT_AUTHENTICATE_TOKEN" "secret" .root.Values.spark.existingSecret "key" "connect-token") | nindent 8 }}
        {{- if $launches }}
        {{- include "moeline.rayToken" .root | nindent 8 }}
        - {name: RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S, value: "3600"}     # a machine with a GPU may have to be bought first
        {{- end }}
      securityContext:
        {{- include "moeline.containerSecurity" .root | nindent 8 }}
      resources:
        {{- include "moeline.resources" (dict "cores" $size.cores "memoryGib" $size.memory_gib "gpus" $size.gpus "gpuResource" .root.Values.gpu.resource) | nindent 8 }}
      volumeMounts:
        {{- include "moeline.mounts" .root | nindent 8 }}
        - {name: mlflow-password, mountPath: /etc/moeline/mlflow, readOnly: true}
  volumes:
    {{- include "moeline.volumes" .root | nindent 4 }}
    - name: mlflow-password
      secret: {secretName: {{ .root.Values.mlflow.existingSecret }}, items: [{key: password, path: password}]}
{{- end }}
