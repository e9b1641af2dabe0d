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
        ("x.json", '["\\ud800"]', "no text"),
        ("x.json", '["a\\u001b[31m"]', "no text"),
        ("x.json", "3", "neither a list nor an object"),
        ("x.yaml", "nc: 2\nbirds: many\n", "neither a number for each name"),
        ("x.yaml", "names: *others\n", "no YAML (found undefined alias 'others' in line 1)"),
        ("x.yaml", "names:\n  - cat: dog\n", "a dict is no name"),
        ("x.yaml", "names: [a, [b]]\n", "a list is no name"),
        ("x.yaml", "names: [yes, no]\n", "'True' is no name"),
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
    "names",
    [("cat", "dog"), ("0 cat", "1 dog"), ("#1", "#2"), ("{x", "b"), ("a,0", "b,1"), (" a",)],
)
def test_format_names_round_trip(tmp_path, names):
    assert read_names(written(tmp_path, "classes.txt", format_names(names))) == names
