"""What `carry` packs: which way, how often, what it costs the memory, and what it says when it cannot.

Over 600 lines: its parts share the callables and fixtures at its head.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import gc
import math
import operator
import os.path
import pickle
import subprocess
import sys
import textwrap
import threading
import types
import weakref
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from revolve_assistant.errors import NotCarriable, ProtocolError, UsageError
from revolve_assistant.wire import carry as carrying
from revolve_assistant.wire import share as sharing
from revolve_assistant.wire.carry import OUT_OF_BAND, Carrier, pack, unpack
from revolve_assistant.wire.share import Share, forget_share, receive_share, resolve, unshare


def called(work):
    args, kwargs = unpack(work.payload, work.buffers)
    return unpack(work.function.body)(*args, **kwargs)


def scripted(source, **names):
    """The namespace of a script: its functions and classes belong to __main__ and are in no module."""
    space = {"__name__": "__main__", **names}
    exec(source, space)
    return space


def importable(a, b=2):
    return a, b


class Method:
    def __init__(self, n):
        self.n = n

    def times(self, k):
        return self.n * k

    def __call__(self, k):
        return self.n + k

    @classmethod
    def made(cls, k):
        return cls(k).n

    @staticmethod
    def plain(k):
        return k


@pytest.fixture
def carrier():
    return Carrier()


# --- callables


@pytest.mark.parametrize(
    ("fn", "args", "name"),
    [
        (math.sqrt, (9.0,), "math:sqrt"),
        (pow, (2, 3), "builtins:pow"),
        (os.path.join, ("a", "b"), "posixpath:join"),
        (dict, ((("a", 1),),), "builtins:dict"),
        (collections.Counter, ("aab",), "collections:Counter"),
        (operator.itemgetter(0), ("xy",), "operator:itemgetter.__call__"),
        ([1, 2].index, (2,), "builtins:list.index"),
        (dict.fromkeys, ("ab",), "builtins:dict.fromkeys"),
        (str.upper, ("a",), "builtins:str.upper"),
        (functools.partial(pow, 2), (5,), "partial(builtins:pow)"),
        (functools.partial(functools.partial(importable, b=4), 1), (), f"partial({__name__}:importable)"),
        (importable, (1,), f"{__name__}:importable"),
        (Method(3).times, (2,), f"{__name__}:Method.times"),
        (Method(3), (2,), f"{__name__}:Method.__call__"),
        (Method.made, (2,), f"{__name__}:Method.made"),
        (Method.plain, (2,), f"{__name__}:Method.plain"),
        (lambda x: x + 1, (1,), f"{__name__}:<lambda>"),
    ],
)
def test_every_kind_of_callable_goes_and_is_named(carrier, fn, args, name):
    work = carrier.carry(fn, args, {})
    assert called(work) == fn(*args)
    assert work.function.name == name
    assert work.function.kind == "plain"
    assert work.live is None
    assert work.shares == ()
    assert work.buffers is None


def test_an_importable_function_goes_by_reference_and_a_lambda_by_value(carrier):
    for fn in (textwrap.dedent, math.sqrt, pow, Path, Path.joinpath):
        assert not carrier.function(fn).by_value
    assert len(carrier.function(textwrap.dedent).body) < 60
    assert carrier.function(lambda: 1).by_value
    assert carrier.function(scripted("def f(): return 1")["f"]).by_value


def test_a_module_that_no_child_can_import_goes_by_value(carrier):
    module = types.ModuleType("made_by_hand")
    exec("class K:\n    def n(self): return 5\ndef f(): return K().n()", module.__dict__)
    sys.modules["made_by_hand"] = module
    try:
        function = carrier.function(module.f)
        assert function.by_value
    finally:
        del sys.modules["made_by_hand"]
    assert unpack(function.body)() == 5


@pytest.mark.parametrize("value", [3, None, "f", [1]])
def test_what_is_not_callable_is_a_usage_error(carrier, value):
    with pytest.raises(UsageError, match=r"submit\(\) needs a callable, got"):
        carrier.carry(value, (), {})


def test_the_message_for_what_is_not_callable_shows_it(carrier):
    with pytest.raises(UsageError) as caught:
        carrier.function(3)
    assert str(caught.value) == "submit() needs a callable, got 3 (int)"

    class Rude:
        def __repr__(self):
            raise RuntimeError

    with pytest.raises(UsageError, match="Rude"):
        carrier.function(Rude())


async def coroutine():
    pass


def generator():
    yield


async def asyncgen():
    yield


class AsyncCall:
    async def __call__(self):
        pass


@pytest.mark.parametrize(
    ("fn", "kind"),
    [
        (coroutine, "async"),
        (generator, "generator"),
        (asyncgen, "asyncgen"),
        (functools.partial(coroutine), "async"),
        (functools.partial(functools.partial(generator)), "generator"),
        (AsyncCall(), "async"),
        (AsyncCall().__call__, "async"),
        (functools.partial(AsyncCall()), "async"),
        (AsyncCall, "plain"),
        (functools.wraps(coroutine)(lambda: 1), "plain"),
        (print, "plain"),
    ],
)
def test_kinds(carrier, fn, kind):
    assert carrier.function(fn).kind == kind


def test_names_are_printable(carrier):
    fn = scripted("def f(): pass")["f"]
    fn.__qualname__ = "a\nb\x00"
    assert carrier.function(fn).name.isprintable()


def test_a_live_call_is_not_pickled(carrier):
    lock = threading.Lock()
    work = carrier.live(lock.acquire, (), {})
    assert work.live == (lock.acquire, (), {})
    assert work.payload == b""
    assert work.function.key == 0
    with pytest.raises(UsageError):
        carrier.live(3, (), {})


# --- keys and what is kept


def counted(monkeypatch):
    count = []
    original = carrying._cloud_dumps
    monkeypatch.setattr(carrying, "_cloud_dumps", lambda *a: count.append(1) or original(*a))
    return count


def test_the_same_function_is_pickled_once(carrier, monkeypatch):
    count = counted(monkeypatch)
    space = scripted(
        "import math\nK = 2\nP = ('a', 1)\n"
        "def g(x): return math.sqrt(x) * K\n"
        "def f(x, *, k=1): return g(x) + len(P) + k"
    )
    keys = {carrier.carry(space["f"], (i,), {}).function.key for i in range(1000)}
    assert len(keys) == 1
    assert len(count) == 1


def test_equal_bodies_share_a_key_across_carriers_and_functions():
    made = [scripted("def f(x): return x + 1")["f"] for _ in range(2)]
    assert Carrier().function(made[0]).key == Carrier().function(made[1]).key
    assert Carrier().function(math.sqrt).key == Carrier().function(math.sqrt).key
    assert Carrier().function(math.sqrt).key != Carrier().function(math.floor).key


def change_global(s):
    s["K"] = 3


def change_helper(s):
    exec("def g(x): return x * 100", s)


def change_global_of_helper(s):
    s["H"] = 7


def change_default(s):
    s["f"].__defaults__ = (50,)


def change_kwdefault(s):
    s["f"].__kwdefaults__["k"] = 9


def change_code(s):
    s["f"].__code__ = (lambda x, y=1, *, k=1: 99).__code__


def shadow_builtin(s):
    s["len"] = lambda _: 1000


def add_attribute(s):
    s["f"].extra = 1


def remove_global(s):
    del s["K"]
    s["f"].__code__ = (lambda x, y=1, *, k=1: 4).__code__


@pytest.mark.parametrize(
    "change",
    [
        change_global, change_helper, change_global_of_helper, change_default, change_kwdefault, change_code,
        shadow_builtin, add_attribute, remove_global,
    ],
)  # fmt: skip
def test_a_change_of_what_a_function_captures_is_noticed(carrier, change):
    space = scripted(
        "K = 2\nH = 5\ndef g(x): return x * K + H\ndef f(x, y=1, *, k=1): return g(x) + y + k + len('abc')"
    )
    assert called(carrier.carry(space["f"], (3,), {})) == space["f"](3)
    change(space)
    assert called(carrier.carry(space["f"], (3,), {})) == space["f"](3)
    assert getattr(unpack(carrier.function(space["f"]).body), "extra", None) == getattr(space["f"], "extra", None)


def test_a_change_of_a_closure_is_noticed(carrier):
    n = 1

    def f():
        return n  # noqa: F821 - deleted below

    assert called(carrier.carry(f, (), {})) == 1
    n = 2
    assert called(carrier.carry(f, (), {})) == 2
    del n
    with pytest.raises(NameError):
        called(carrier.carry(f, (), {}))


def test_what_can_change_in_place_is_pickled_each_time_under_one_key(carrier, monkeypatch):
    count = counted(monkeypatch)
    space = scripted("seen = []\ndef f(): return list(seen)")
    first = carrier.carry(space["f"], (), {}).function
    assert carrier.carry(space["f"], (), {}).function.key == first.key
    assert len(count) == 2
    space["seen"].append(1)
    changed = carrier.carry(space["f"], (), {})
    assert called(changed) == [1]
    assert changed.function.key != first.key


def test_bound_methods_partials_and_instances_travel_as_they_are_now(carrier):
    holder = Method(2)
    partial = functools.partial(importable, [1])
    for n in (2, 5):
        holder.n = n
        assert called(carrier.carry(holder.times, (10,), {})) == n * 10
        assert called(carrier.carry(holder, (10,), {})) == n + 10
        partial.args[0].append(n)
        assert called(carrier.carry(partial, (), {}))[0][-1] == n


def test_no_function_is_kept_alive(carrier):
    def recursive():
        def inner(n):
            return n and inner(n - 1)

        return inner

    alive = []
    for fn in (recursive(), scripted("def f(n): return n and f(n - 1)")["f"], lambda: 1):
        carrier.carry(fn, (1,), {})
        alive.append(weakref.ref(fn))
    assert len(carrier._known) == 3
    del fn
    gc.collect()
    assert [each() for each in alive] == [None] * 3
    assert not carrier._known


def test_keys_are_bounded(carrier, monkeypatch):
    monkeypatch.setattr(carrying, "MAX_BODIES", 16)
    for n in range(100):
        carrier.function(functools.partial(pow, n))
        assert len(carrying._young) + len(carrying._old) <= 16 + 2 or n < 16


def test_an_attribute_of_defaults_does_not_hurt(carrier, monkeypatch):
    count = counted(monkeypatch)
    fn = scripted("def f(): return 1")["f"]
    fn.__revolve_defaults__ = threading.Lock()
    for _ in range(3):
        function = carrier.function(fn)
    assert len(count) == 1
    assert not hasattr(unpack(function.body), "__revolve_defaults__")
    assert called(carrier.carry(importable, (fn,), {}))[0]() == 1  # as an argument too


def test_threads_may_carry_at_once(carrier):
    space = scripted("K = 0\ndef f(): return K")
    wrong = []

    def work():
        for _ in range(200):
            space["K"] += 1
            if not isinstance(called(carrier.carry(space["f"], (), {})), int):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert called(carrier.carry(space["f"], (), {})) == space["K"]


def test_modules_registered_by_value_go_by_value(carrier):
    import cloudpickle

    assert not carrier.function(textwrap.dedent).by_value
    cloudpickle.register_pickle_by_value(textwrap)
    try:
        assert carrier.function(textwrap.dedent).by_value
        data, _ = pack([textwrap.TextWrapper()])
    finally:
        cloudpickle.unregister_pickle_by_value(textwrap)
    assert b"_make_skeleton_class" in data
    assert not carrier.function(textwrap.dedent).by_value


# --- values

atoms = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
values = st.recursive(
    atoms, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner), max_leaves=20
)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(args=st.lists(values, max_size=4).map(tuple), kwargs=st.dictionaries(st.text(min_size=1), values, max_size=3))
def test_arguments_come_back(args, kwargs):
    work = Carrier().carry(importable, args, kwargs)
    assert unpack(work.payload, work.buffers) == (args, kwargs)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(value=values | st.text(st.characters()) | st.binary(min_size=1).map(bytearray) | st.sets(st.integers()))
def test_results_come_back(value):
    back = unpack(*pack(value))
    assert back == value
    assert type(back) is type(value)


def test_text_that_names_main_is_only_text(carrier):
    assert called(carrier.carry(importable, (["__main__"],), {})) == (["__main__"], 2)


def test_only_large_buffers_go_beside(carrier):
    numpy = pytest.importorskip("numpy")
    small, large = numpy.zeros(OUT_OF_BAND - 1, "u1"), numpy.arange(OUT_OF_BAND, dtype="u1")
    assert pack(small)[1] is None
    data, buffers = pack([small, large, large[::2], numpy.asfortranarray(large.reshape(64, -1))])
    assert len(buffers) == 2
    assert len(data) < 2 * OUT_OF_BAND
    assert (unpack(data, buffers)[1] == large).all()
    work = carrier.carry(importable, (large,), {})
    assert len(work.payload) < 500
    assert work.buffers[0].raw().nbytes == OUT_OF_BAND


def test_large_buffers_beside_a_cloudpickle(carrier):
    numpy = pytest.importorskip("numpy")
    data, buffers = pack((lambda: 7, numpy.ones(OUT_OF_BAND, "u1")))
    assert len(buffers) == 1
    fn, array = unpack(data, buffers)
    assert fn() == 7
    assert array.all()


def test_importing_carry_is_cheap():
    code = (
        "import sys; import revolve_assistant.wire.carry as c; c.pack([1]); c.Carrier().carry(len, ([1],), {});"
        "print([m for m in ('numpy', 'cloudpickle', 'inspect', 'hashlib', 'msgspec') if m in sys.modules])"
    )
    assert run(code) == "[]"


# --- refusals


@dataclasses.dataclass
class Held:
    lock: object
    name: str = ""


class Slotted:
    __slots__ = ("lock",)

    def __init__(self, lock):
        self.lock = lock


class Rude:
    def __reduce__(self):
        raise ValueError("no")


class Fatal:
    def __reduce__(self):
        raise KeyboardInterrupt


def refusal(carrier, fn, *args, **kwargs):
    with pytest.raises(NotCarriable) as caught:
        carrier.carry(fn, args, kwargs)
    assert isinstance(caught.value, pickle.PicklingError)
    assert isinstance(caught.value.__cause__, Exception)
    return str(caught.value)


LOCK = "is a _thread.lock (cannot pickle '_thread.lock' object)"


@pytest.mark.parametrize(
    ("make", "path"),
    [
        (lambda lock: lock, "a"),
        (lambda lock: {"db": Held(lock)}, "a['db'].lock"),
        (lambda lock: [1, (2, [lock])], "a[1][1][0]"),
        (lambda lock: Slotted([lock]), "a.lock[0]"),
        (lambda lock: {1: {"x": {lock}}}, "an element of a[1]['x']"),
        (lambda lock: {lock: 1}, "a key of a"),
        (lambda lock: Held(lock).__repr__, "a.__self__.lock"),
        (lambda lock: collections.deque([0, lock]), "a[1]"),
        (lambda lock: collections.OrderedDict(x=lock), "a['x']"),
        (lambda lock: lambda: lock, "a, closure variable 'lock'"),
        (lambda lock: [lambda: lock], "a[0], closure variable 'lock'"),
    ],
)
def test_the_smallest_part_that_cannot_be_carried_is_named(carrier, make, path):
    value = make(threading.Lock())
    assert refusal(carrier, importable, value) == f"cannot carry argument 'a' of importable(): {path} {LOCK}"


def test_the_argument_is_named_by_position_or_keyword(carrier):
    lock = threading.Lock()
    assert "argument 'b' of importable(): b is" in refusal(carrier, importable, 1, lock)
    assert "argument 'b' of importable(): b is" in refusal(carrier, importable, 1, b=lock)
    assert "argument 2 of print(): args[1] is" in refusal(carrier, print, 1, lock)
    assert "argument 'k' of Method.times(): k[0] is" in refusal(carrier, Method(1).times, [lock])


def test_what_a_function_captures_is_named(carrier):
    lock = threading.Lock()
    space = scripted("def f(): return conn", conn={"a": lock})
    assert refusal(carrier, space["f"]) == f"cannot carry f(): global 'conn'['a'] {LOCK}"
    assert refusal(carrier, lambda: lock).endswith(f"<lambda>(): closure variable 'lock' {LOCK}")
    assert "default 1" in refusal(carrier, lambda x=lock: x)
    assert f"].lock {LOCK}" in refusal(carrier, functools.partial(importable, Held(lock)))


def test_exceptions_of_reduce_are_wrapped(carrier):
    text = refusal(carrier, importable, [Rude()])
    assert text == f"cannot carry argument 'a' of importable(): a[0] is a {__name__}.Rude (ValueError: no)"
    with pytest.raises(KeyboardInterrupt):
        carrier.carry(importable, (Fatal(),), {})
    with pytest.raises(NotCarriable, match=r"cannot carry result: result\['x'\] is a generator"):
        pack({"x": (each for each in ())}, "result")


def test_deep_nesting_is_refused_and_not_followed(carrier):
    deep = []
    for _ in range(100_000):
        deep = [deep]
    assert refusal(carrier, importable, deep).endswith("argument 'a' of importable(): nested too deeply to be pickled")
    with pytest.raises(NotCarriable, match="value: nested too deeply"):
        pack(deep)
    while deep:
        deep = deep[0]


def test_a_cycle_and_a_large_value_are_searched_within_bounds(carrier):
    cycle = [1]
    cycle.append(cycle)
    assert called(carrier.carry(importable, (cycle,), {}))[0][0] == 1
    cycle.append(threading.Lock())
    assert f"a[2] {LOCK}" in refusal(carrier, importable, cycle)
    refusal(carrier, importable, [*([i] for i in range(50_000)), threading.Lock()])


# --- shares


def test_a_share_is_a_reference_and_arrives_as_the_object(carrier):
    numpy = pytest.importorskip("numpy")
    share = Share({"large": numpy.arange(100_000), "small": numpy.arange(3)})
    work = carrier.carry(importable, ([share, share],), {"b": share})
    assert work.shares == (share,)
    assert len(work.payload) < 300
    data, buffers = share.payload()
    assert share.payload()[0] is data
    assert len(buffers) == 1
    sent = [memoryview(bytes(buffer.raw())) for buffer in buffers]
    del sharing._made[share.key]  # as in another process
    with pytest.raises(ProtocolError, match=f"{share.key} never reached"):
        called(work)
    receive_share(share.key, data, sent)
    (first, second), third = called(work)
    assert first is second is third is resolve(share.key)
    assert not first["large"].flags.writeable
    assert not first["small"].flags.writeable
    assert (first["large"] == share.value["large"]).all()
    forget_share(share.key)


def test_shares_captured_by_a_function_and_held_by_a_share_are_known(carrier):
    inner = Share([1])
    outer = Share({"inner": inner})
    outer.payload()
    assert outer.inner == (inner,)
    assert outer.family() == [outer, inner]
    work = carrier.carry(lambda: outer, (), {})
    assert work.shares == (outer,)
    assert called(work) is outer.value
    assert carrier.carry(lambda: outer, (1,), {}).shares == (outer,)


def test_a_share_in_a_user_class_is_collected_and_others_threads_are_not_mixed_in(carrier):
    share = Share(1)
    assert carrier.carry(importable, (Held(share),), {}).shares == (share,)
    pickle.dumps(share)
    assert carrier.carry(importable, ([],), {}).shares == ()


def test_live_engines_get_the_objects():
    share, untouched = Share([1]), [2]
    args, kwargs = unshare((share, untouched, [share, 0], (share,)), {"x": {"k": share}, "y": [[share]]})
    assert args[0] is share.value
    assert args[1] is untouched
    assert args[2] == [[1], 0]
    assert args[3] == ([1],)
    assert kwargs["x"] == {"k": [1]}
    assert kwargs["y"] == [[share]]


def test_what_cannot_be_shared_is_refused():
    with pytest.raises(NotCarriable, match="cannot carry shared object"):
        Share(threading.Lock()).payload()


# --- a fresh interpreter

SCRIPT = """
import base64, dataclasses, enum, functools, math, sys
from revolve_assistant.wire.carry import Carrier

