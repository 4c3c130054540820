"""The wire protocols that this library speaks itself: sans-IO, with small blocking clients on top.

`gearman` is the only one so far.
"""
