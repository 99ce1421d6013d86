"""Folders, links and lists of images."""

import itertools
import json
import os
import struct
import zlib

import numpy as np
import pytest
from pictures import GREY, RGB, encode, idents, labels, write

from si_jax.data import image_set, sources
from si_jax.data.folders import class_folders, from_folder
from si_jax.data.image_set import UnreadableImage, overlap, take

KINDS = {".jfif": "JPEG", ".gif": "GIF", ".tif": "TIFF", ".TIFF": "TIFF", ".ppm": "PPM",
         ".pgm": "PPM", ".jp2": "JPEG2000", ".ico": "ICO", ".webp": "WEBP"}  # fmt: skip


def test_every_format_is_read_by_its_ending_or_its_content(tmp_path):
    for ending, kind in KINDS.items():
        sizes = {"sizes": [(9, 6)]} if kind == "ICO" else {}  # older Pillow writes none so small
        (tmp_path / f"by_ending{ending}").write_bytes(encode(RGB, kind, **sizes))
        if kind != "ICO":  # whose beginning other kinds of file share
            (tmp_path / f"content_{ending[1:]}").write_bytes(encode(RGB, kind))
    (tmp_path / "notes").write_text("BMW, P5 and GIF")
    found = from_folder(tmp_path)
    assert len(found) == 2 * len(KINDS) - 1
    assert found.notes[0].startswith("1 file is left out") and "(notes)" in found.notes[0]
    for index, name in enumerate(idents(found)):
        image, _ = found.load(index)
        if not name.endswith((".ico", "gif", ".jfif", "jfif")):
            np.testing.assert_array_equal(image.shape, RGB.shape, name)
    content = bytearray(encode(RGB))  # an enormous image is one, whatever its name, and refused
    content[16:24] = struct.pack(">II", 20_000, 20_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    (tmp_path / "enormous").write_bytes(content)
    found = from_folder(tmp_path)
    with pytest.raises(UnreadableImage, match="enormous cannot be decoded"):
        found.load(idents(found).index("enormous"))


def test_flat_folders_and_folders_by_class_at_any_depth(tmp_path):
    for name in ("b.PNG", "a.jpg", "c.JpEg", "d.webp", "e.BMP"):
        write(tmp_path / name)
    for name in (".DS_Store", "._a.jpg", ".hidden/x.png"):
        write(tmp_path / name)
    (tmp_path / "readme.txt").write_text("PNG files by name")
    found = from_folder(tmp_path)
    assert idents(found) == ["a.jpg", "b.PNG", "c.JpEg", "d.webp", "e.BMP"]
    assert (found.name, labels(found)) == (tmp_path.name, [-1] * 5)
    assert found.load(0)[0].shape == (6, 9, 3)
    assert found.notes == (
        "1 file is left out, being no image in a format that is read (readme.txt)",
    )
    for name in ("cat/deep/er/2.png", "cat/1.png", "ant/3.png"):
        write(tmp_path / name)
    (tmp_path / "aardvark").mkdir()  # no images, so no class
    found = from_folder(tmp_path, name="pets", num_classes=2)
    assert found.name == "pets"
    assert idents(found)[1:6] == ["ant/3.png", "b.PNG", "c.JpEg", "cat/1.png", "cat/deep/er/2.png"]
    assert labels(found) == [-1, 0, -1, -1, 1, 1, -1, -1]


def test_class_folders_go_by_name_however_accents_are_written(tmp_path):
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    write(tmp_path / decomposed / "a.png")
    write(tmp_path / "bar/b.png")
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "__MACOSX/._b.png").write_bytes(b"\0\5\26\7")
    for classes in ((composed, "bar"), (decomposed, "bar")):
        assert labels(from_folder(tmp_path, classes=classes)) == [1, 0]
    write(tmp_path / composed / "c.png")
    assert labels(from_folder(tmp_path, num_classes=2)) == [0, 1, 1]
    assert class_folders(tmp_path) == ["bar", composed]


