import json
from pathlib import Path

import pytest

from deploykit.errors import InputError
from deploykit.images.label_files import format_names, read_names


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8", newline="")
    return path


@pytest.mark.parametrize(
    ("name", "text", "names"),
    [
        # Numbers before the names, in any order
        ("x.txt", "0 bird\n1 dog\n", ("bird", "dog")),
        ("x.txt", "\ufeff1: dog\r\n0: bird\r\n\r\n", ("bird", "dog")),
        ("x.txt", "# index, name\n0, tench, Tinca tinca\n1, hen\n", ("tench, Tinca tinca", "hen")),
        ("x.tsv", "0\tbird\n1\tdog\n", ("bird", "dog")),
        ("x.csv", 'index,name\n1,"bird, big"\n0,dog\n', ("dog", "bird, big")),
        # or behind them
        ("x.txt", "bird,0\ndog,1\n", ("bird", "dog")),
        ("x.txt", "bird 1\ndog 0\n", ("dog", "bird")),
        ("x.csv", "name,label\nbird,0\ndog,1\n", ("bird", "dog")),
        ("x.csv", 'name\n"tench, Tinca tinca"\nhen\n', ("tench, Tinca tinca", "hen")),
        # Numbers that belong to the names
        ("x.txt", "Boeing 747\nBoeing 737\n", ("Boeing 747", "Boeing 737")),
        ("x.txt", "747 Boeing\n737 Boeing\n", ("747 Boeing", "737 Boeing")),
        ("x.txt", "grade 0\ngrade 1\n", ("grade 0", "grade 1")),
        ("x.txt", "0\n1\n", ("0", "1")),
        ("x.txt", "16:9\n4:3\n", ("16:9", "4:3")),
        ("x.txt", "3.5 inch\n5.25 inch\n", ("3.5 inch", "5.25 inch")),
        ("x.txt", "001.Albatross\n002.Ani\n", ("001.Albatross", "002.Ani")),
        ("x.txt", "tench, Tinca tinca\nhen, Gallus\n", ("tench, Tinca tinca", "hen, Gallus")),
    ],
)
def test_read_names_of_lines(tmp_path, name, text, names):
    assert read_names(written(tmp_path, name, text)) == names


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ({"0": "bird", "1": "dog"}, ("bird", "dog")),
        ({"bird": 1, "dog": 0}, ("dog", "bird")),
        (["bird", "dog"], ("bird", "dog")),
        ({"0": 0, "1": 1}, ("0", "1")),
        ({"0": ["n01", "tench"], "1": ["n02", "hen"]}, ("tench", "hen")),
        ({"model_type": "vit", "id2label": {"1": "b", "0": "a"}, "label2id": {"a": 0}}, ("a", "b")),
        ({"label2id": {"a": 1, "b": 0}}, ("b", "a")),
        ({"num_classes": 2, "label_names": ["p", "q"]}, ("p", "q")),
        ({"pretrained_cfg": {"label_names": ["p", "q"]}}, ("p", "q")),
        ({"names": 1, "classes": 0}, ("classes", "names")),
    ],
)
def test_read_names_of_json(tmp_path, value, names):
    assert read_names(written(tmp_path, "x.json", json.dumps(value, indent=4))) == names
    # JSON by any other name, and a dictionary as Python prints it
    assert read_names(written(tmp_path, "x.txt", json.dumps(value))) == names
    assert read_names(written(tmp_path, "y.txt", str(value))) == names


@pytest.mark.parametrize(
    "text",
    [
        "nc: 2\nnames: [cat, 'it''s, wet']  # two\ntrain: images\n",
        'names: [cat,\n  "it\'s, wet",\n]\n',
        'names: {1: "it\'s, wet", 0: cat}\n',
        "names:\n- cat\n- it's, wet # dog\nnc: 2\n",
        "# data\nnames:  # of COCO\n  0: cat\n  1: 'it''s, wet'\n\ndownload: |\n  names: none\n",
    ],
)
def test_read_names_of_yaml(tmp_path, text):
    assert read_names(written(tmp_path, "data.yaml", text)) == ("cat", "it's, wet")


