"""Is the bundle what was exported, and is each engine what its passport says?"""

from __future__ import annotations

import pytest

from deploykit.bundle.folder import Bundle
from deploykit.engine.passport import Passport
from deploykit.engine.plan import check_plan, read_header
from deploykit.inference.engines import named_engine


def test_file_is_unchanged(file: str, bundle: Bundle) -> None:
    """A file of the bundle has the hash that the manifest records."""
    bundle.checked(file)


def test_passport(engine: str, bundle: Bundle) -> None:
    """An engine is the one of its passport, and was built from the bundle's graph as it is now.

    Whether it runs and decides is another test's question, which needs the GPU.
    """
    passport = named_engine(bundle, engine).passport
    plan = bundle.checked(engine).read_bytes()
    for objection in (check_plan(plan, passport.flavour), _other_header(plan, passport)):
        if objection is not None:
            pytest.fail(f"{engine}: {objection}.", pytrace=False)


def _other_header(plan: bytes, passport: Passport) -> str | None:
    """What an engine's header says otherwise than its passport, as far as it is understood."""
    header = read_header(plan)
    if header is None:
        return None
    if header.version not in (None, passport.version):
        return f"it is of version {header.version}; its passport says {passport.version}"
    recorded = passport.compute_capabilities
    if header.targets is not None and set(header.targets) != set(recorded):
        found = ", ".join(header.targets)
        return f"it was built for {found}; its passport says {', '.join(recorded)}"
    return None
