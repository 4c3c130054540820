"""The wire protocols that this library speaks itself: sans-IO, with small blocking clients on top.

`gearman`, and `iron` (the HTTP interfaces of IronMQ and IronWorker).
"""
