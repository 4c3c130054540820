"""The wire protocols that this library speaks itself: sans-IO, with small blocking clients on top.

`gearman` and `beanstalkd`, with `stream`, the connection that they share; and `iron` (the HTTP interfaces of IronMQ and
IronWorker).
"""
