"""The process node: a kubelet of our own that runs a pod's containers as local processes.

It is honest about what it is: it isolates nothing but names (mounts, processes, users, host name),
limits neither memory nor CPU, shares the network of the machine (each pod has a loopback address of
its own), pulls no image. For one user on one machine, and for tests.
"""
