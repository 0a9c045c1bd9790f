"""What only tests and benchmarks need: external programs, and control over a local cluster."""
