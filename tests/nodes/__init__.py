"""Scenarios on a real Kubernetes with three nodes: `make test-nodes`. CONTRIBUTING.md says more."""