#: Lists, each ten times the one before: printed, the last would fill the memory.
REPEATED = (
    "a0: &a0 [x]\n"
    + "".join(f"a{n + 1}: &a{n + 1} [{','.join([f'*a{n}'] * 10)}]\n" for n in range(30))
    + "names: *a30\n"
)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("x.txt", "", "it has none"),
        ("x.txt", "1 bird\n2 dog\n", "go from 1 to 2, without 0"),
        ("x.txt", "0: bird\n2: dog\n", "go from 0 to 2, without 1"),
        ("x.txt", "bird,0\ndog,0\n", "same number: 0"),
        ("x.txt", "0,5\n1,6\n2,7\n", None),
        ("x.txt", "1,0\n0,1\n", "either column"),
        ("x.txt", "a" + 9000 * " " + "b", "9002 characters"),
        ("x.csv", "n01440764,tench\nn01443537,hen\n", "needs two columns"),
        ("x.json", '{"0": "a", "0": "b"}', "same number: 0"),
        ("x.json", '{"1": "a", "2": "b"}', "without 0"),
        ("x.json", '{"0": "a"', "no JSON"),
        ("x.json", 100_000 * "[", "no JSON"),
        ("x.json", "[" + 5000 * "1" + "]", "no JSON"),
        ("x.json", '{"num_classes": "many"}', "neither a number for each name"),
        ("x.json", "[null]", "no name"),
        ("x.json", '["a", " "]', "class 1 is empty"),
        ("x.json", '["\\ud800"]', "control character"),
        ("x.json", '["a\\u001b[31m"]', "control character"),
        ("x.json", "3", "neither a list nor an object"),
        ("x.yaml", "nc: 2\nbirds: many\n", "neither a number for each name"),
        ("x.yaml", "names: *others\n", "no YAML (found undefined alias 'others' in line 1)"),
        ("x.yaml", "names:\n  - cat: dog\n", "an object is no name"),
        ("x.yaml", "names: [a, [b]]\n", "a list is no name"),
        ("x.yaml", "names: [yes, no]\n", "'yes' without quotes is true or false in YAML"),
        ("x.yaml", "names: !!python/name:os.system\n", "no YAML"),
        ("x.yaml", REPEATED, "a list is no name"),
    ],
)
def test_read_names_in_doubt(tmp_path, name, text, reason):
    path = written(tmp_path, name, text)
    if reason is None:
        assert read_names(path) == ("5", "6", "7")
        return
    with pytest.raises(InputError) as caught:
        read_names(path)
    assert reason in caught.value.message
    assert str(path) in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.csv", 'name,id\n"a\nb",0\ndog,1\n'),
        ("x.csv", 'name\n"a\r\n\r\nb"\ndog\n'),
        ("x.tsv", '0\t"a\nb"\n1\tdog\n'),
        ("x.txt", "a\u2028b\ndog\n"),
        ("x.txt", "0 a\x0bb\n1 dog\n"),
        ("x.txt", "a\tb\ndog\n"),
        ("x.txt", "a\x85b\ndog\n"),
        ("x.json", '["a\\nb", "dog"]'),
        ("x.yaml", 'names: {0: "a\\nb", 1: dog}\n'),
        ("x.yaml", "names:\n- |-\n  a\n  b\n- dog\n"),
    ],
)
def test_read_names_with_control_characters(tmp_path, name, text):
    with pytest.raises(InputError, match="has a control character") as caught:
        read_names(written(tmp_path, name, text))
    assert "rename the class" in caught.value.hint


def test_read_names_keeps_what_is_printed(tmp_path):
    names = ("鹰", "\U0001f469\u200d\U0001f680", "עורב", "a\u00a0b", "\u200fא")
    assert read_names(written(tmp_path, "x.txt", "\n".join(names))) == names
    numbered = "".join(f"{place} {name}\n" for place, name in enumerate(names))
    assert read_names(written(tmp_path, "x.txt", numbered)) == names


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("names: [bird, no]", "no"),
        ("names: {0: bird, 1: no}", "no"),
        ("names: {0: bird, 1: ~}", "~"),
        ("names: {0: bird, 1: 2024-01-01}", "2024-01-01"),
        ("names: [bird, 010]", "010"),
        ("names: [bird, 12:30]", "12:30"),
        ("names: [bird, 1.50]", "1.50"),
        ("names: {bird: 0, on: 1}", "on"),
        ("names: {0: bird, off: dog}", "off"),
    ],
)
def test_read_names_of_yaml_without_quotes(tmp_path, text, word):
    with pytest.raises(InputError, match=f"'{word}' without quotes is") as caught:
        read_names(written(tmp_path, "x.yaml", text))
    assert caught.value.hint == f"Quote it: '{word}'"
    quoted = text.replace(f" {word}", f" '{word}'")
    if not quoted.startswith("names: {0: bird, 'off'"):
        assert read_names(written(tmp_path, "x.yaml", quoted)) == ("bird", word)


@pytest.mark.parametrize("ending", ["json", "yaml", "txt"])
@pytest.mark.parametrize(
    "value",
    [
        {"classes": ["a", "b"], "names": ["a", "c"]},
        {"names": {"0": "a", "1": "b"}, "classes": ["b", "a"]},
        {"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 1, "b": 0}},
        {"names": ["a"], "classes": ["a", "b"]},
    ],
)
def test_read_names_of_entries_that_differ(tmp_path, value, ending):
    with pytest.raises(InputError, match=r"its entries \w+ and \w+ name other classes"):
        read_names(written(tmp_path, f"x.{ending}", json.dumps(value)))


def test_read_names_of_a_repeated_entry(tmp_path):
    text = '{"names": ["a"], "names": ["b"]}'
    with pytest.raises(InputError, match="names and names name other classes"):
        read_names(written(tmp_path, "x.json", text))


def test_read_names_of_entries_that_agree(tmp_path):
    value = {"classes": ["a", "b"], "names": {"1": "b", "0": "a"}, "nc": 2}
    assert read_names(written(tmp_path, "x.json", json.dumps(value))) == ("a", "b")


@pytest.mark.parametrize(
    "names",
    [("cat", "dog"), ("0 cat", "1 dog"), ("#1", "#2"), ("{x", "b"), ("a,0", "b,1"), (" a",)],
)
def test_format_names_round_trip(tmp_path, names):
    assert read_names(written(tmp_path, "classes.txt", format_names(names))) == names
