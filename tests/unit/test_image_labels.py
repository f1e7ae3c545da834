"""Which classes are in which image: every source, and what is wrong with it said."""

import json

import pytest

from diffuseg.errors import InputError
from diffuseg.image_labels import ImageLabels, image_key, read_image_labels


def annotation(*names):
    objects = "".join(f"<object><name>{name}</name></object>" for name in names)
    return f"<annotation><filename>renamed.jpg</filename>{objects}</annotation>"


def test_voc_annotations(tmp_path):
    folder = tmp_path / "Annotations"
    (folder / "sub").mkdir(parents=True)
    (folder / "2007_000032.xml").write_text(annotation("person", "aeroplane", "person"))
    (folder / "sub" / "b.xml").write_text(annotation())
    for source in (folder, tmp_path, str(tmp_path)):
        labels = read_image_labels(source)
        assert labels.by_image == {"2007_000032": ("person", "aeroplane"), "sub/b": ()}
    assert labels.of("photos/2007_000032.jpg") == ("person", "aeroplane")
    assert labels.names == ("aeroplane", "person")
    assert labels.of("b.jpg") == ()


@pytest.mark.parametrize(
    "text",
    [
        "a.jpg,car,dining table\nb.jpg,sky\n",
        "image,labels\na.jpg,car;dining table\nb.jpg,sky\n",
        "\ufefffilename,class\na.jpg,car\na.jpg, dining  table\nb.jpg,sky\na.jpg,car\n",
        'a.jpg\tcar\tdining table\n\nb.jpg\t"sky"\n',
    ],
)
def test_csv(tmp_path, text):
    path = tmp_path / "labels.csv"
    path.write_text(text, encoding="utf-8")
    assert read_image_labels(path).by_image == {"a": ("car", "dining table"), "b": ("sky",)}


@pytest.mark.parametrize(
    "held",
    [
        {"/data/a.jpg": ["car", "sky"], "b.png": []},
        {"/data/a": "car, sky", "b": ""},
        {"/data/a": {"labels": ["car", "sky"]}, "b": {"names": []}},
    ],
)
def test_json(tmp_path, held):
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(held))
    labels = read_image_labels(path)
    assert labels.by_image == read_image_labels(held).by_image
    assert labels.of("elsewhere/a.webp") == ("car", "sky")
    assert labels.of("b.jpg") == ()
    assert labels.of("c.jpg") is None
    assert len(labels) == 2


def test_images_of_one_name_are_told_apart_by_their_folders():
    labels = read_image_labels({"train/1/a.jpg": ["car"], "train/2/a.jpg": ["sky"]})
    assert labels.of("/x/train/2/a.png") == ("sky",)
    assert labels.of("1/a.png") == ("car",)
    with pytest.raises(InputError, match=r"which image they belong to(.|\n)*train/1/a or train/2"):
        labels.of("a.png")


def test_keys():
    assert image_key("C:\\photos\\a.b.JPEG") == "C:/photos/a.b"
    assert image_key("2007_000032") == "2007_000032"
    assert read_image_labels(labels := ImageLabels({})) is labels


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "[1]", "names of the classes of every image"),
        ("a.json", '{"a": 3}', "names of the classes of every image"),
        ("a.json", '{"a": [3]}', "names of the classes of every image"),
        ("a.json", '{"a": {"boxes": 1}}', "names of the classes of every image"),
        ("a.json", '{"a": ', "whole and of the kind"),
        ("a.csv", ",car\n", "names of the classes of every image"),
        ("a.txt", "a car", "read from .json, .csv or a folder"),
        ("Annotations/a.xml", "<annotation>", "a whole XML file"),
        ("Annotations/a.xml", annotation("car", ""), "must have a name"),
        ("Annotations/a.txt", "", "must hold VOC annotations"),
    ],
)
def test_what_cannot_be_read(tmp_path, name, text, message):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_image_labels(path.parent if path.parent != tmp_path else path)


def test_what_is_no_source(tmp_path):
    with pytest.raises(InputError, match="must be a file, a folder or a dict"):
        read_image_labels(3)
    with pytest.raises(InputError, match="must exist"):
        read_image_labels(tmp_path / "no.json")
