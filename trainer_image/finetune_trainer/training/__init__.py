"""The training of one attempt: rendezvous, loop, step, consensus, evaluation and divergence.

Imports everything below it; `prepare` and `export` are its siblings.
"""
