"""When schedules are due: ticks that do not drift, and clocks that change over."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest

from revolve_assistant import UsageError
from revolve_assistant.wire.timetable import Timetable, words_of

BERLIN = ZoneInfo("Europe/Berlin")


def table(every: float = 0.0, cron: str = "", zone: str = "Europe/Berlin", key: str = "key") -> Timetable:
    return Timetable(key, every, cron, zone if cron else "")


def ticks(cron: str, start: str, count: int, zone: str = "Europe/Berlin") -> list[str]:
    """The next ones after a local time, as local times with their offset."""
    place = ZoneInfo(zone)
    at = datetime.fromisoformat(start).replace(tzinfo=place).timestamp()
    times = table(cron=cron, zone=zone)
    found = []
    for _ in range(count):
        at = times.after(at)
        found.append(datetime.fromtimestamp(at, place).strftime("%d %H:%M%z"))
    return found


def test_every_so_many_seconds_without_drift() -> None:
    times = table(every=0.7)
    first = at = times.after(1.8e9)
    for _ in range(100_000):
        at = times.after(at)
    assert at == pytest.approx(first + 70_000, abs=0.002)
    assert times.before(at) == pytest.approx(at - 0.7, abs=0.002)


def test_ticks_follow_from_key_and_period_alone() -> None:
    assert table(every=3600).after(1.8e9 + 5) == table(every=3600).after(1.8e9 + 7)
    phases = {table(every=3600, key=f"key {n}").after(1.8e9) for n in range(20)}
    assert len(phases) == 20


@pytest.mark.parametrize("every", [0.1, 1 / 3, 1.0, 60.0, 86400.0, 366 * 86400.0])
def test_before_and_after_agree(every: float) -> None:
    times = table(every=every)
    chance = random.Random(7)
    for _ in range(300):
        moment = round(chance.uniform(1.7e9, 2.1e9), 3)
        after, before = times.after(moment), times.before(moment)
        assert before < moment < after or after > moment == times.before(after)
        assert after - moment <= every + 0.002
        assert times.before(after) <= moment
        assert times.after(times.before(after)) == after


def test_cron_in_utc_and_elsewhere() -> None:
    assert ticks("*/20 6 * * *", "2026-07-01 06:05", 3, "UTC") == ["01 06:20+0000", "01 06:40+0000", "02 06:00+0000"]
    assert ticks("0 6 * * MON", "2026-07-01 06:05", 1) == ["06 06:00+0200"]
    assert ticks("@daily", "2026-07-01 06:05", 1) == ["02 00:00+0200"]
    assert ticks("*/30 * * * * *", "2026-07-01 06:05", 3)[0] == "01 06:05+0200"  # six fields: seconds first


def test_in_spring_what_is_skipped_comes_once_right_after() -> None:
    # 2026-03-29, 02:00 becomes 03:00
    assert ticks("30 2 * * *", "2026-03-28 12:00", 3) == ["29 03:00+0200", "30 02:30+0200", "31 02:30+0200"]
    assert ticks("0 3 * * *", "2026-03-28 12:00", 2) == ["29 03:00+0200", "30 03:00+0200"]
    assert ticks("0,30 2,3 * * *", "2026-03-29 00:00", 3) == ["29 03:00+0200", "29 03:30+0200", "30 02:00+0200"]
    assert ticks("*/30 * * * *", "2026-03-29 01:15", 3) == ["29 01:30+0100", "29 03:00+0200", "29 03:30+0200"]


def test_in_autumn_what_is_there_twice_comes_once_and_intervals_go_on() -> None:
    # 2026-10-25, 03:00 becomes 02:00
    assert ticks("30 2 * * *", "2026-10-24 12:00", 2) == ["25 02:30+0200", "26 02:30+0100"]
    assert ticks("*/30 * * * *", "2026-10-25 01:45", 5) == [
        "25 02:00+0200", "25 02:30+0200", "25 02:00+0100", "25 02:30+0100", "25 03:00+0100"
    ]  # fmt: skip
    again = datetime(2026, 10, 25, 2, 10, tzinfo=BERLIN, fold=1).timestamp()  # the second time round
    assert table(cron="30 2 * * *").after(again) == datetime(2026, 10, 26, 2, 30, tzinfo=BERLIN).timestamp()


@pytest.mark.parametrize(
    "cron", ["30 2 * * *", "*/7 * * * *", "0,30 2,3 * * *", "15 */2 * * *", "0 12 1 * *", "5 1-3 * * SUN"]
)
@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Australia/Sydney", "UTC"])
def test_cron_before_and_after_agree_where_clocks_change_over(cron: str, zone: str) -> None:
    times = table(cron=cron, zone=zone)
    chance = random.Random(11)
    for day in ("2026-03-29", "2026-10-25", "2026-03-08", "2026-11-01", "2026-04-05", "2026-10-04", "2026-06-01"):
        start = datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()
        for _ in range(12):
            moment = start + chance.uniform(-86400, 2 * 86400)
            after = times.after(moment)
            assert after > moment
            assert times.before(after) <= moment
            assert times.after(times.before(after)) == after


def test_a_time_that_never_comes() -> None:
    assert table(cron="0 0 29 2 *").after(1.8e9) > 1.8e9
    with pytest.raises(UsageError, match=r"cron='0 0 30 2 \*' is none"):
        table(cron="0 0 30 2 *")


@pytest.mark.parametrize(
    ("said", "match"),
    [
        ({}, r"every=None, cron=None: say one of them"),
        ({"every": 5, "cron": "* * * * *"}, r"every=5, cron='\* .*: say one of them"),
        ({"every": 0}, r"every=0 must be a timedelta or a number of seconds from 0.1 to"),
        ({"every": -3.5}, r"every=-3.5 must"),
        ({"every": True}, r"every=True must"),
        ({"every": "5 min"}, r"every='5 min' must"),
        ({"every": float("nan")}, r"every=nan must"),
        ({"every": timedelta(days=400)}, r"every=datetime.timedelta\(days=400\) must"),
        ({"every": 5, "tz": "UTC"}, r"tz='UTC' goes with cron="),
        ({"cron": ""}, r"cron='' must be a text"),
        ({"cron": 5}, r"cron=5 must be a text"),
        ({"cron": "* * * * *", "tz": "Europe/Berln"}, r"tz='Europe/Berln' is no time zone known.*install tzdata"),
        ({"cron": "* * * * *", "tz": "../../etc/passwd"}, r"is no time zone known here"),
        ({"cron": "* * * * *", "tz": 2}, r"tz=2 must be the name of a time zone"),
        ({"cron": "* * * * *", "tz": timezone(timedelta(hours=2))}, r"must be the name of a time zone \(its key"),
    ],
)  # fmt: skip
def test_words_that_are_none(said: dict[str, object], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        words_of(said.get("every"), said.get("cron"), said.get("tz"))


@pytest.mark.parametrize("cron", ["* * * *", "61 * * * *", "* * * * * * *", "a b c d e", "@often"])
def test_expressions_that_are_none(cron: str) -> None:
    with pytest.raises(UsageError, match=r"is none: .*five fields"):
        table(cron=cron)


def test_words() -> None:
    assert words_of(timedelta(minutes=2), None, None) == (120.0, "", "")
    assert words_of(None, " @daily ", None) == (0.0, "@daily", "")
    assert words_of(None, "@daily", UTC) == words_of(None, "@daily", "UTC") == (0.0, "@daily", "")
    assert words_of(None, "@daily", BERLIN) == (0.0, "@daily", "Europe/Berlin")
