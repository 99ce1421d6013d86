"""Downloads against a server on this machine, whole benchmarks, and archives that mean harm."""

import dataclasses
import hashlib
import http.server
import io
import json
import random
import re
import shutil
import sys
import tarfile
import threading
import zipfile

import numpy as np
import pytest
from pictures import encode, tarred, write, zipped
from scipy.io import loadmat, savemat

from si_jax.commands import prepare_data as command
from si_jax.data import downloads, sources, tfds_sets, training_sets
from si_jax.data.benchmarks import resolve
from si_jax.data.datasets import DATASETS, LISTS, Tfds
from si_jax.data.downloads import FailedDownload, UnsafeArchive, fetch, unpack

BLOCK = 2**19  # gdown writes so much at a time
CONTENT = np.random.default_rng(0).bytes(4 * BLOCK)
MD5 = hashlib.md5(CONTENT).hexdigest()


def left_behind(folder):
    return sorted(file.name for file in folder.iterdir())


def archived(folder, content):
    (folder / "archive").write_bytes(content)
    return folder / "archive"


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `server.files`: path -> bytes, a status, or bytes and after how many it is cut off."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        self.server.asked.append((self.path, start))
        what = self.server.files.get(self.path, 404)
        if isinstance(what, int):
            return self.answer(what, b"no")
        content, cuts = what if isinstance(what, tuple) else (what, [])
        if start >= len(content) and start:
            return self.answer(416, b"", {"Content-Range": f"bytes */{len(content)}"})
        headers = {"Content-Type": "application/octet-stream"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        cut = cuts.pop(0) if cuts else None
        self.answer(206 if start else 200, content[start:], headers, cut)

    def answer(self, status, content, headers=None, cut=None):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[:cut])
        if cut is not None:
            self.close_connection = True

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(random, "uniform", lambda low, high: 0.0)  # gdown waits between attempts
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.asked = {"/a.bin": CONTENT}, []
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def test_what_came_is_kept_and_taken_up_by_the_same_call_and_the_next(server, tmp_path):
    server.files["/a.bin"] = (CONTENT, [BLOCK + 9, 2 * BLOCK + 9, 9, 9, 9])
    with pytest.raises(FailedDownload, match="what has come is kept, so run the same command"):
        fetch(f"{server.url}/a.bin", tmp_path / "new/a.bin", MD5)
    (part,) = (tmp_path / "new").iterdir()
    assert CONTENT.startswith(part.read_bytes()) and part.stat().st_size == 3 * BLOCK
    assert [start for _, start in server.asked] == [0, BLOCK, *[3 * BLOCK] * 3]
    assert fetch(f"{server.url}/a.bin", tmp_path / "new/a.bin", MD5) == MD5
    assert (tmp_path / "new/a.bin").read_bytes() == CONTENT
    assert server.asked[-1] == ("/a.bin", 3 * BLOCK)
    assert left_behind(tmp_path / "new") == ["a.bin"]


def test_wrong_sums_answers_that_are_no_file_nobody_and_no_gdown(server, tmp_path, monkeypatch):
    with pytest.raises(FailedDownload, match=rf"MD5 sum {MD5} where 0000 is known"):
        fetch(f"{server.url}/a.bin", tmp_path / "a.bin", "0000")
    assert left_behind(tmp_path) == []
    for answer in (404, 503):
        server.files["/a.bin"] = answer
        with pytest.raises(FailedDownload, match=f"cannot be downloaded .*{answer}"):
            fetch(f"{server.url}/a.bin", tmp_path / "a.bin")
    with pytest.raises(FailedDownload, match="cannot be downloaded"):
        fetch("http://127.0.0.1:9/a.bin", tmp_path / "a.bin")
    assert not (tmp_path / "a.bin").exists()
    monkeypatch.setitem(sys.modules, "gdown", None)
    with pytest.raises(FailedDownload, match=r'pip install "si-jax\[download\]"'):
        fetch(f"{server.url}/a.bin", tmp_path / "a.bin")


def all_files():
    files = [file for spec in DATASETS.values() for file in (spec.download, spec.openood)]
    return list(dict.fromkeys(file for file in (*files, LISTS) if file))


def test_the_table_agrees_with_itself():
    for spec in DATASETS.values():
        paths = [[s] if isinstance(s, str) else s for s in spec.sources if not isinstance(s, Tfds)]
        for file in filter(None, (spec.download, spec.openood)):
            found = any(f"{p}/".startswith(f"{file.folder}/") for group in paths for p in group)
            assert found or file is spec.openood, spec.name
            assert file.url.startswith(("http://", "https://")) and len(file.md5) in (0, 32)
        public = spec.download or spec.openood or spec.make
        assert bool(public) != bool(spec.manually), spec.name
    names = [file.name for file in all_files()]
    assert len(set(names)) == len(names)


def png(value):
    return encode(np.full((8, 8, 3), value, np.uint8))