def test_folder_labels_from_json(tmp_path):
    root = tmp_path / "sample"
    for name in ("n02/x.png", "n01/x.png"):
        write(root / name)
    table = tmp_path / "sample.wnid_to_index.json"
    table.write_text(json.dumps({"n01": 7, "n02": 3, "n03": 9}))
    assert labels(sources.from_path(root, num_classes=1000)) == [7, 3]


def test_links_are_followed_folders_read_once_and_pipes_and_devices_not_waited_for(tmp_path):
    for name in ("set/a/1.png", "set/b/2.png", "set/c/3.png", "elsewhere/4.png"):
        write(tmp_path / name)
    for one, two in itertools.product("abc", "abc"):
        os.symlink(tmp_path / "set" / two, tmp_path / "set" / one / f"to_{two}")
    os.symlink(tmp_path / "set/a", tmp_path / "set/0_link_sorted_first")
    os.symlink(tmp_path / "set", tmp_path / "set/b/round")  # would never end
    os.symlink(tmp_path / "elsewhere", tmp_path / "set/d")
    os.symlink(tmp_path / "nowhere.png", tmp_path / "set/e.png")
    os.symlink("/dev/zero", tmp_path / "set/f.png")
    for name in ("g.png", "unnamed"):
        os.mkfifo(tmp_path / "set" / name)
    found = from_folder(tmp_path / "set")
    unreadable = {"e.png": "No such file", "f.png": "it is no reg", "g.png": "it is no reg"}
    assert idents(found) == ["a/1.png", "b/2.png", "c/3.png", "d/4.png", *unreadable]
    assert len(found.fingerprint) == 64
    for index, (name, reason) in enumerate(unreadable.items(), start=4):
        with pytest.raises(UnreadableImage, match=rf"set/{name} cannot be read \(.*{reason}"):
            found.load(index)


def test_a_fingerprint_is_of_names_labels_and_content(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for root in (one, two):
        write(root / "a/1.bmp", RGB)
        write(root / "b/2.bmp", GREY)
    first = from_folder(one)
    part = take(first, [1]).fingerprint
    assert first.fingerprint == from_folder(two, name="other").fingerprint and part
    assert len(first.fingerprint) == 64
    status = (one / "a/1.bmp").stat()
    write(one / "a/1.bmp", RGB[::-1])  # of the same size and time
    os.utime(one / "a/1.bmp", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (one / "a/1.bmp").stat().st_size == status.st_size
    again = from_folder(one)
    assert take(again, [1]).fingerprint == part  # which is as it was
    (one / "b").rename(one / "c")
    prints = {first.fingerprint, again.fingerprint, from_folder(one).fingerprint}
    assert len(prints) == 3


def test_digests_are_kept_until_a_file_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("SI_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(image_set, "WORTH_CACHING", 1)
    monkeypatch.setattr(image_set, "_SETTLED", 0)
    hashed = []
    read = image_set.files.read_bytes
    monkeypatch.setattr(
        image_set.files, "read_bytes", lambda path, *a: hashed.append(str(path)) or read(path)
    )

    def count():
        hashed.clear()
        from_folder(tmp_path / "set").fingerprint  # noqa: B018
        return sum("set" in path for path in hashed)

    write(tmp_path / "set/1.bmp", RGB)
    write(tmp_path / "set/2.bmp", RGB)
    assert (count(), count()) == (2, 0)
    write(tmp_path / "set/2.bmp", RGB[::-1])
    assert (count(), count()) == (2, 0)
    (tmp_path / "set/1.bmp").touch()
    assert count() == 2
    for file in (tmp_path / "cache/digests").iterdir():
        file.write_bytes(b"damaged")
    assert count() == 2


def test_overlap_is_counted_by_content(tmp_path):
    for name, image in (("a/1.png", RGB), ("a/2.png", GREY), ("b/x.png", RGB), ("b/y.png", RGB)):
        write(tmp_path / name, image)
    one, two = from_folder(tmp_path / "a"), from_folder(tmp_path / "b")
    assert (overlap(one, two), overlap(two, one)) == (1, 2)
    assert overlap(sources.from_arrays("x", RGB[None]), one) == 0
