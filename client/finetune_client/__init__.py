"""The asynchronous client of the Kubernetes API server.

The operator, the local node, the benchmarks and the tests share it. It imports finetune_api,
aiohttp and, for configuration and credentials, the `kubernetes` package.
"""
