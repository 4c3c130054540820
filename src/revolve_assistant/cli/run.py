"""`revolve run module:function [ITEM …]`: one task an item, in worker processes of this machine."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from .flags import Command, count, cpus, jobs, seconds, size
from .run_items import Ahead, Item, from_json, lines, plain
from .run_report import BROKEN_PIPE, report
from .run_target import TargetError, find

if TYPE_CHECKING:
    from .run_batch import Batch
    from .run_log import Done

DESCRIPTION = """\
Call a Python function once for each item, in parallel, in worker processes of this machine.

  revolve run thumbs:make *.jpg
  find . -name '*.log' | revolve run -j 8 --log done.jsonl --resume audit:check > report.txt

Each ITEM, or each line of stdin, is passed as one str, exact to the space: nothing is split, quoted or expanded.
The function is found as `python -m` finds a module, the current directory first. What it prints and what it returns
goes to stdout, progress to stderr."""

EPILOG = """\
exit codes: 0 all succeeded, 1 some failed, 2 the call was wrong, 130 Ctrl-C, 143 SIGTERM. The first Ctrl-C cancels
what runs and waits for it, the second stops at once."""


def main(argv: list[str]) -> int:
    """Run the command; returns its exit code."""
    parser = _parser()
    args = parser.read(argv)
    args.items += args.tail
    if args.resume and args.log is None:
        parser.error("--resume needs --log FILE: it skips what succeeded there")
    if args.arg_file is not None and args.items:
        parser.error("give items or --arg-file, not both")
    if args.json_items:
        for text in args.items:
            if text != "-" and (wrong := from_json(text).wrong):
                parser.error(f"item {text!r} is {wrong}")
    sys.path.insert(0, os.getcwd())
    try:
        function = find(args.target)
    except TargetError as error:
        return _wrong(str(error))
    with ExitStack() as stack:
        try:
            source = _source(parser, args, stack)
            done = _done(args)
            log = _log(args, stack)
        except OSError as error:
            return _wrong(f"{error.filename or ''}: {error.strerror or error}")
        items = source if done is None else (item for item in source if not done.skip(item.value))
        if args.dry_run:
            return _dry_run(args.target, items)
        return _run(args, function, items, log, done)


def _parser() -> Command:
    parser = Command("run", DESCRIPTION, usage="revolve run [flags] module:function [ITEM …]", epilog=EPILOG)
    parser.add_argument("target", metavar="module:function", help="what to call; module:Class.method works too")
    parser.add_argument("items", metavar="ITEM", nargs="*", help="what to pass; none, or -, reads lines from stdin")
    flag = parser.flag

    group = parser.add_argument_group("items")
    flag("-a", "--arg-file", metavar="FILE", group=group, help="read the items from FILE, one a line")
    flag("-0", "--null", action="store_true", group=group, help="items end with NUL, not newline (find -print0)")
    flag("--json-items", action="store_true", group=group, help="each item is JSON; its value is passed")

    group = parser.add_argument_group("running")
    flag(
        "-j", "--jobs", metavar="N", type=jobs, group=group, help="worker processes, or 50%% of the CPUs (default: all)"
    )
    flag("--timeout", metavar="S", type=seconds, group=group, help="seconds that one attempt may take")
    flag("--stall", metavar="S", type=seconds, group=group, help="stop an attempt that said nothing for so long")
    flag("--retries", metavar="N", type=count, group=group, help="further attempts after an error or a death")
    flag("--memory-limit", metavar="SIZE", type=size, group=group, help="memory of one worker, such as 500M")
    flag("--halt", action="store_true", group=group, help="stop everything at the first failure")
    flag("-n", "--dry-run", action="store_true", group=group, help="print the calls and run none")

    group = parser.add_argument_group("output")
    flag("-k", "--keep-order", action="store_true", group=group, help="write in the order of the items")
    flag("--tag", action="store_true", group=group, help="begin each line with the item and a tab")
    flag("--json", action="store_true", group=group, help="one JSON object a line for each event and end")
    flag("--traceback", action="store_true", group=group, help="write the traceback of each failure to stderr")
    flag(
        "--progress",
        "--bars",
        action=argparse.BooleanOptionalAction,
        group=group,
        help="show progress on stderr: bars on a terminal, else lines (default)",
    )

    group = parser.add_argument_group("log")
    flag("--log", metavar="FILE", group=group, help="append one JSON object a line for each item that ended")
    flag("--resume", action="store_true", group=group, help="skip the items that succeeded in --log FILE")
    parser.set_defaults(progress=True)
    return parser


def _source(parser: Command, args: argparse.Namespace, stack: ExitStack) -> Iterator[Item]:
    read: Callable[[str], Item] = from_json if args.json_items else plain
    separator = b"\0" if args.null else b"\n"
    if args.arg_file not in (None, "-"):
        fd = os.open(args.arg_file, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, fd)
        return map(read, lines(fd, separator))
    if args.items and args.items != ["-"]:
        return map(read, args.items)
    if not args.items and args.arg_file is None and os.isatty(0):
        parser.error("no items: give some, pipe lines in, or say - to type them")
    return map(read, lines(0, separator))


def _done(args: argparse.Namespace) -> Done | None:
    if not args.resume:
        return None
    from .run_log import Done

    return Done(args.log, args.target)


def _log(args: argparse.Namespace, stack: ExitStack) -> Any:
    if args.log is None or args.dry_run:
        return None
    from .run_log import Log

    log = Log(args.log)
    stack.callback(log.close)
    return log


def _wrong(message: str) -> int:
    print(f"revolve run: {message}", file=sys.stderr)
    return 2


def _dry_run(target: str, items: Iterable[Item]) -> int:
    from .run_output import to_bytes, write_all

    name = target.replace(":", ".")
    try:
        for item in items:
            write_all(1, to_bytes(f"{name}({item.value!r})\n"))
    except BrokenPipeError:
        return BROKEN_PIPE
    return 0


def _run(args: argparse.Namespace, function: Callable[[Any], Any], items: Iterable[Item], log: Any, done: Any) -> int:
    from ..caller.client import Client
    from .run_batch import Batch

    workers = args.jobs or cpus()
    options = {name: getattr(args, name) for name in ("timeout", "stall", "retries") if getattr(args, name) is not None}
    provider = {} if args.memory_limit is None else {"memory_limit": args.memory_limit}
    with ExitStack() as stack:
        bars, draws = None, False
        if args.progress:
            from ..views.bars import is_live, open_bars

            draws = is_live() and os.isatty(1)  # results and bars share a terminal: the bars must make room
            bars = stack.enter_context(open_bars())
        client = stack.enter_context(Client("process://", max_workers=workers, **provider))
        batch = Batch(
            function,
            lambda wake: Ahead(items, wake),
            client=client,
            options=options,
            window=4 * workers + 16,
            name=args.target,
            bars=bars,
            draws=draws,
            as_json=args.json,
            keep_order=args.keep_order,
            tag=args.tag,
            halt=args.halt,
            tracebacks=args.traceback,
            log=log,
        )
        stack.enter_context(_signals(batch))
        batch.run()
    return report(batch, done)


def _signals(batch: Batch) -> ExitStack:
    """Signals go to the batch, until the context is left. One that was ignored from outside (nohup) stays so."""
    stack = ExitStack()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            stack.callback(signal.signal, number, signal.signal(number, batch.on_signal))
    return stack
