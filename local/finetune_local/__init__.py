"""A one-machine cluster: the real control plane, and a node that runs pods as local processes."""