@dataclasses.dataclass
class Point:
    x: int
    def norm(self): return abs(self.x) * SCALE

class Colour(enum.Enum):
    RED = 1

SCALE = 3

@functools.cache
def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)

def helper(p): return p.norm() + math.floor(1.5)

def work(p, colour=Colour.RED, **more):
    return helper(p), colour.name, more["f"](2), fib(20), isinstance(p, Point)

def outer():
    k = 10
    async def local(n): return n + k
    return local

carrier = Carrier()
for fn, args, kwargs in [
    (work, (Point(-2),), {"f": lambda n: n * SCALE, "colour": Colour.RED}),
    (fib, (10,), {}),
    (Point(4).norm, (), {}),
    (Point, (1,), {}),
    (functools.partial(work, Point(1)), (), {"f": abs}),
    (outer(), (5,), {}),
]:
    for _ in range(2):
        w = carrier.carry(fn, args, kwargs)
    print(w.function.kind, base64.b64encode(w.function.body).decode(), base64.b64encode(w.payload).decode())
"""

CHILD = """
import asyncio, base64, sys
from revolve_assistant.wire.carry import pack, unpack
for line in sys.stdin:
    kind, body, payload = line.split()
    args, kwargs = unpack(base64.b64decode(payload))
    result = unpack(base64.b64decode(body))(*args, **kwargs)
    print(asyncio.run(result) if kind == "async" else result)
    unpack(*pack((args, kwargs, result if kind != "async" else None)))
"""


def run(code, *args, stdin=""):
    path = os.pathsep.join(each for each in sys.path if each)
    done = subprocess.run(
        [sys.executable, *(args or ("-c", code))],
        input=stdin, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_functions_of_a_script_load_in_a_fresh_interpreter(tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    assert run(CHILD, stdin=run("", str(script))).splitlines() == [
        "(7, 'RED', 6, 6765, True)",
        "55",
        "12",
        "Point(x=1)",
        "(4, 'RED', 2, 6765, True)",
        "15",
    ]


def test_functions_of_this_module_load_in_a_fresh_interpreter(carrier):
    import base64

    lines = []
    for fn, args in [(importable, (1,)), (Method(2).times, (4,)), (lambda x: importable(x, 2), (3,))]:
        work = carrier.carry(fn, args, {})
        lines.append(f"plain {base64.b64encode(work.function.body).decode()} {base64.b64encode(work.payload).decode()}")
    assert run(CHILD, stdin="\n".join(lines)).splitlines() == ["(1, 2)", "8", "(3, 2)"]
