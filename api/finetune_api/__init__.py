"""The FineTuneJob resource and the messages between operator and trainer.

Operator, trainer and command line import this package, and none of them imports another one. It
needs only pydantic and the standard library, so that every image can contain it.
"""
