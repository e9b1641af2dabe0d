import pytest

from deploykit.models.loading import align_names

NETWORK = ("conv.weight", "head.fc.weight", "head.fc.bias")


@pytest.mark.parametrize(
    ("found", "expected", "note"),
    [
        (NETWORK, NETWORK, ""),
        ([f"model.{n}" for n in NETWORK], NETWORK, "prefix 'model.' removed"),
        ([f"a.module.b.{n}" for n in NETWORK], NETWORK, "prefix 'a.b.' removed"),
        (NETWORK, [f"net.{n}" for n in NETWORK], "prefix 'net.' added"),
        (
            [f"model.{n}" for n in NETWORK],
            [f"net.{n}" for n in NETWORK],
            "prefix 'model.' removed, prefix 'net.' added",
        ),
        (
            ["conv.module.weight", "head._orig_mod.fc.weight", "head._orig_mod.fc.bias"],
            NETWORK,
            "wrappers' names (module, _orig_mod) removed",
        ),
        (
            ["backbone.conv.weight", "head.fc.weight", "head.fc.bias"],
            NETWORK,
            "prefix 'backbone.' removed",
        ),
    ],
)
def test_prefixes_go_where_that_makes_the_names_fit(
    found: list[str], expected: list[str], note: str
) -> None:
    names, changed = align_names(found, expected)
    assert list(names) == list(found)
    assert list(names.values()) == list(expected)
    assert changed == note


def test_names_stay_where_nothing_fits_better() -> None:
    names, changed = align_names(["model.a.weight", "model.b.weight"], NETWORK)
    assert names == {"model.a.weight": "model.a.weight", "model.b.weight": "model.b.weight"}
    assert changed == ""


def test_a_networks_own_module_named_module_is_kept() -> None:
    names = ["module.weight", "weight"]
    assert align_names(names, names)[0] == {"module.weight": "module.weight", "weight": "weight"}


def test_two_names_never_become_one() -> None:
    found = ["model.conv.weight", "conv.weight"]
    assert len(set(align_names(found, NETWORK)[0].values())) == 2
