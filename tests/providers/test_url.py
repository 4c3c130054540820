from __future__ import annotations

import contextlib
import pickle
import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from revolve_assistant.errors import UsageError
from revolve_assistant.providers.url import Url


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("memory://", Url("memory")),
        ("memory://jobs", Url("memory", hosts=(("jobs", None),))),
        ("gearman://127.0.0.1:4730/assistant", Url("gearman", hosts=(("127.0.0.1", 4730),), path="assistant")),
        (
            "gearman://a,b:1,[::1]:2,[fe80::1]",
            Url("gearman", hosts=(("a", None), ("b", 1), ("::1", 2), ("fe80::1", None))),
        ),
        ("redis://:secret@h/0", Url("redis", password="secret", hosts=(("h", None),), path="0")),
        ("redis://me:p%40ss%2F@h", Url("redis", user="me", password="p@ss/", hosts=(("h", None),))),
        ("redis://me:p@ss@h", Url("redis", user="me", password="p@ss", hosts=(("h", None),))),
        ("REDISS://me@h", Url("rediss", user="me", hosts=(("h", None),))),
        ("redis+unix:///run/redis.sock?db=2", Url("redis+unix", path="/run/redis.sock", options={"db": "2"})),
        ("redis+unix://:pw@/run/r", Url("redis+unix", password="pw", path="/run/r")),
        ("sqlite:///relative.db", Url("sqlite", path="relative.db")),
        ("sqlite:////var/absolute.db", Url("sqlite", path="/var/absolute.db")),
        ("file:///dir/a%20b", Url("file", path="/dir/a b")),
        ("x://h?a=1&b&c=x%26y+z=", Url("x", hosts=(("h", None),), options={"a": "1", "b": "", "c": "x&y+z="})),
    ],
)
def test_parses(text: str, expected: Url) -> None:
    assert Url.parse(text) == expected
    assert Url.parse(Url.parse(text).reveal()) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no URL"),
        ("redis", "write 'redis://'"),
        ("localhost:6379", "no URL"),
        ("redis://h:0", "port"),
        ("redis://h:65536", "port"),
        ("redis://h:x", "port"),
        ("redis://:6379", "host"),
        ("redis://a,,b", "host"),
        ("redis://[::1", "IPv6"),
        ("redis://[::1]x", "IPv6"),
        ("redis://h/%zz", "%25"),
        ("redis://h/%ff", "UTF-8"),
        ("redis://h/a b", "percent-encoded"),
        ("redis://h/\n", "percent-encoded"),
        ("redis://h#x", "%23"),
        ("redis://h?a=1&a=2", "'a' twice"),
    ],
)
def test_refuses(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Url.parse(text)


words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
hosts = st.one_of(words, st.sampled_from(["::1", "fe80::1%eth0", "127.0.0.1", "a:b"]))
ports = st.none() | st.integers(1, 65535)


@st.composite
def urls(draw: st.DrawFn) -> Url:
    scheme = draw(st.sampled_from(["redis", "sqlite", "memory", "redis+unix", "file", "x-y.z"]))
    places = draw(st.lists(st.tuples(hosts, ports), max_size=3))
    path = draw(st.text(st.characters(codec="utf-8"), max_size=20))
    if scheme in ("file", "redis+unix"):
        path = "/" + path
    return Url(
        scheme,
        user=draw(st.none() | words),
        password=draw(st.none() | st.text(st.characters(codec="utf-8"), max_size=12)),
        hosts=tuple(places),
        path=path,
        options=draw(st.dictionaries(words, words, max_size=3)),
    )


@given(urls())
@example(Url("redis", hosts=(("::1", None), ("::1", 3)), path="//x"))
def test_reveal_parses_to_the_same(url: Url) -> None:
    assert Url.parse(url.reveal()) == url
    assert pickle.loads(pickle.dumps(url)) == url


@given(urls())
def test_shown_text_is_printable_and_parses(url: Url) -> None:
    assert str(url).isprintable()
    assert Url.parse(str(url)).hosts == url.hosts


MARK = "XSECRETX"
noise = st.text(string.ascii_letters + "/?#@:[],%&= \n0", max_size=6)


@given(noise, noise, st.sampled_from(["redis://u:", "redis://:", "sqlite://x:"]), noise)
@example("", "/1", "redis://u:", "")
@example("1?", "", "redis://u:", "")
@example("@?", "", "redis://u:", "")
def test_no_password_is_ever_shown(before: str, after: str, start: str, host: str) -> None:
    """Whatever a password holds that should have been encoded: the address is refused or hides it."""
    try:
        url = Url.parse(f"{start}{before}{MARK}{after}@h{host}")
        shown = f"{url} {url!r}"
    except UsageError as error:
        shown = str(error)
    assert MARK not in shown


def test_shows_no_secret_option() -> None:
    url = Url.parse("ironmq://h?token=abc&project=p&password=xyz")
    assert repr(url) == "Url('ironmq://h?token=***&project=p&password=***')"
    assert str(Url.parse("redis://user:pw@host")) == "redis://user:***@host"
    with pytest.raises(UsageError) as caught:
        url.number("token", 1.0)
    assert "abc" not in str(caught.value)


@given(st.text(max_size=30))
@example("redis://[")
def test_anything_is_parsed_or_refused(text: str) -> None:
    for tried in (text, "redis://" + text):
        with contextlib.suppress(UsageError):
            Url.parse(tried)


def test_options() -> None:
    url = Url.parse("x://h?wait=2.5&big=70000&tls&off=NO&mode=fast&bad=abc&nan=nan")
    assert url.number("wait", 1.0) == 2.5
    assert url.number("absent", 1.5) == 1.5
    assert url.whole("big", 0) == 70000
    assert url.flag("tls") is True
    assert url.flag("off", True) is False
    assert url.flag("absent", True) is True
    assert url.text("mode") == "fast"
    assert url.text("absent") is None
    assert url.text("mode", "slow", choices=["slow", "fast"]) == "fast"
    with pytest.raises(UsageError, match=r"x: option bad='abc' must be a number, 0 or more"):
        url.number("bad", 1.0)
    with pytest.raises(UsageError, match=r"nan='nan'"):
        url.number("nan", 1.0)
    with pytest.raises(UsageError, match=r"wait='2.5' must be a number from 3 to 4"):
        url.number("wait", 1.0, least=3, most=4)
    with pytest.raises(UsageError, match=r"wait='2.5' must be a whole number"):
        url.whole("wait", 1)
    with pytest.raises(UsageError, match=r"big='70000' must be a whole number from 0 to 9"):
        url.whole("big", 1, most=9)
    with pytest.raises(UsageError, match=r"mode='fast' must be true or false"):
        url.flag("mode")
    with pytest.raises(UsageError, match=r"mode='fast' must be one of faster, slow; did you mean 'faster'\?"):
        url.text("mode", choices=["faster", "slow"])


def test_unknown_option_names_the_nearest() -> None:
    url = Url.parse("memory://?leese=3")
    with pytest.raises(
        UsageError, match=r"memory has no option 'leese'; did you mean 'lease'\? \(known: lease, size\)"
    ):
        url.only("lease", "size")
    with pytest.raises(UsageError, match=r"\(it has none\)"):
        url.only()
    assert url.only("leese") is url


def test_keyword_options_go_over_those_of_the_address() -> None:
    url = Url.parse("x://h?a=1&b=2").with_options({"a": 3, "c": True, "b": None})
    assert dict(url.options) == {"a": "3", "b": "2", "c": "true"}


def test_addresses() -> None:
    assert Url.parse("x://a,b:2").addresses(1) == [("a", 1), ("b", 2)]
    assert Url.parse("x://").addresses(1) == [("127.0.0.1", 1)]
