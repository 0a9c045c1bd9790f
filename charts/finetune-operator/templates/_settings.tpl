{{/* Returns the environment of the operator: all of its settings. */}}
{{- define "finetune-operator.settings" -}}
- name: FINETUNE_TRAINER_IMAGE
  value: {{ include "finetune-operator.image" (dict "image" .Values.trainer.image "version" .Chart.AppVersion) | quote }}
{{- with .Values.namespaces }}
- name: FINETUNE_NAMESPACES
  value: {{ join "," . | quote }}
{{- end }}
{{- with .Values.jobSelector }}
- name: FINETUNE_JOB_SELECTOR
  value: {{ . | quote }}
{{- end }}
- name: FINETUNE_DEVICE_TYPES
  value: {{ .Values.deviceTypes | toJson | quote }}
- name: FINETUNE_REPORT_INTERVAL_SECONDS
  value: {{ .Values.reportIntervalSeconds | quote }}
- name: FINETUNE_RESTART_BACKOFF_SECONDS
  value: {{ .Values.restartBackoffSeconds | quote }}
- name: FINETUNE_PROGRESS_WRITE_SECONDS
  value: {{ .Values.progressWriteSeconds | quote }}
- name: FINETUNE_STRICT_CERTIFICATES
  value: {{ .Values.apiServer.strictCertificates | quote }}
- name: FINETUNE_ENDED_METRICS_SECONDS
  value: {{ .Values.metrics.endedJobSeconds | quote }}
- name: FINETUNE_HEALTH_PORT
  value: "8081"
# Needed with one replica as well: a rolling update or a lost node leads to two for a while.
- name: FINETUNE_LEASE_NAMESPACE
  value: {{ .Release.Namespace | quote }}
- name: FINETUNE_LEASE_NAME
  value: {{ include "finetune-operator.fullname" . | quote }}
- name: FINETUNE_LEASE_DURATION_SECONDS
  value: {{ .Values.leaseDurationSeconds | quote }}
{{- range .Values.extraEnv }}
{{- if hasPrefix "FINETUNE_" .name }}
{{- fail (printf "extraEnv sets %s; the chart sets variables that begin with FINETUNE_ from its own values (charts/finetune-operator/README.md); remove it" .name) }}
{{- end }}
{{- end }}
{{- end }}
