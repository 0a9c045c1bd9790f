"""The training of one attempt.

`attempt` is the main function of a rank; it builds the loop and runs it. `loop` uses one module for
each concern: `step`, `consensus`, `divergence`, `triggers`, `evaluate` and `telemetry`.

Imports all packages of lower layers. Must not import `prepare`, `export` and `pod`.
"""
