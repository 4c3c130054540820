"""beanstalkd: the protocol without a socket, and a blocking client with one.

    BeanstalkdClient                      in a few lines: docs/providers/beanstalkd.md
    ConnectionState                       one connection, bytes in and out, no socket
    put(…), reserve(…), touch(…) …        requests; Answer is what comes back

beanstalkd 1.12 is what all of it is tested against. There is no authentication in this protocol: whoever reaches the
port may put, take and delete jobs.
"""

from .client import PORT as PORT
from .client import BeanstalkdClient as BeanstalkdClient
from .client import Reserved as Reserved
from .commands import Answer as Answer
from .commands import Request as Request
from .commands import fields as fields
from .commands import items as items
from .limits import DEFAULT_JOB as DEFAULT_JOB
from .limits import MAX_TUBE as MAX_TUBE
from .limits import check_body as check_body
from .limits import check_job as check_job
from .limits import check_priority as check_priority
from .limits import check_seconds as check_seconds
from .limits import check_tube as check_tube
from .state import ConnectionState as ConnectionState
