"""What passes between a child, its supervisor and the sink: the kinds of records and reports, by number.

     supervisor ──frames of messages──▶ child    TASK, FUNCTION, CONFIG, STOP          (task socket, to the main thread)
     supervisor ──control messages────▶ child    SEND, CREDIT, BUFFERS, SHARE          (control socket, to a thread)
     child ──frames of records──▶ supervisor     RESULT … READY                        (task socket, to the pump)
     supervisor ──reports──▶ sink                    (parcel, kind, …)

A frame is a 4-byte little-endian length and a msgpack array of messages or records, each an array that starts with
its kind.
"""

from __future__ import annotations

from typing import Final

import msgspec

decode = msgspec.msgpack.Decoder().decode
"""A record or message from its bytes."""

# messages down, on the task socket
TASK: Final = 0  # (TASK, seq, id, function key, payload, attempt, extras or None)
FUNCTION: Final = 1  # (FUNCTION, key, name, kind, body)
STOP: Final = 2  # (STOP,)
DROP: Final = 3  # (DROP, key): the callable is not used any more, or will be sent again

# messages down, on the control socket
SEND: Final = 0  # (SEND, seq, name, packed arguments)
CREDIT: Final = 1  # (CREDIT, seq): all before the last WANT was taken
BUFFERS: Final = 2  # (BUFFERS, seq, sizes) with one descriptor; both ways
SHARE: Final = 3  # (SHARE, key, data, sizes) with one descriptor
FORGET: Final = 6  # (FORGET, key): nobody holds the shared object any more
STOPPING: Final = 4  # (STOPPING, seq): a waiting `receive` or `ask` of that task looks at the flag
INTERRUPT: Final = 5  # (INTERRUPT, seq): the second rung for a coroutine

# records up
RESULT: Final = 0  # (RESULT, seq, duration ns, payload, number of buffers)
EVENT: Final = 1  # (EVENT, seq, name, time, arguments)            arguments are msgpack, type-exact
PACKED: Final = 2  # (PACKED, seq, name, time, pickle, reprs)      anything else
PROGRESS: Final = 3  # (PROGRESS, seq, name, time, fraction, done, total, message)
ERROR: Final = 4  # (ERROR, seq, duration ns, packed error, again)  again: seconds, None, or UNKNOWN
UNKNOWN: Final = -1.0  # in place of `again`: the function itself could not be imported
CANCELLED: Final = 5  # (CANCELLED, seq, duration ns, rung)
STARTED: Final = 6  # (STARTED, seq, monotonic ns)                  coroutines only: others publish on the board
SKIPPED: Final = 7  # (SKIPPED, seq)                                a recalled task was met and not run
ITEM_RESULT: Final = 20  # (ITEM_RESULT, seq, index, payload)      the items of a chunk: 20 and above
ITEM_PLAIN: Final = 21  # (ITEM_PLAIN, seq, index, value)           an atom, which msgpack gives back type-exact
ITEM_ERROR: Final = 22  # (ITEM_ERROR, seq, index, packed error)
RETURNED: Final = 8  # (RETURNED, seq, duration ns, value)          an atom
READY: Final = 10  # (READY,)
SETUP_FAILED: Final = 11  # (SETUP_FAILED, packed error)
ELSEWHERE: Final = 14  # (ELSEWHERE, seq, messenger's address, record)   an event for another messenger
WANT: Final = 12  # (WANT, seq): tell me when the events before this were taken

# reports to the sink: (parcel, kind, …)
REPORT_STARTED: Final = 0  # (parcel, kind, worker, Unix time)
REPORT_EVENTS: Final = 1  # (parcel, kind, records, bytes)          records as above: EVENT, PACKED, PROGRESS
REPORT_SUCCEEDED: Final = 2  # (parcel, kind, payload, buffers)
REPORT_RETURNED: Final = 3  # (parcel, kind, value)                 live engines: the value itself
REPORT_FAILED: Final = 4  # (parcel, kind, packed error[, again])
NOT_SET_UP: Final = "not set up"  # last in a report: the initializer failed, nothing of the task ran
REPORT_RAISED: Final = 5  # (parcel, kind, exception)               live engines and our own verdicts
REPORT_CANCELLED: Final = 6  # (parcel, kind, rung)
REPORT_LOST: Final = 7  # (parcel, kind, TaskLost)
REPORT_WANT: Final = 9  # (parcel, kind)
REPORT_TRIMMED: Final = 10  # (parcel, kind, index): the items of the chunk from there on were taken back
REPORT_RETRYING: Final = 11  # (parcel, kind, reason, delay): the attempt is over, who runs it tries again
REPORT_WAITING: Final = 15  # (parcel, kind, reason): the attempt is over before it began, another one follows
REPORT_ELSEWHERE: Final = 14  # (parcel, kind, messenger's address, record): an event for another messenger
REPORT_ITEMS: Final = 8  # (parcel, kind, records)              as above, of consecutive items
REPORT_ACCEPTED: Final = 12  # (parcel, kind): of a foreign call: a server has it
REPORT_AWAY: Final = 13  # (parcel, kind, ProviderError): of a foreign call: no server answers, it waits
