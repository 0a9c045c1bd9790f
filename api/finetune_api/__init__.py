"""The words both sides speak: the FineTuneJob resource and what operator and trainer exchange.

Operator, trainer and command line import this package and nothing of each other. It needs pydantic
and the standard library only, so that every image can carry it.
"""