def binary_version(name):
    """An archive of CIFAR's binary version with an image a class in each file, of its own value."""
    classes = 10 if name == "cifar10" else 100
    folder = DATASETS[name].download.folder
    files = [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]
    for file in files if classes == 10 else ["train", "test"]:
        labels = bytes([7]) if classes == 100 else b""  # the coarse one
        rows = [labels + bytes([k]) + bytes([k] * 3072) for k in range(classes)]
        yield f"{folder}/{file}.bin", b"".join(rows)
    yield f"{folder}/batches.meta.txt", b"names"


@pytest.fixture
def public(server, tmp_path, monkeypatch):
    """A small world: every set, of three images, on the server; an empty folder here."""
    monkeypatch.setattr(tfds_sets.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))

    def from_svhn_mat(path, name=None):
        """Without the process of its own, which `test_sources` sees."""
        return sources.from_arrays("svhn", np.moveaxis(loadmat(path)["X"], -1, 0))

    monkeypatch.setattr(sources, "from_svhn_mat", from_svhn_mat)
    prefixes = {"LSUN": "LSUN/test", "Imagenet": "Imagenet/test", "iSUN": "iSUN/iSUN_patches",
                "dtd": "dtd/images/banded", "images_classic/places365": "airfield"}  # fmt: skip

    def served(file):
        """The same file, small and on the server."""
        if file.folder.endswith(".mat"):
            content = io.BytesIO()
            images = np.zeros((32, 32, 3, 3), np.uint8)
            savemat(content, {"X": images, "y": np.array([[1], [2], [10]], np.uint8)})
            data = content.getvalue()
        elif name := {"cifar-10-b": "cifar10", "cifar-100-": "cifar100"}.get(file.folder[:10]):
            data = tarred(binary_version(name))
        else:
            prefix = prefixes.get(file.folder, file.folder)
            members = [(f"{prefix}/{k}.png", png(k)) for k in range(3)]
            data = tarred(members)
        server.files[f"/{file.name}"] = data
        return dataclasses.replace(
            file,
            url=f"{server.url}/{file.name}",
            images=3 if file.images else 0,
            md5=hashlib.md5(data).hexdigest() if file.md5 else "",
        )

    files = {file: served(file) for file in all_files()}
    download_set = downloads.download_set
    monkeypatch.setattr(
        downloads, "download_set", lambda file, root: download_set(files[file], root)
    )
    return tmp_path / "data"


def test_one_command_brings_a_benchmark(public, server, capsys):
    """Without TensorFlow; a set that fails keeps no other from coming, and comes the next time."""
    arguments = ["--data-dir", str(public), "--dataset"]
    good = dict(server.files)
    evil = tarred([("../../out.png", png(0))])
    bad = {"/LSUN": 404, "/dtd": b"<html>moved</html>", "/iSUN": evil, "/LSUN_resize": evil}
    server.files |= bad
    with pytest.raises(ValueError, match="has no training split here: run si-jax prepare-data"):
        training_sets.find("cifar100", public)
    with pytest.raises(ValueError, match=r"4 of 11 sets are lacking \(lsun, textures, lsun_resize"):
        command.main([*arguments, "cifar10"])
    printed = capsys.readouterr().out
    assert "404" in printed and "outside the destination" in printed and "MD5 sum" in printed
    assert sorted(f.name for f in public.parent.iterdir()) == ["data"]

    server.files |= {path: good[path] for path in bad}
    shutil.rmtree(public / "downloads")  # where the sums of what came wrongly are kept
    command.main([*arguments, "cifar10"])
    printed = capsys.readouterr().out
    states = dict(re.findall(r"^(\w+) +(there|fetched) ", printed, re.MULTILINE))
    assert {name for name, state in states.items() if state == "fetched"} == {
        *("lsun", "textures", "lsun_resize", "isun")
    }
    assert len(states) == 11
    now = f"now: si-jax evaluate --dataset cifar10 --protocol published --data-dir {public}"
    assert now in printed
    found = resolve("cifar10", data_dir=public)
    assert found.absent == () and [len(found.test), len(found.train)] == [10, 50]
    assert {len(item.images) for item in found.ood} == {3, 100}
    near = next(item.images for item in found.ood if item.name == "cifar100")
    for image_set in (found.test, near):
        for index in (0, 9):
            image, label = image_set.load(index)
            assert label == index and (image == index).all() and image.shape == (32, 32, 3)
    assert len(training_sets.find("cifar100", public).train) == 100
    assert left_behind(public / "downloads") == ["md5.json"]
    assert set(json.loads((public / "downloads/md5.json").read_text())) == {"iSUN"}

    asked = len(server.asked)
    command.main([*arguments, "cifar100"])
    assert len(server.asked) == asked and "fetched" not in capsys.readouterr().out


def test_a_set_of_another_number_of_images_is_deleted_and_recorded_sums_count(public, server):
    isun, good = DATASETS["isun"].download, server.files["/iSUN"]
    server.files["/iSUN"] = tarred([("iSUN/9.png", png(9))])
    with pytest.raises(ValueError, match="holds 1 images where 3 are known"):
        downloads.download_set(isun, public)
    assert not (public / "iSUN").exists()
    (public / "downloads/iSUN").unlink()
    server.files["/iSUN"] = good
    with pytest.raises(FailedDownload, match="MD5 sum"):
        downloads.download_set(isun, public)


