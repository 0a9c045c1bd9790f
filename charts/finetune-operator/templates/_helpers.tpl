{{/* Name of the Deployment, and the beginning of all other names. */}}
{{- define "finetune-operator.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride }}
{{- else if contains .Chart.Name .Release.Name }}
{{- .Release.Name }}
{{- else }}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* Name of the Service for metrics; an alert names it too. */}}
{{- define "finetune-operator.metricsService" -}}
{{- printf "%s-metrics" (include "finetune-operator.fullname" . | trunc 55 | trimSuffix "-") }}
{{- end }}

{{- define "finetune-operator.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- .Values.serviceAccount.name | default (include "finetune-operator.fullname" .) }}
{{- else }}
{{- required "serviceAccount.create is false and serviceAccount.name is empty; name the service account to use" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{/* Reference of an image; takes {image, version}. */}}
{{- define "finetune-operator.image" -}}
{{- if .image.digest }}
{{- printf "%s@%s" .image.repository .image.digest }}
{{- else }}
{{- printf "%s:%s" .image.repository (.image.tag | default .version) }}
{{- end }}
{{- end }}

{{/* What selects the pods; never changes in the life of a release. */}}
{{- define "finetune-operator.selectorLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* Labels and annotations; takes {context, labels, annotations}. The chart's own win. */}}
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
