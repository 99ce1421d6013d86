"""Archives that are taken apart, and those that mean harm."""

import tarfile
import zipfile

import numpy as np
import pytest
from made_archives import left_behind, make_tar, make_zip

from si_jax.data import downloads
from si_jax.data.downloads import UnsafeArchive, unpack

MAKERS = pytest.mark.parametrize("make", [make_tar, make_zip])


@MAKERS
@pytest.mark.parametrize("prefix", ["images_classic/tin/", "tin/", "", "./tin/"])
def test_a_set_lands_in_its_folder_whatever_its_paths_repeat(tmp_path, make, prefix):
    members = [(f"{prefix}val/1.png", b"one"), (f"{prefix}val/2.png", b"two")]
    archive = make(tmp_path / "archive", members)
    found = unpack(archive, tmp_path / "root", "images_classic/tin")
    assert found == tmp_path / "root/images_classic/tin"
    assert (found / "val/1.png").read_bytes() == b"one"
    assert left_behind(found.parent) == ["tin"]
    with pytest.raises(OSError, match="exists already: move it away"):
        unpack(archive, tmp_path / "root", "images_classic/tin")


@MAKERS
@pytest.mark.parametrize(
    "name", ["../out.png", "{root}/out.png", "a/../../out.png", "C:\\out.png", "a\\..\\out.png"]
)
def test_nothing_is_written_outside_the_folder(tmp_path, make, name):
    name = name.format(root=tmp_path)
    archive = make(tmp_path / "archive", [("set/1.png", b"one"), (name, b"out")])
    try:
        unpack(archive, tmp_path / "root", "set")
    except UnsafeArchive as error:
        assert "outside the destination" in str(error)
        assert left_behind(tmp_path / "root") == []
    assert left_behind(tmp_path) == ["archive", "root"]
    assert left_behind(tmp_path / "root") in ([], ["set"])


KINDS = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]


@pytest.mark.parametrize("kind", KINDS)
def test_links_and_devices_are_refused(tmp_path, kind):
    info = tarfile.TarInfo("set/link.png")
    info.type, info.linkname = kind, "/etc/passwd"
    archive = make_tar(tmp_path / "archive", [("", info)])
    with pytest.raises(UnsafeArchive, match="a link or device"):
        unpack(archive, tmp_path / "root", "set")


def test_links_in_zip_files_become_files(tmp_path):
    info = zipfile.ZipInfo("set/link.png")
    info.create_system, info.external_attr = 3, 0o120777 << 16
    found = unpack(make_zip(tmp_path / "archive", [(info, "/etc/passwd")]), tmp_path, "set")
    assert not (found / "link.png").is_symlink()
    assert (found / "link.png").read_text() == "/etc/passwd"


@MAKERS
def test_what_a_mac_adds_is_left_out(tmp_path, make):
    members = [("set/1.png", b"one"), ("set/._1.png", b"x"), ("__MACOSX/set/._1.png", b"x")]
    unpack(make(tmp_path / "archive", members), tmp_path / "root", "set")
    assert left_behind(tmp_path / "root/set") == ["1.png"]


@MAKERS
def test_bombs_are_refused(tmp_path, make, monkeypatch):
    archive = make(tmp_path / "archive", [(f"{k}.png", bytes(100_000)) for k in range(30)])
    with monkeypatch.context() as patch:
        patch.setattr(downloads.files, "LEAST_UNPACKED", 2**20)
        with pytest.raises(UnsafeArchive, match="more than is credible"):
            unpack(archive, tmp_path / "root", "set")
    with monkeypatch.context() as patch:
        patch.setattr(downloads, "MOST_FILES", 20)
        with pytest.raises(UnsafeArchive, match="more than is credible"):
            unpack(archive, tmp_path / "root", "set")
    assert left_behind(tmp_path / "root") == []
    unpack(archive, tmp_path / "root", "set")


@MAKERS
def test_damaged_archives_leave_nothing(tmp_path, make):
    rng = np.random.default_rng(0)
    whole = make(tmp_path / "whole", [(f"{k}.png", rng.bytes(500)) for k in range(5)]).read_bytes()
    for round_ in range(60):
        data = bytearray(whole[: len(whole) if round_ % 2 else rng.integers(len(whole))])
        for position in rng.integers(len(data), size=3) if data else ():
            data[position] = rng.integers(256)
        (tmp_path / "archive").write_bytes(bytes(data))
        try:
            unpack(tmp_path / "archive", tmp_path / f"root{round_}", "set")
        except ValueError as error:
            assert isinstance(error, UnsafeArchive)
            assert left_behind(tmp_path / f"root{round_}") == []


def test_no_archive_at_all(tmp_path):
    for content in (b"", b"<html>", b"nothing"):
        (tmp_path / "archive").write_bytes(content)
        with pytest.raises(UnsafeArchive, match="cannot be unpacked"):
            unpack(tmp_path / "archive", tmp_path / "root", "set")
