"""A writer of TensorBoard's event files that survives failed writes.

TensorBoard's own writer is not used, because it hands records to a thread that ends at the first
failed write, with a traceback, and loses all later points. Here a full disk costs only the points
of that time. A record that was written in part is removed again, because readers stop at it.
Format: tensorboard/summary/writer/record_writer.py and event_file_writer.py.
"""

import os
import socket
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog, SourceMetadata
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter


class EventFile:
    """A new event file in `folder`.

    Methods raise OSError, and then leave the file as it was before the call.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        """Create the file. Readers then drop points of `first_step` and later from other files."""
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():010.0f}.{socket.gethostname()}.{os.getpid()}"
        self._file = _AtomicAppends(folder / name)
        self._records = RecordWriter(self._file)
        source = SourceMetadata(writer="finetune_trainer")
        self._write(Event(file_version="brain.Event:2", source_metadata=source))
        start = SessionLog(status=SessionLog.START)
        self._write(Event(step=first_step, session_log=start))

    def log(self, step: int, values: dict[str, float]) -> None:
        """Write scalars by tag: all of them or none."""
        found = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._write(Event(step=step, summary=Summary(value=found)))

    def close(self) -> None:
        """Close the file. All points are on storage already."""
        self._records.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())


class _AtomicAppends:
    """An unbuffered file in which each write is complete or removed again."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("xb", buffering=0)
        self._size = 0

    def write(self, record: bytes) -> None:
        left = memoryview(record)
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError:
            self._file.seek(self._size)
            self._file.truncate()
            raise
        self._size += len(record)

    def close(self) -> None:
        self._file.close()
