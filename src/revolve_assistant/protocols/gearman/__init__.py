"""Gearman: the protocol without a socket, and a client, a worker and an administrator with one.

    GearmanClient · GearmanWorker · GearmanAdmin          blocking, in a few lines: docs/reference/gearman-client.md
    ClientState · WorkerState · AdminState                one connection each, bytes in and out, no socket
    Decoder · encode · Packet · Kind                      the packets, for both sides
    check_function · check_unique · …                     what gearmand can hold

gearmand 1.1.20 is what all of it is tested against. There is no authentication in this protocol: whoever reaches the
port may submit, take and cancel jobs.
"""

from .admin import AdminState as AdminState
from .admin import FunctionStatus as FunctionStatus
from .admin import JobInfo as JobInfo
from .admin import PriorityStatus as PriorityStatus
from .admin import Refused as Refused
from .admin import WorkerInfo as WorkerInfo
from .admin_client import GearmanAdmin as GearmanAdmin
from .client import GearmanClient as GearmanClient
from .client import QueueFull as QueueFull
from .client_state import ClientState as ClientState
from .client_state import Request as Request
from .job import Event as Event
from .job import Job as Job
from .job import JobFailed as JobFailed
from .job import JobStatus as JobStatus
from .limits import check_client_id as check_client_id
from .limits import check_function as check_function
from .limits import check_handle as check_handle
from .limits import check_number as check_number
from .limits import check_unique as check_unique
from .limits import check_workload as check_workload
from .packets import Decoder as Decoder
from .packets import Kind as Kind
from .packets import Line as Line
from .packets import Packet as Packet
from .packets import encode as encode
from .worker import GearmanWorker as GearmanWorker
from .worker import WorkerJob as WorkerJob
from .worker_state import Assignment as Assignment
from .worker_state import WorkerState as WorkerState
