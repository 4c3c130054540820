"""Seals: what was changed, sealed for something else or by somebody else is refused, and nothing of it is decoded."""

from __future__ import annotations

import copy
import hashlib
import hmac
import itertools
import json
import os
import pickle
import re
import subprocess
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

import cloudpickle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from revolve_assistant.errors import Untrusted, UsageError
from revolve_assistant.wire.seal import OVERHEAD, Keyring, Purpose, Seen, hkdf

SECRET = "a secret of the tests, 32 letters"
OTHER = b"another secret of the tests \x00\xff\xfe"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def ring() -> Keyring:
    return Keyring([SECRET])


def refused(ring: Keyring, sealed: bytes, purpose: Purpose = Purpose.TASK, audience: str = "default") -> Untrusted:
    with pytest.raises(Untrusted) as caught:
        ring.open(purpose, audience, sealed, now=1000.0)
    return caught.value


# --- what holds


@pytest.mark.parametrize("size", [0, 1, 200, 1 << 20])
@pytest.mark.parametrize("purpose", Purpose)
def test_what_was_sealed_opens_as_it_was(ring: Keyring, purpose: Purpose, size: int) -> None:
    payload = bytes(range(256)) * (size // 256) + bytes(size % 256)
    sealed = ring.seal(purpose, "ä queue", payload)
    assert len(sealed) == size + OVERHEAD
    for given_as in (sealed, memoryview(sealed), memoryview(b"xx" + sealed)[2:], memoryview(sealed).cast("c")):
        assert ring.open(purpose, "ä queue", given_as) == payload
    assert ring.seal(purpose, "ä queue", memoryview(payload)) == sealed


def test_the_payload_is_a_view_and_no_copy(ring: Keyring) -> None:
    sealed = ring.seal(Purpose.EVENT, "inbox", b"payload")
    view = ring.open(Purpose.EVENT, "inbox", sealed)
    assert type(view) is memoryview
    assert view.obj is sealed
    assert view.readonly


def test_another_keyring_of_the_same_secret_opens_it(ring: Keyring) -> None:
    sealed = ring.seal(Purpose.TASK, "default", b"work")
    assert Keyring([SECRET.encode()]).open(Purpose.TASK, "default", sealed) == b"work"


def test_more_audiences_than_are_kept_in_mind(ring: Keyring) -> None:
    names = [f"inbox-{number}" for number in range(1000)]
    sealed = {name: ring.seal(Purpose.EVENT, name, name.encode()) for name in names}
    for name in names:
        assert ring.open(Purpose.EVENT, name, sealed[name]) == name.encode()
    assert len(ring._states) <= 256
    assert refused(ring, sealed["inbox-1"], Purpose.EVENT, "inbox-2").reason == "forged"


def test_many_threads_use_one_keyring(ring: Keyring) -> None:
    start = threading.Barrier(8)
    wrong: list[object] = []

    def work(number: int) -> None:
        start.wait()
        for index in range(500):
            audience = f"{(number + index) % 300}"
            payload = f"{number} {index}".encode()
            try:
                if ring.open(Purpose.EVENT, audience, ring.seal(Purpose.EVENT, audience, payload)) != payload:
                    wrong.append(payload)
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# --- what is refused


def test_any_bit_flipped_is_refused_and_the_payload_never_looked_at(ring: Keyring) -> None:
    """65 in the catalogue of faults: all positions; the reasons say what was seen to be wrong."""
    sealed = ring.seal(Purpose.TASK, "default", b"a payload", expires=2000.0)
    reasons: dict[int, set[str]] = {}
    for bit in range(len(sealed) * 8):
        bad = bytearray(sealed)
        bad[bit // 8] ^= 1 << bit % 8
        error = refused(ring, bytes(bad))
        reasons.setdefault(bit // 8, set()).add(error.reason)
        assert b"a payload".decode() not in str(error)
    assert reasons.pop(0) == {"newer version", "unsigned"}
    for place in range(1, 9):
        assert reasons.pop(place) == {"unknown key"}
    assert set().union(*reasons.values()) == {"forged"}
    assert len(reasons) == len(sealed) - 9


def test_cut_at_any_length_is_refused(ring: Keyring) -> None:
    sealed = ring.seal(Purpose.TASK, "default", b"a payload")
    for length in range(len(sealed)):
        assert refused(ring, sealed[:length]).reason == ("truncated" if length < OVERHEAD else "forged")
    assert refused(ring, sealed + b"\0").reason == "forged"
    assert refused(ring, sealed + sealed).reason == "forged"


def test_nothing_is_hashed_for_a_key_that_is_not_ours(ring: Keyring, monkeypatch: pytest.MonkeyPatch) -> None:
    sealed = Keyring([OTHER]).seal(Purpose.TASK, "default", bytes(100))
    monkeypatch.setattr(Keyring, "_state", lambda *_: pytest.fail("looked at"))
    assert refused(ring, sealed).reason == "unknown key"


@pytest.mark.parametrize(("made", "read"), [*itertools.permutations(Purpose, 2)])
def test_a_message_is_good_for_its_purpose_only(ring: Keyring, made: Purpose, read: Purpose) -> None:
    assert refused(ring, ring.seal(made, "default", b"x"), read).reason == "forged"


@pytest.mark.parametrize(
    ("made", "read"), [("high", "low"), ("", "a"), ("a", ""), ("aa", "a"), ("a", "a\0"), ("é", "e\u0301")]
)
def test_a_message_is_good_for_its_audience_only(ring: Keyring, made: str, read: str) -> None:
    assert refused(ring, ring.seal(Purpose.TASK, made, b"aab"), audience=read).reason == "forged"


def test_audience_and_payload_cannot_be_shifted_into_each_other(ring: Keyring) -> None:
    one = ring.seal(Purpose.TASK, "ab", b"c")
    assert refused(ring, one[:OVERHEAD] + b"bc", audience="a").reason == "forged"


def test_expiry_is_the_first_moment_of_refusal(ring: Keyring) -> None:
    sealed = ring.seal(Purpose.TASK, "default", b"x", expires=1000.5)
    assert ring.open(Purpose.TASK, "default", sealed, now=1000.499) == b"x"
    for moment in (1000.5, 1e9, 1e15):
        with pytest.raises(Untrusted, match=r"expired [\d.]+ s ago") as caught:
            ring.open(Purpose.TASK, "default", sealed, now=moment)
        assert (caught.value.reason, caught.value.fingerprint) == ("expired", ring.fingerprints[0])
    assert ring.open(Purpose.TASK, "default", ring.seal(Purpose.TASK, "default", b"x"), now=1e300) == b"x"


def test_the_clock_is_asked_where_no_time_is_given(ring: Keyring) -> None:
    with pytest.raises(Untrusted, match="expired"):
        ring.open(Purpose.TASK, "default", ring.seal(Purpose.TASK, "default", b"x", expires=1e-9))
    far = ring.seal(Purpose.TASK, "default", b"x", expires=9e14)
    assert ring.open(Purpose.TASK, "default", far) == b"x"
    with pytest.raises(Untrusted, match=r"expired 100000000000000\.0 s ago"):
        ring.open(Purpose.TASK, "default", far, now=1e15)


@pytest.mark.parametrize("expires", [-1.0, float("nan"), float("inf"), 1e20])
def test_an_expiry_that_is_no_time_is_a_wrong_call(ring: Keyring, expires: float) -> None:
    with pytest.raises(UsageError, match="expires="):
        ring.seal(Purpose.TASK, "default", b"x", expires=expires)


@pytest.mark.parametrize("audience", ["x" * 65536, "\ud800"])
def test_an_audience_that_cannot_be_is_a_wrong_call(ring: Keyring, audience: str) -> None:
    with pytest.raises(UsageError, match="audience"):
        ring.seal(Purpose.TASK, audience, b"x")


@pytest.mark.parametrize(
    "sealed",
    [
        pickle.dumps([1], 5),
        pickle.dumps([1], 0),
        json.dumps({"task": "os.system"}).encode(),
        b"[1]",
        b"\x82\xa1a\x01\xa1b\x02",
        b"\x93\x01\x02\x03",
        b"\0" * 100,
    ],
)
def test_what_is_not_sealed_is_called_so(ring: Keyring, sealed: bytes) -> None:
    error = refused(ring, sealed)
    assert (error.reason, error.fingerprint) == ("unsigned", "")


def test_a_newer_release_is_told_from_nonsense(ring: Keyring) -> None:
    error = refused(ring, b"\x02" + ring.seal(Purpose.TASK, "default", b"x")[1:])
    assert (error.reason, error.fingerprint) == ("newer version", ring.fingerprints[0])
    assert refused(ring, b"\x02").reason == "newer version"


def test_errors_name_the_keys_and_the_way_out(ring: Keyring) -> None:
    stranger = Keyring([OTHER])
    error = refused(ring, stranger.seal(Purpose.TASK, "default", b"x"))
    assert error.fingerprint == stranger.fingerprints[0]
    for part in ("'task'", "'default'", error.fingerprint, ring.fingerprints[0], "REVOLVE_SECRET"):
        assert part in str(error)


def test_refusals_travel() -> None:
    error = refused(Keyring([SECRET]), b"\x01" + bytes(80))
    for there in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert (type(there), str(there)) == (Untrusted, str(error))
        assert (there.reason, there.fingerprint) == ("unknown key", "00" * 8)


@given(sealed=st.binary(max_size=200), begins=st.sampled_from([b"", b"\x01", b"key"]))
def test_whatever_comes_is_opened_or_untrusted(sealed: bytes, begins: bytes) -> None:
    ring = Keyring([SECRET])
    if begins == b"key":
        begins = b"\x01" + bytes.fromhex(ring.fingerprints[0])
    error = refused(ring, begins + sealed)
    assert error.reason in {"forged", "unknown key", "truncated", "newer version", "unsigned"}


@given(
    payload=st.binary(max_size=100),
    start=st.integers(0, 150),
    length=st.integers(0, 20),
    instead=st.binary(max_size=20),
    made=st.sampled_from(Purpose),
    read=st.sampled_from(Purpose),
    audiences=st.tuples(st.text(st.characters(codec="utf-8"), max_size=5), st.sampled_from(["same", "a"])),
    expires=st.sampled_from([0.0, 999.0, 1001.0]),
)
def test_only_the_very_message_in_its_place_and_time_opens(
    payload: bytes,
    start: int,
    length: int,
    instead: bytes,
    made: Purpose,
    read: Purpose,
    audiences: tuple[str, str],
    expires: float,
) -> None:
    ring = Keyring([SECRET, OTHER])
    audience, reader = audiences[0], audiences[0] if audiences[1] == "same" else "a"
    sealed = ring.seal(made, audience, payload, expires=expires)
    changed = sealed[:start] + instead + sealed[start + length :]
    good = changed == sealed and made == read and audience == reader and expires != 999.0
    try:
        opened = ring.open(read, reader, changed, now=1000.0)
    except Untrusted:
        assert not good
    else:
        assert good
        assert opened == payload


# --- several secrets


def test_a_secret_is_replaced_without_losing_a_message() -> None:
    """67 in the catalogue: the old one still opens, the new one seals; once the old one is out it is refused."""
    old, both, late, new = Keyring([OTHER]), Keyring([OTHER, SECRET]), Keyring([SECRET, OTHER]), Keyring([SECRET])
    before = old.seal(Purpose.TASK, "default", b"before")
    after = late.seal(Purpose.TASK, "default", b"after")
    assert both.seal(Purpose.TASK, "default", b"before") == before
    assert both.open(Purpose.TASK, "default", after) == b"after"
    assert late.open(Purpose.TASK, "default", before) == b"before"
    assert new.open(Purpose.TASK, "default", after) == b"after"
    assert refused(new, before).reason == "unknown key"
    assert refused(new, before).fingerprint == old.fingerprints[0]
    assert late.fingerprints == (*new.fingerprints, *old.fingerprints) == both.fingerprints[::-1]
    assert Keyring([SECRET, SECRET]).fingerprints == new.fingerprints


def test_a_claim_to_be_of_another_key_of_ours_is_forged() -> None:
    ring = Keyring([SECRET, OTHER])
    sealed = bytearray(ring.seal(Purpose.TASK, "default", b"x"))
    sealed[1:9] = bytes.fromhex(ring.fingerprints[1])
    assert refused(ring, bytes(sealed)).reason == "forged"


# --- the secret stays where it is


@pytest.mark.parametrize(
    ("secrets", "says"),
    [
        ([], "no secret given"),
        (["shortsecretXYZ"], "the secret has 14 bytes, at least 16"),
        ([SECRET, b"shortsecretXYZ"], "secret 2 of 2 has 14 bytes"),
        ("shortsecretXYZ but one text", "a list of secrets"),
        (b"shortsecretXYZ but one text", "a list of secrets"),
        (["shortsecretXYZ but \ud800 ends"], "no text that UTF-8 can hold"),
        ([SECRET, 7], "secret 2 of 2 is int"),
    ],
)
def test_a_secret_that_cannot_be_used_is_named_but_not_shown(secrets: list[str | bytes], says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        Keyring(secrets)
    assert caught.value.__context__ is None  # which would hold the text
    here = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    shown = "".join(map(str, (frame.locals for frame in here.stack if Path(frame.filename).stem == "seal")))
    for text in (str(caught.value), repr(caught.value), shown):
        assert "XYZ" not in text
        assert SECRET not in text


def test_a_keyring_shows_fingerprints_only(ring: Keyring) -> None:
    assert repr(ring) == str(ring) == f"<Keyring {ring.fingerprints[0]}>"
    assert not hasattr(ring, "__dict__")
    held = [repr(getattr(ring, name)) for name in Keyring.__slots__]
    assert not [text for text in held if SECRET in text]


@pytest.mark.parametrize(
    "take",
    [pickle.dumps, lambda ring: pickle.dumps(ring, 0), lambda ring: cloudpickle.dumps(lambda: ring), copy.copy,
     copy.deepcopy],
)  # fmt: skip
def test_a_keyring_does_not_travel(ring: Keyring, take: Callable[[object], object]) -> None:
    with pytest.raises(UsageError, match="stays in its process"):
        take(ring)


# --- others can make and check it


def test_keys_are_made_as_rfc_5869_says() -> None:
    cases = [  # A.1 to A.3
        ("0b" * 22, bytes(range(13)), bytes(range(0xF0, 0xFA)), 42,
         "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"),
        (bytes(range(80)).hex(), bytes(range(0x60, 0xB0)), bytes(range(0xB0, 0x100)), 82,
         "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac7827271cb41c65e590e09"
         "da3275600c2f09b8367793a9aca3db71cc30c58179ec3e87c14c01d5c1f3434f1d87"),
        ("0b" * 22, b"", b"", 42,
         "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"),
    ]  # fmt: skip
    for secret, salt, info, length, wanted in cases:
        assert hkdf(bytes.fromhex(secret), salt=salt, info=info, length=length).hex() == wanted


def test_a_stored_frame_still_opens() -> None:
    """Made once by this release; later ones have to read it."""
    ring = Keyring([SECRET])
    sealed = ring.seal(Purpose.TASK, "default", b"payload", expires=4102444800.0)
    assert sealed.hex() == STORED
    assert ring.open(Purpose.TASK, "default", bytes.fromhex(STORED), now=0.0) == b"payload"


STORED = (
    "01136b236472a03d07000003bb2cc3d800deefe74bccf664f1bd51324d5388ba654902e381c90e5f8d304086cc5ba8b1987061796c6f6164"
)


def test_the_table_in_the_reference_is_the_format() -> None:
    """The same frame by the words of docs/reference/wire.md and nothing of this library."""
    name = hkdf(SECRET.encode(), salt=b"revolve-assistant/1", info=b"key id", length=8)
    key = hkdf(SECRET.encode(), salt=b"revolve-assistant/1", info=b"control", length=32)
    expiry = (1_700_000_000_250).to_bytes(8, "big")
    covered = b"\x01" + name + b"\x00\x07control" + b"\x00\x08assistan" + expiry + b"payload"
    frame = b"\x01" + name + expiry + hmac.new(key, covered, hashlib.sha256).digest() + b"payload"
    assert Keyring([SECRET]).seal(Purpose.CONTROL, "assistan", b"payload", expires=1_700_000_000.25) == frame


EXPIRY = 4_102_444_800  # 2100


def test_the_php_of_the_reference_opens_what_we_seal(need: Callable[[str], str], tmp_path: Path) -> None:
    page = (ROOT / "docs" / "reference" / "wire.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```php\n(.*?)^```", page, re.M | re.S)
    (tmp_path / "open.php").write_text(code, encoding="utf-8")
    ring = Keyring([SECRET])

    def run(frame: bytes, purpose: str = "event", audience: str = "über") -> tuple[int, bytes]:
        done = subprocess.run(
            [need("php"), "open.php", purpose, audience],
            cwd=tmp_path,
            env=os.environ | {"REVOLVE_SECRET": SECRET},
            input=frame,
            capture_output=True,
            check=False,
        )
        return done.returncode, done.stdout

    payload = bytes(range(256))
    for expires in (0.0, EXPIRY):
        sealed = ring.seal(Purpose.EVENT, "über", payload, expires=expires)
        assert run(sealed) == (0, payload)
    assert run(ring.seal(Purpose.EVENT, "über", b"")) == (0, b"")
    bad = [sealed[:-1], sealed[:48], b"", sealed + b"x", sealed[:20] + bytes([sealed[20] ^ 1]) + sealed[21:]]
    bad += [Keyring([OTHER]).seal(Purpose.EVENT, "über", b"x"), ring.seal(Purpose.EVENT, "über", b"x", expires=1.0)]
    for frame in bad:
        assert run(frame) == (1, b"")
    assert run(sealed, "task") == run(sealed, audience="uber") == (1, b"")


def test_openssl_makes_the_same_mac(need: Callable[[str], str]) -> None:
    """Neither our HKDF nor Python's hmac: all of the frame from another hand."""
    openssl = need("openssl")

    def run(*words: str, data: bytes = b"") -> bytes:
        return subprocess.run([openssl, *words], input=data, capture_output=True, check=True).stdout

    if b"LibreSSL" in run("version"):
        pytest.skip("LibreSSL has no `openssl kdf`")

    def key(info: str, length: int) -> bytes:
        options = ["digest:SHA256", f"key:{SECRET}", "salt:revolve-assistant/1", f"info:{info}"]
        words = [word for option in options for word in ("-kdfopt", option)]
        return run("kdf", "-keylen", str(length), *words, "-binary", "HKDF")

    head = b"\x01" + key("key id", 8)
    expiry = (EXPIRY * 1000).to_bytes(8, "big")
    covered = head + b"\0\4task" + b"\0\7default" + expiry + b"payload"
    mac = run("dgst", "-sha256", "-binary", "-mac", "HMAC", "-macopt", f"hexkey:{key('task', 32).hex()}", data=covered)
    assert (head + expiry + mac + b"payload").hex() == STORED


# --- replay


def test_what_was_seen_is_not_new() -> None:
    seen = Seen()
    assert seen.add("a")
    assert not seen.add("a")
    assert seen.add(b"a")
    assert "a" in seen
    assert "b" not in seen
    seen.discard("a")
    seen.discard("a")
    assert "a" not in seen
    assert seen.add("a")


def test_what_expired_is_forgotten() -> None:
    seen = Seen()
    assert seen.add("a", expires=10.0, now=5.0)
    assert not seen.add("a", expires=10.0, now=9.9)
    assert "a" not in seen  # by the clock
    assert seen.add("a", expires=20.0, now=10.0)
    assert seen.add("b", now=30.0)
    assert len(seen) == 1


def test_what_comes_again_after_its_expiry_is_young_again() -> None:
    seen = Seen(2)
    seen.add("b", now=5.0)
    seen.add("a", expires=10.0, now=5.0)
    seen.add("a", expires=50.0, now=10.0)
    seen.add("b2", now=11.0)  # b goes
    assert not seen.add("a", expires=50.0, now=11.0)
    seen = Seen(2)
    seen.add("a", expires=10.0, now=5.0)
    seen.add("b", now=5.0)
    seen.add("a", expires=50.0, now=10.0)
    seen.add("c", now=11.0)
    assert not seen.add("a", expires=50.0, now=11.0)


def test_memory_is_bounded_and_the_oldest_goes_first() -> None:
    seen = Seen(3)
    for id in "abcd":
        assert seen.add(id)
    assert len(seen) == 3
    assert not seen.add("d")
    assert not seen.add("b")
    assert seen.add("a")
    with pytest.raises(UsageError, match="limit=0"):
        Seen(0)


def test_test_and_add_are_one_act() -> None:
    seen = Seen()
    held: list[bool] = []

    class Watching(str):
        __slots__ = ()

        def __hash__(self) -> int:
            held.append(seen._lock.locked())
            return super().__hash__()

    assert seen.add(Watching("a"))
    assert not seen.add(Watching("a"))
    assert len(held) > 2
    assert all(held)


def test_of_many_threads_one_is_first() -> None:
    seen = Seen()
    start = threading.Barrier(8)
    first: list[int] = []

    def work() -> None:
        start.wait()
        first.extend(number for number in range(2000) if seen.add(str(number)))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(first) == list(range(2000))
