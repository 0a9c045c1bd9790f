"""A simulated cluster that drives the real reconciler through random histories.

`store` is the API server, `api` the connection to it with its faults, `node` scheduler, kubelet and
the processes in pods, `controller` one life of the operator process, `world` all of them together,
`events` what may happen, `invariants` what must stay true, `mutations` proof that they can fail.
"""
