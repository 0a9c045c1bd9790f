{{/* Returns the name of the Deployment, which is the prefix of all other names. */}}
{{- define "finetune-operator.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride }}
{{- else if contains .Chart.Name .Release.Name }}
{{- .Release.Name }}
{{- else }}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* Returns the name of the Service for metrics, which an alert uses as well. */}}
{{- define "finetune-operator.metricsService" -}}
{{- printf "%s-metrics" (include "finetune-operator.fullname" . | trunc 55 | trimSuffix "-") }}
{{- end }}

{{- define "finetune-operator.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- .Values.serviceAccount.name | default (include "finetune-operator.fullname" .) }}
{{- else }}
{{- required "serviceAccount.create is false and serviceAccount.name is empty; set serviceAccount.name to the name of an existing service account" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{/* Returns the reference of an image. Takes {image, version}. */}}
{{- define "finetune-operator.image" -}}
{{- if .image.digest }}
{{- printf "%s@%s" .image.repository .image.digest }}
{{- else }}
{{- printf "%s:%s" .image.repository (.image.tag | default .version) }}
{{- end }}
{{- end }}

{{/* Returns the labels that select the pods. They never change during the life of a release. */}}
{{- define "finetune-operator.selectorLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* Returns labels and annotations. Takes {context, labels, annotations}. The chart's own take precedence. */}}
{{- define "finetune-operator.metadata" -}}
{{- $chart := .context.Chart -}}
{{- $labels := include "finetune-operator.selectorLabels" .context | fromYaml -}}
{{- $_ := set $labels "helm.sh/chart" (printf "%s-%s" $chart.Name $chart.Version | replace "+" "_") -}}
{{- $_ := set $labels "app.kubernetes.io/version" $chart.AppVersion -}}
{{- $_ := set $labels "app.kubernetes.io/managed-by" .context.Release.Service -}}
labels:
  {{- merge $labels (.labels | default dict) .context.Values.commonLabels | toYaml | nindent 2 }}
{{- with merge dict (.annotations | default dict) .context.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
