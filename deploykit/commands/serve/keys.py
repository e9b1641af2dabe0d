"""API keys: who may ask a server."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from deploykit.errors import InputError, UsageError
from deploykit.system.files import read_file

_MOST_BYTES = 2**20
#: 16 characters of base64 have 96 bits.
_SHORTEST = 16
_MAKE_ONE = "One key a line, such as: python -c 'import secrets; print(secrets.token_urlsafe())'"


@dataclass(frozen=True)
class ApiKeys:
    """Keys, of which only digests are kept.

    Attributes:
        digests: SHA-256 of each.
    """

    digests: tuple[bytes, ...]

    def allow(self, authorization: str) -> bool:
        """Whether a header ``Authorization`` has a key; each is compared, in constant time.

        Args:
            authorization: ``Bearer KEY``.
        """
        scheme, _, key = authorization.partition(" ")
        given = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        found = [hmac.compare_digest(given, each) for each in self.digests]
        return scheme.lower() == "bearer" and any(found)


def read_keys(path: Path) -> ApiKeys:
    """Read a file of keys: one a line; empty lines and those that begin with ``#`` are none.

    Raises:
        InputError: It cannot be read, has no key, or one that is too short.
    """
    try:
        text = read_file(path, limit=_MOST_BYTES).decode("utf-8-sig")  # as editors write it
    except OSError as exc:
        reason = exc.strerror or exc
        raise InputError(f"The file of API keys {path} cannot be read: {reason}.") from exc
    except UnicodeDecodeError as exc:
        raise InputError(f"The file of API keys {path} is no UTF-8.", hint=_MAKE_ONE) from exc
    lines = [line.strip() for line in text.splitlines()]
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise InputError(f"The file of API keys {path} has no key.", hint=_MAKE_ONE)
    if min(map(len, keys)) < _SHORTEST:
        raise InputError(f"A key in {path} has fewer than {_SHORTEST} characters.", hint=_MAKE_ONE)
    return ApiKeys(tuple(hashlib.sha256(key.encode()).digest() for key in keys))


def check_exposure(host: str, *, has_keys: bool, no_api_key: bool) -> None:
    """Refuse to answer whoever reaches this machine, unless somebody decided that.

    Raises:
        UsageError: The address is not this machine's own, and there is no key.
    """
    if has_keys and no_api_key:
        raise UsageError("--api-key-file and --no-api-key contradict each other.")
    if has_keys or no_api_key or is_loopback(host):
        return
    raise UsageError(
        f"On {host} whoever reaches this machine could use the model.",
        hint="Give --api-key-file FILE; or say --no-api-key if something in front checks who asks.",
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