def test_what_has_to_be_downloaded_manually_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        downloads, "download_set", lambda file, root: write(root / file.folder / "0.png")
    )
    with pytest.raises(ValueError, match=r"lacking \(imagenet, imagenet_train\)"):
        command.main(["--dataset", "imagenet", "--data-dir", str(tmp_path)])
    printed = capsys.readouterr().out
    assert re.search(rf"imagenet +manually .*image-net\.org.*{tmp_path}.*imagenet/val", printed)


def test_the_list_and_wrong_names(capsys):
    command.main(["--list"])
    printed = capsys.readouterr().out
    assert all(f"{file.folder}: " in printed and file.url in printed for file in all_files())
    with pytest.raises(ValueError, match="must be one of digits, cifar10"):
        command.main(["--dataset", "cifar"])
    with pytest.raises(ValueError, match="must be one of published, openood"):
        command.main(["--dataset", "cifar10", "--protocol", "other"])
    with pytest.raises(ValueError, match="--dataset says which"):
        command.main([])


MAKERS = pytest.mark.parametrize("make", [tarred, zipped])


@MAKERS
@pytest.mark.parametrize("prefix", ["images_classic/tin/", "tin/", "", "./tin/"])
def test_a_set_lands_in_its_folder_whatever_its_paths_repeat(tmp_path, make, prefix):
    members = [(f"{prefix}val/1.png", b"one"), (f"{prefix}val/2.png", b"two")]
    members += [("__MACOSX/1.png", b"x"), (f"{prefix}val/._1.png", b"x")]  # as a Mac adds them
    archive = archived(tmp_path, make(members))
    found = unpack(archive, tmp_path / "root", "images_classic/tin")
    assert found == tmp_path / "root/images_classic/tin"
    assert (found / "val/1.png").read_bytes() == b"one"
    assert left_behind(found.parent) == ["tin"] and left_behind(found / "val") == ["1.png", "2.png"]
    with pytest.raises(OSError, match="exists already: move it away"):
        unpack(archive, tmp_path / "root", "images_classic/tin")


@MAKERS
@pytest.mark.parametrize(
    "name", ["../out.png", "{root}/out.png", "a/../../out.png", "C:\\out.png", "a\\..\\out.png"]
)
def test_nothing_is_written_outside_the_folder(tmp_path, make, name):
    name = name.format(root=tmp_path)
    archive = archived(tmp_path, make([("set/1.png", b"one"), (name, b"out")]))
    try:
        unpack(archive, tmp_path / "root", "set")
    except UnsafeArchive as error:
        assert "outside the destination" in str(error)
        assert left_behind(tmp_path / "root") == []
    assert left_behind(tmp_path) == ["archive", "root"]
    assert left_behind(tmp_path / "root") in ([], ["set"])


def test_links_and_devices_are_refused_and_links_in_zip_files_become_files(tmp_path):
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
        archive = archived(tmp_path, tarred([("set/link.png", (kind,))]))
        with pytest.raises(UnsafeArchive, match="a link or device"):
            unpack(archive, tmp_path / "root", "set")
    info = zipfile.ZipInfo("set/link.png")
    info.create_system, info.external_attr = 3, 0o120777 << 16
    found = unpack(archived(tmp_path, zipped([(info, "/etc/passwd")])), tmp_path, "set")
    assert not (found / "link.png").is_symlink()
    assert (found / "link.png").read_text() == "/etc/passwd"


@MAKERS
def test_bombs_are_refused(tmp_path, make, monkeypatch):
    archive = archived(tmp_path, make([(f"{k}.png", bytes(100_000)) for k in range(30)]))
    for limit in (("files.LEAST_UNPACKED", 2**20), ("MOST_FILES", 20)):
        with monkeypatch.context() as patch:
            patch.setattr(f"si_jax.data.downloads.{limit[0]}", limit[1])
            with pytest.raises(UnsafeArchive, match="more than is credible"):
                unpack(archive, tmp_path / "root", "set")
        assert left_behind(tmp_path / "root") == []
    unpack(archive, tmp_path / "root", "set")


@MAKERS
def test_damaged_archives_leave_nothing(tmp_path, make):
    for content in (b"", b"<html>", b"nothing"):
        (tmp_path / "archive").write_bytes(content)
        with pytest.raises(UnsafeArchive, match="cannot be unpacked"):
            unpack(tmp_path / "archive", tmp_path / "root", "set")
    rng = np.random.default_rng(0)
    whole = make([(f"{k}.png", rng.bytes(500)) for k in range(5)])
    for round_ in range(24):
        data = bytearray(whole[: len(whole) if round_ % 2 else rng.integers(len(whole))])
        for position in rng.integers(len(data), size=3) if data else ():
            data[position] = rng.integers(256)
        (tmp_path / "archive").write_bytes(bytes(data))
        try:
            unpack(tmp_path / "archive", tmp_path / f"root{round_}", "set")
        except ValueError as error:
            assert isinstance(error, UnsafeArchive)
            assert left_behind(tmp_path / f"root{round_}") == []
