"""Decisions about one job: pure functions of what was observed and of the time.

Nothing here reads a clock, does I/O or imports the rest of the operator, except its settings; an
import contract checks this. Where to read:

- `planner` is the entry point: it selects the module for the phase of the job's life that the job
  is in.
- `observe` has the input (`World`, `Job`, `Pod`), `decision` the output.
- `prepare`, `gang`, `next_attempt`, `suspend` and `finished` each decide for one phase of life.
- `outcomes` is the table of all ways in which an attempt can end. `verdict` finds the row that
  applies to a gang, `stops` with `deadlines`, `suspend` and `incomplete_gang` decide when the
  operator stops a gang itself, `ending` writes the end down, `restart` decides what follows.
- `slow_pods` finds pods that are bound and do not run, and adds what their events say.
- `interruption` shows a gang that cannot go on, before the verdict on it.
- `attempts` and `usage` keep the records of attempts, `describe` and `events` present them,
  with the clauses of `nodes` and `gang_text`.
- `pods`, `template` and `resolve` render pods and choose what the spec leaves open.
"""
