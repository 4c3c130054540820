"""A program that starts a pool, gets one result and ends: `_cold.py ours|peer module|main`. Prints milliseconds."""

from __future__ import annotations

import sys
import time


def here(_value: object = None) -> None:
    """A callable of `__main__`."""


def main() -> None:
    who, where = sys.argv[1:]
    from _work import noop

    fn = noop if where == "module" else here
    if who == "ours":
        from revolve_assistant import Client

        start = time.perf_counter()
        with Client(max_workers=2) as client:
            client.submit(fn).result()
            print((time.perf_counter() - start) * 1e3)
    else:
        from concurrent.futures import ProcessPoolExecutor
        from multiprocessing import get_context

        start = time.perf_counter()
        with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
            pool.submit(fn).result()
            print((time.perf_counter() - start) * 1e3)


if __name__ == "__main__":
    main()
