"""A simulated cluster that drives the real reconciler through random histories.

`store` is the API server and `api` the connection to it, with its faults. `node` has the scheduler,
the kubelets and the processes in pods. `controller` is one run of the operator process, and `world`
joins all of them. `events` lists what may happen, `invariants` what must always hold, and
`mutations` proves that the invariants can fail.
"""
