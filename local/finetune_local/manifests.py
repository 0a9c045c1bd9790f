"""RBAC rules of this project's own components of a local cluster, and its storage class."""

MANIFESTS = """
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: finetune-local-provisioner}
rules:
- apiGroups: [""]
  resources: [persistentvolumes]
  verbs: [get, list, watch, create, delete, patch]
- {apiGroups: [""], resources: [persistentvolumeclaims], verbs: [get, list, watch]}
- {apiGroups: [storage.k8s.io], resources: [storageclasses], verbs: [get, list, watch]}
- {apiGroups: [""], resources: [events], verbs: [create, patch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: finetune-local-provisioner}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: finetune-local-provisioner}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: "finetune-local:provisioner"}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: finetune-local-names}
rules:
- {apiGroups: [""], resources: [pods, services], verbs: [get, list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: finetune-local-names}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: finetune-local-names}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: "finetune-local:names"}]
---
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata:
  name: local
  annotations: {storageclass.kubernetes.io/is-default-class: "true"}
provisioner: finetune.dev/local
reclaimPolicy: Delete
volumeBindingMode: Immediate
"""
