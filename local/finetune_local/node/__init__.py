"""The process node: a replacement of the kubelet that runs containers as local processes.

It is meant for tests and for one user on one machine. Containers have their own mounts, process
ids, user ids and host names, but it limits neither memory nor CPU, pulls no images, and all pods
share the network of the machine, where each one has its own loopback address.
"""
