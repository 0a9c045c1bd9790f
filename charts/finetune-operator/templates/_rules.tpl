{{- /* Written by `make crds` from operator/rbac/role.yaml; do not edit. */ -}}
{{- define "finetune-operator.rules" }}
- apiGroups: [finetune.dev]
  resources: [finetunejobs]
  verbs: [delete, get, list, watch] # delete: ttlSecondsAfterFinished
- apiGroups: [finetune.dev]
  resources: [finetunejobs/status]
  verbs: [patch]
- apiGroups: [""]
  resources: [pods]
  verbs: [create, delete, get, list, watch]
- apiGroups: [""]
  resources: [services]
  verbs: [create, get]
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get]
- apiGroups: [""]
  resources: [resourcequotas]
  verbs: [list] # whether a complete gang is admitted now
- apiGroups: [""]
  resources: [events]
  verbs: [create, list, patch] # list: why a pod that has a node does not run
{{- end }}
{{- define "finetune-operator.leaseRules" }}
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [create]
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  resourceNames: [{{ include "finetune-operator.fullname" . }}]
  verbs: [get, patch]
{{- end }}
