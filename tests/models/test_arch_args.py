import pytest

from deploykit.errors import UsageError
from deploykit.models.registry import parse_arch_args


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2", 2),
        ("0.25", 0.25),
        ("1e-3", 1e-3),
        ("true", True),
        ("False", False),
        ("none", None),
        ("6,12,24,16", (6, 12, 24, 16)),
        ("[2, 2]", [2, 2]),
        ("{'group': 32, 'num': (3, 4)}", {"group": 32, "num": (3, 4)}),
        ("relu", "relu"),
        ("basic,true,3", ("basic", True, 3)),
        ("a=b", "a=b"),
        ("007", "007"),
    ],
)
def test_values(text: str, value: object) -> None:
    parsed = parse_arch_args([f"key={text}"])["key"]
    assert parsed == value
    assert type(parsed) is type(value)


def test_several_items_keep_their_order() -> None:
    assert list(parse_arch_args(["k = 2", "bn_size=4"]).items()) == [("k", 2), ("bn_size", 4)]


@pytest.mark.parametrize("item", ["k", "k=", "=2", "a b=2", "2k=1"])
def test_what_is_not_key_value_is_refused(item: str) -> None:
    with pytest.raises(UsageError, match="is not KEY=VALUE"):
        parse_arch_args([item])


def test_a_key_comes_once() -> None:
    with pytest.raises(UsageError, match="k is given twice"):
        parse_arch_args(["k=1", "k=2"])
