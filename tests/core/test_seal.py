"""Signatures: what opens, what does not, and that nothing else is ever raised."""

from __future__ import annotations

import pickle
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from revolve_assistant import Untrusted, UsageError
from revolve_assistant.wire.seal import OVERHEAD, Keyring, Purpose, hkdf

OLD, NEW = "o" * 32, "n" * 32
KEYS = Keyring([NEW])


def refused(keys: Keyring, sealed: bytes, purpose: Purpose = Purpose.TASK, audience: str = "a/q", **more: float) -> str:
    with pytest.raises(Untrusted) as caught:
        keys.open(purpose, audience, sealed, **more)
    return caught.value.reason


@given(st.binary(max_size=2000), st.sampled_from(list(Purpose)), st.text(max_size=80))
def test_what_was_sealed_opens_with_the_same_words(payload: bytes, purpose: Purpose, audience: str) -> None:
    sealed = KEYS.seal(purpose, audience, payload)
    assert len(sealed) == len(payload) + OVERHEAD
    assert bytes(KEYS.open(purpose, audience, sealed)) == payload


def test_every_flipped_bit_is_refused() -> None:
    sealed = KEYS.seal(Purpose.TASK, "a/q", b"payload", expires=4e9)
    for position in range(len(sealed) * 8):
        changed = bytearray(sealed)
        changed[position // 8] ^= 1 << position % 8
        assert refused(KEYS, bytes(changed)) in {"forged", "unknown key", "unsigned", "newer version"}


def test_every_truncation_is_refused() -> None:
    sealed = KEYS.seal(Purpose.TASK, "a/q", b"payload")
    for length in range(len(sealed)):
        assert refused(KEYS, sealed[:length]) in {"truncated", "unsigned", "forged"}


def test_what_was_meant_for_elsewhere_does_not_open() -> None:
    sealed = KEYS.seal(Purpose.EVENT, "a/q", b"payload")
    assert refused(KEYS, sealed) == "forged"
    assert refused(KEYS, sealed, Purpose.EVENT, "a/other") == "forged"
    # neither can purpose and audience lend each other letters
    assert refused(KEYS, KEYS.seal(Purpose.TASK, "q", b"xyz"), audience="qx") == "forged"


def test_expiry_is_signed_and_heeded() -> None:
    sealed = KEYS.seal(Purpose.TASK, "a/q", b"payload", expires=1000.5)
    assert bytes(KEYS.open(Purpose.TASK, "a/q", sealed, now=1000.4)) == b"payload"
    assert refused(KEYS, sealed, now=1000.5) == "expired"


def test_secrets_rotate() -> None:
    before, both, after = Keyring([OLD]), Keyring([NEW, OLD]), Keyring([NEW])
    old = before.seal(Purpose.TASK, "a/q", b"1")
    assert bytes(both.open(Purpose.TASK, "a/q", old)) == b"1"
    assert bytes(after.open(Purpose.TASK, "a/q", both.seal(Purpose.TASK, "a/q", b"2"))) == b"2"
    with pytest.raises(Untrusted) as caught:
        after.open(Purpose.TASK, "a/q", old)
    assert (caught.value.reason, caught.value.fingerprint) == ("unknown key", before.fingerprints[0])
    assert both.fingerprints == (*after.fingerprints, *before.fingerprints)


@given(st.binary(max_size=300))
def test_garbage_raises_nothing_but_untrusted(garbage: bytes) -> None:
    with pytest.raises(Untrusted):
        KEYS.open(Purpose.TASK, "a/q", garbage)


@pytest.mark.parametrize("secrets", [[], ["short"], [b"x" * 15], [NEW, ""]])
def test_poor_secrets_are_refused_without_showing_them(secrets: list[str | bytes]) -> None:
    with pytest.raises(UsageError, match="revolve secret new") as caught:
        Keyring(secrets)
    assert "short" not in str(caught.value)


def test_a_keyring_shows_and_pickles_no_secret() -> None:
    assert NEW not in repr(KEYS)
    with pytest.raises(UsageError):
        pickle.dumps(KEYS)


def test_untrusted_keeps_its_reason_across_processes() -> None:
    with pytest.raises(Untrusted) as caught:
        KEYS.open(Purpose.TASK, "a/q", b"")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.reason) == (str(caught.value), "unsigned")


def test_keys_are_derived_as_rfc_5869_says() -> None:
    secret, salt = bytes.fromhex("0b" * 22), bytes.fromhex("000102030405060708090a0b0c")
    info = bytes.fromhex("f0f1f2f3f4f5f6f7f8f9")
    expected = "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    assert hkdf(secret, salt, info, 42).hex() == expected
    assert hkdf(secret, b"", b"", 42).hex() == (
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"
    )


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_another_program_can_check_a_seal() -> None:
    """The recipe of docs/reference/wire.md, with openssl in place of our code."""

    def mac(key: bytes, data: bytes) -> bytes:
        command = ["openssl", "dgst", "-sha256", "-mac", "HMAC", "-macopt", f"hexkey:{key.hex()}", "-binary"]
        return subprocess.run(command, input=data, capture_output=True, check=True).stdout

    sealed = KEYS.seal(Purpose.EVENT, "assistant/i.1", b"hello")
    extracted = mac(b"revolve-assistant", NEW.encode())
    key = mac(extracted, b"event\x01")
    audience = b"assistant/i.1"
    signed = sealed[:17] + b"event\0" + len(audience).to_bytes(4, "big") + audience + b"hello"
    assert mac(key, signed) == sealed[17:49]
