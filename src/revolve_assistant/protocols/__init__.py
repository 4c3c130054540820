"""The wire protocols that this library speaks itself: sans-IO, with small blocking clients on top.

`gearman` and `beanstalkd`; `stream` is the connection that they share.
"""
