import io
import json
import os
import zipfile

import numpy as np
import pytest
from PIL import Image

from si_jax.data import files, fingerprints, sources
from si_jax.data.decoding import decode
from si_jax.data.matlab import read_mat

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (6, 9), dtype=np.uint8)
RGB = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)


def encode(image, kind="PNG", **options):
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(
        file, kind, **options
    )
    return file.getvalue()


def replicate(grey):
    return np.repeat(grey[..., None], 3, axis=-1)


def palette(**options):
    return encode(Image.fromarray(RGB).quantize(16), **options)


MODES = {
    "rgb": (encode(RGB), RGB),
    "bmp": (encode(RGB, "BMP"), RGB),
    "webp": (encode(RGB, "WEBP", lossless=True), RGB),
    "grey": (encode(GREY), replicate(GREY)),
    "black and white": (
        encode(Image.fromarray(GREY > 99)),
        replicate(np.where(GREY > 99, 255, 0).astype(np.uint8)),
    ),
    "palette": (palette(), np.asarray(Image.fromarray(RGB).quantize(16).convert("RGB"))),
    "palette with transparency": (
        palette(transparency=3),
        np.asarray(Image.fromarray(RGB).quantize(16).convert("RGB")),
    ),
    "grey with alpha": (
        encode(np.stack([GREY, GREY[::-1]], axis=-1)),
        replicate(GREY),
    ),
    "rgb with alpha": (encode(np.concatenate([RGB, GREY[..., None]], axis=-1)), RGB),
    "16-bit grey": (encode(GREY.astype(np.uint16) * 256 + 77), replicate(GREY)),
    "16-bit grey with a large value": (
        encode(np.full((2, 2), 65535, np.uint16)),
        np.full((2, 2, 3), 255, np.uint8),
    ),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_becomes_rgb(mode):
    data, expected = MODES[mode]
    image = decode(data, mode)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, expected)


def test_cmyk_jpeg_becomes_rgb():
    inks = np.zeros((16, 16, 4), np.uint8)
    inks[..., 0] = 255  # cyan alone: red is gone, green and blue stay
    image = decode(encode(Image.fromarray(inks, "CMYK"), "JPEG"), "cmyk.jpg")
    assert image.shape == (16, 16, 3)
    np.testing.assert_allclose(image[8, 8], (0, 255, 255), atol=6)


def test_a_phones_picture_pair_gives_the_first():
    pair = encode(
        Image.fromarray(np.full((16, 16, 3), 90, np.uint8)),
        "MPO",
        save_all=True,
        append_images=[Image.fromarray(RGB)],
    )
    np.testing.assert_allclose(decode(pair, "pair.jpg"), np.full((16, 16, 3), 90), atol=2)


def test_contents_count_and_not_the_ending():
    np.testing.assert_array_equal(decode(encode(RGB), "really_a_png.JPEG"), RGB)


NOISE = encode(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8), "JPEG")
DAMAGED = {
    "empty": (b"", "the file is empty"),
    "text": (b"<html>404 not found</html>", "not a JPEG, PNG, WebP, BMP, GIF, .* or ICO image"),
    "truncated jpeg": (NOISE[: len(NOISE) // 2], "truncated"),
    "truncated png": (encode(RGB)[:-40], ""),
    "truncated bmp": (encode(RGB, "BMP")[:-30], "truncated"),
    "truncated webp": (encode(RGB, "WEBP", lossless=True)[:-20], ""),
    "jpeg header only": (NOISE[:30], ""),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damage_is_told_with_the_name(kind):
    data, reason = DAMAGED[kind]
    with pytest.raises(sources.UnreadableImage, match=rf"some/file\.x can't be decoded.*{reason}"):
        decode(data, "some/file.x")


def test_damaged_pixels_of_a_png_are_noticed():
    data = bytearray(encode(RGB))
    data[data.index(b"IDAT") + 20] ^= 0xFF
    with pytest.raises(sources.UnreadableImage):
        decode(bytes(data), "flipped.png")


# --- folders ------------------------------------------------------------------------------


def write(path, image=RGB):
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = {".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP"}
    path.write_bytes(encode(image, kind.get(path.suffix.lower(), "PNG")))


def idents(image_set):
    return [image_set.ident(index) for index in range(len(image_set))]


def labels(image_set):
    return [image_set.load(index)[1] for index in range(len(image_set))]


def test_flat_folder(tmp_path):
    for name in ("b.PNG", "a.jpg", "c.JpEg", "d.webp", "e.BMP"):
        write(tmp_path / name)
    for name in (".DS_Store", "._a.jpg", ".hidden/x.png"):
        write(tmp_path / name)
    (tmp_path / "readme.txt").write_text("PNG files by name")
    found = sources.from_folder(tmp_path)
    assert found.name == tmp_path.name
    assert idents(found) == ["a.jpg", "b.PNG", "c.JpEg", "d.webp", "e.BMP"]
    assert labels(found) == [-1] * 5
    assert found.load(0)[0].shape == (6, 9, 3)
    assert found.notes == (
        "1 file is left out, being no image in a format that is read (readme.txt)",
    )


KINDS = {".jfif": "JPEG", ".gif": "GIF", ".tif": "TIFF", ".TIFF": "TIFF", ".ppm": "PPM",
         ".pgm": "PPM", ".jp2": "JPEG2000", ".ico": "ICO", ".webp": "WEBP"}  # fmt: skip


def test_every_format_is_read_by_its_ending_or_its_content(tmp_path):
    for ending, kind in KINDS.items():
        (tmp_path / f"by_ending{ending}").write_bytes(encode(RGB, kind))
        if kind != "ICO":  # whose beginning other kinds of file share
            (tmp_path / f"content_{ending[1:]}").write_bytes(encode(RGB, kind))
    (tmp_path / "notes").write_text("BMW, P5 and GIF")
    found = sources.from_folder(tmp_path)
    assert len(found) == 2 * len(KINDS) - 1
    assert found.notes[0].startswith("1 file is left out") and "(notes)" in found.notes[0]
    for index in range(len(found)):
        image, _ = found.load(index)
        if not found.ident(index).endswith((".ico", "gif", ".jfif", "jfif")):
            np.testing.assert_array_equal(image.shape, RGB.shape, found.ident(index))


def test_floating_point_images_are_refused():
    values = Image.fromarray(np.full((4, 4), 0.5, np.float32))
    with pytest.raises(sources.UnreadableImage, match="floating-point numbers"):
        decode(encode(values, "TIFF"), "depth.tif")


def test_enormous_images_are_refused_before_they_are_decoded():
    data = encode(Image.new("1", (8000, 8000)))
    assert len(data) < 20_000
    with pytest.raises(sources.UnreadableImage, match="8000x8000 pixels are over 50 million"):
        decode(data, "bomb.png")


def test_folder_by_class_at_any_depth(tmp_path):
    for name in ("cat/deep/er/2.png", "cat/1.png", "ant/3.png", "stray.png"):
        write(tmp_path / name)
    (tmp_path / "aardvark").mkdir()  # no images, so no class
    found = sources.from_folder(tmp_path, name="pets", num_classes=2)
    assert found.name == "pets"
    assert idents(found) == ["ant/3.png", "cat/1.png", "cat/deep/er/2.png", "stray.png"]
    assert labels(found) == [0, 1, 1, -1]


def test_folder_labels_from_json(tmp_path):
    root = tmp_path / "sample"
    for name in ("n02/x.png", "n01/x.png"):
        write(root / name)
    table = tmp_path / "sample.wnid_to_index.json"
    table.write_text(json.dumps({"n01": 7, "n02": 3, "n03": 9}))
    assert labels(sources.from_folder(root, wnid_to_index=table)) == [7, 3]
    assert labels(sources.from_path(root, num_classes=1000)) == [7, 3]  # found beside the folder
    table.write_text(json.dumps({"n01": 7}))
    with pytest.raises(ValueError, match=r"class folder 'n02' \(1 such\)"):
        sources.from_path(root)
    table.write_text(json.dumps(["n01"]))
    with pytest.raises(ValueError, match="must map folder names to integer labels"):
        sources.from_path(root)
    table.write_text("{")
    with pytest.raises(ValueError, match="can't be read as JSON"):
        sources.from_path(root)


def test_folder_with_another_number_of_classes(tmp_path):
    write(tmp_path / "n01/x.png")
    with pytest.raises(ValueError, match="has 1 class folders where the classifier has 1000"):
        sources.from_folder(tmp_path, num_classes=1000)


@pytest.mark.parametrize("make", [sources.from_folder, sources.from_path])
def test_missing_and_empty_folders(tmp_path, make):
    with pytest.raises(sources.MissingSet, match="absent is not a folder"):
        make(tmp_path / "absent")
    (tmp_path / "empty" / "classless").mkdir(parents=True)
    (tmp_path / "empty" / ".DS_Store").write_bytes(b"x")
    with pytest.raises(sources.MissingSet, match="empty holds no images"):
        make(tmp_path / "empty")


def test_folder_links(tmp_path):
    write(tmp_path / "set/a/1.png")
    os.symlink(tmp_path / "set", tmp_path / "set/a/round")  # would never end
    write(tmp_path / "elsewhere/2.png")
    os.symlink(tmp_path / "elsewhere", tmp_path / "set/b")
    os.symlink(tmp_path / "nowhere.png", tmp_path / "set/b.png")
    found = sources.from_folder(tmp_path / "set")
    assert idents(found) == ["a/1.png", "b.png", "b/2.png"]
    with pytest.raises(sources.UnreadableImage, match=r"set/b\.png can't be read"):
        found.load(1)


def test_folders_that_link_to_each_other_are_read_once(tmp_path):
    for name in ("a/1.png", "b/2.png", "c/3.png"):
        write(tmp_path / "set" / name)
    for one in "abc":
        for two in "abc":
            os.symlink(tmp_path / "set" / two, tmp_path / "set" / one / f"to_{two}")
    os.symlink(tmp_path / "set/a", tmp_path / "set/0_link_sorted_first")
    os.symlink(tmp_path, tmp_path / "set/b/up")
    assert idents(sources.from_folder(tmp_path / "set")) == ["a/1.png", "b/2.png", "c/3.png"]


def test_pipes_and_devices_are_not_waited_for(tmp_path):
    write(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.png")
    os.mkfifo(tmp_path / "unnamed")
    os.symlink("/dev/zero", tmp_path / "c.png")
    found = sources.from_folder(tmp_path)
    assert len(found.fingerprint) == 64
    assert idents(found) == ["a.png", "b.png", "c.png"]
    for index in (1, 2):
        with pytest.raises(sources.UnreadableImage, match=r"can't be read \(it is no regular file"):
            found.load(index)


def test_unreadable_file_of_a_folder_is_named(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(NOISE[:100])
    with pytest.raises(sources.UnreadableImage, match=r"broken\.jpg can't be decoded"):
        sources.from_folder(tmp_path).load(0)


def test_folder_fingerprint(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for root in (one, two):
        write(root / "a/1.png")
        write(root / "b/2.png", GREY)
    first = sources.from_folder(one).fingerprint
    assert first == sources.from_folder(two, name="other").fingerprint  # the place doesn't matter
    assert len(first) == 64
    write(two / "b/2.png")
    resized = sources.from_folder(two).fingerprint
    (one / "b").rename(one / "c")
    renamed = sources.from_folder(one).fingerprint
    assert len({first, resized, renamed}) == 3


def test_folder_fingerprint_notices_content_of_the_same_size(tmp_path):
    write(tmp_path / "1.bmp", RGB)
    write(tmp_path / "2.bmp", GREY)
    status = (tmp_path / "1.bmp").stat()
    first = sources.from_folder(tmp_path)
    part = sources.take(first, [1])
    fingerprints_before = (first.fingerprint, part.fingerprint)
    write(tmp_path / "1.bmp", RGB[::-1])
    os.utime(tmp_path / "1.bmp", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (tmp_path / "1.bmp").stat().st_size == status.st_size
    again = sources.from_folder(tmp_path)
    part_again = sources.take(again, [1])  # which is as it was
    assert fingerprints_before[0] != again.fingerprint
    assert fingerprints_before[1] == part_again.fingerprint


def test_digests_are_kept_until_a_file_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("SI_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fingerprints, "WORTH_CACHING", 1)
    monkeypatch.setattr(fingerprints, "_SETTLED", 0)
    hashed = []
    read = fingerprints.files.read_bytes
    monkeypatch.setattr(
        fingerprints.files, "read_bytes", lambda path, *a: hashed.append(str(path)) or read(path)
    )

    def count():
        hashed.clear()
        sources.from_folder(tmp_path / "set").fingerprint  # noqa: B018
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
    one, two = sources.from_folder(tmp_path / "a"), sources.from_folder(tmp_path / "b")
    assert (sources.overlap(one, two), sources.overlap(two, one)) == (1, 2)
    assert sources.overlap(sources.from_arrays("x", RGB[None]), one) == 0


def test_lists_of_files(tmp_path):
    for name in ("a b.png", "sub/c.png", "d.png"):
        write(tmp_path / name)
    (tmp_path / "mine.txt").write_text("sub/c.png 2\r\na b.png\n\nd.png -1\nd.png 0\n")
    found = sources.from_path(tmp_path / "mine.txt")
    assert found.name == "mine"
    assert idents(found) == ["sub/c.png", "a b.png", "d.png", "d.png"]
    assert labels(found) == [2, -1, -1, 0]
    (tmp_path / "bad.txt").write_text("sub/c.png 2\nlost.png 1\n")
    with pytest.raises(sources.MissingSet, match=r"lists 2 images, 1 of which .*as lost\.png"):
        sources.from_path(tmp_path / "bad.txt")
    with pytest.raises(sources.MissingSet, match=r"absent\.txt is not a file"):
        sources.from_path(tmp_path / "absent.txt")
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(sources.MissingSet, match="lists no images"):
        sources.from_path(tmp_path / "empty.txt")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="can't be read as a list"):
        sources.from_path(tmp_path / "binary.txt")


# --- arrays -------------------------------------------------------------------------------


def test_arrays():
    images = RNG.integers(0, 256, (4, 5, 6, 3), dtype=np.uint8)
    found = sources.from_arrays("mine", images, np.array([3, 1, 2, 0]))
    image, label = found.load(2)
    np.testing.assert_array_equal(image, images[2])
    assert (len(found), label, found.ident(2)) == (4, 2, "mine[2]")
    with pytest.raises(IndexError, match=r"index \(=4\)"):
        found.load(4)
    with pytest.raises(IndexError, match=r"index \(=-1\)"):
        found.ident(-1)
    assert labels(sources.from_arrays("mine", images)) == [-1] * 4


@pytest.mark.parametrize("shape", [(2, 5, 6), (2, 5, 6, 1)])
def test_grey_arrays(shape):
    images = RNG.integers(0, 256, shape, dtype=np.uint8)
    image, _ = sources.from_arrays("grey", images).load(1)
    np.testing.assert_array_equal(image, replicate(images[1].reshape(5, 6)))


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 4, 4, 3)), None, "not float64 of shape"),
        (np.zeros((2, 4, 4, 4), np.uint8), None, r"shape \(2, 4, 4, 4\)"),
        (np.zeros((0, 4, 4, 3), np.uint8), None, "holds no images"),
        (np.zeros((2, 4, 4, 3), np.uint8), np.zeros(3, int), r"labels of x .*shape \(2,\)"),
        (np.zeros((2, 4, 4, 3), np.uint8), np.zeros(2), "labels of x must be integers"),
    ],
)
def test_wrong_arrays(images, labels, message):
    with pytest.raises(ValueError, match=message):
        sources.from_arrays("x", images, labels)


def test_array_fingerprint_is_of_the_content():
    images = RNG.integers(0, 256, (4, 5, 6, 3), dtype=np.uint8)
    first = sources.from_arrays("a", images).fingerprint
    assert first == sources.from_arrays("b", images.copy()).fingerprint
    assert first != sources.from_arrays("a", images, np.zeros(4, int)).fingerprint
    assert first != sources.from_arrays("a", images[::-1]).fingerprint


def test_npz(tmp_path):
    images = RNG.integers(0, 256, (4, 5, 6, 3), dtype=np.uint8)
    np.savez_compressed(tmp_path / "set.npz", images=images, labels=np.arange(4))
    found = sources.from_path(tmp_path / "set.npz")
    assert found.name == "set"
    assert labels(found) == [0, 1, 2, 3]
    np.testing.assert_array_equal(found.load(3)[0], images[3])

    np.savez(tmp_path / "other.npz", pictures=images)
    with pytest.raises(ValueError, match="no array called 'images'"):
        sources.from_npz(tmp_path / "other.npz")
    np.savez(tmp_path / "pickled.npz", images=np.array([{}], object))
    with pytest.raises(ValueError, match=r"pickled\.npz can't be read"):
        sources.from_npz(tmp_path / "pickled.npz")
    whole = (tmp_path / "set.npz").read_bytes()
    for content in (b"", b"not a zip", whole[: len(whole) // 2]):
        (tmp_path / "bad.npz").write_bytes(content)
        with pytest.raises(ValueError, match=r"bad\.npz can't be read"):
            sources.from_npz(tmp_path / "bad.npz")
    with pytest.raises(sources.MissingSet, match=r"absent\.npz is not a file"):
        sources.from_path(tmp_path / "absent.npz")


def npz_member(shape, content=b""):
    """A `.npy` that claims a shape, whatever it holds."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )
    return file.getvalue() + content


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (npz_member((10**12, 32, 32, 3), bytes(100)), "which it has not the bytes for"),
        (npz_member((-2, -50), bytes(100)), "which it has not the bytes for"),
        (b"\x93NUMPY\x09\x00" + bytes(100), "version"),
        (b"\x93NUMPY\x01\x00\x10\x00{'descr': (((((( ", ""),
    ],
)
def test_npz_with_an_altered_header(tmp_path, member, reason):
    with zipfile.ZipFile(tmp_path / "set.npz", "w") as archive:
        archive.writestr("images.npy", member)
    with pytest.raises(ValueError, match=rf"set\.npz can't be read.*{reason}.*write it anew"):
        sources.from_npz(tmp_path / "set.npz")


def test_npz_that_unpacks_beyond_its_size_is_refused_before_memory_is_taken(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "set.npz", images=np.zeros((3000, 32, 32, 3), np.uint8))
    assert len(sources.from_npz(tmp_path / "set.npz")) == 3000
    monkeypatch.setattr(files, "LEAST_UNPACKED", 2**20)
    with pytest.raises(ValueError, match="GiB of arrays, more than is credible"):
        sources.from_npz(tmp_path / "set.npz")


def test_npz_damaged_anywhere_ends_in_a_sentence(tmp_path):
    np.savez_compressed(tmp_path / "whole.npz", images=np.zeros((4, 8, 8, 3), np.uint8))
    whole = (tmp_path / "whole.npz").read_bytes()
    rng = np.random.default_rng(0)
    told = 0
    for _ in range(300):
        data = bytearray(whole)
        for position in rng.integers(len(data), size=3):
            data[position] = rng.integers(256)
        (tmp_path / "bad.npz").write_bytes(bytes(data))
        try:
            sources.from_npz(tmp_path / "bad.npz")
        except ValueError:
            told += 1
    assert told > 200


def test_svhn_mat(tmp_path):
    from scipy.io import savemat

    images = RNG.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    digits = np.array([[10], [1], [9]], np.uint8)
    savemat(tmp_path / "test_32x32.mat", {"X": images.transpose(1, 2, 3, 0), "y": digits})
    found = sources.from_path(tmp_path / "test_32x32.mat")
    assert labels(found) == [0, 1, 9]
    np.testing.assert_array_equal(found.load(1)[0], images[1])
    (tmp_path / "bad.mat").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="isn't one of SVHN's"):
        sources.from_path(tmp_path / "bad.mat")


@pytest.mark.parametrize("compressed", [False, True])
def test_mat_files_are_read_as_scipy_reads_them(tmp_path, compressed):
    from scipy.io import loadmat, savemat

    content = {
        "X": RNG.integers(0, 256, (3, 4, 5), dtype=np.uint8),
        "text": "passed over",
        "a_rather_long_name": RNG.standard_normal((2, 3)),
        "y": np.array([[7]], np.int16),
    }
    savemat(tmp_path / "x.mat", content, do_compression=compressed)
    expected = loadmat(tmp_path / "x.mat")
    read = read_mat((tmp_path / "x.mat").read_bytes(), ("X", "a_rather_long_name", "y", "absent"))
    assert set(read) == {"X", "a_rather_long_name", "y"}
    for name, array in read.items():
        np.testing.assert_array_equal(array, expected[name])
    with pytest.raises(ValueError, match="text is no array of real numbers"):
        read_mat((tmp_path / "x.mat").read_bytes(), ("text",))


@pytest.mark.parametrize("compressed", [False, True])
def test_damaged_mat_files_end_in_a_sentence(tmp_path, compressed):
    from scipy.io import savemat

    images = RNG.integers(0, 256, (8, 8, 3, 2), dtype=np.uint8)
    savemat(tmp_path / "x.mat", {"X": images, "y": [[1], [2]]}, do_compression=compressed)
    whole = (tmp_path / "x.mat").read_bytes()
    rng = np.random.default_rng(0)
    for round_ in range(400):
        data = bytearray(whole[: len(whole) if round_ % 2 else rng.integers(len(whole))])
        for position in rng.integers(len(data), size=min(4, len(data))):
            data[position] = rng.integers(256)
        (tmp_path / "bad.mat").write_bytes(bytes(data))
        try:
            sources.from_svhn_mat(tmp_path / "bad.mat")
        except ValueError as error:
            assert "bad" in str(error)


# --- subsets ------------------------------------------------------------------------------


def test_subset_is_seeded_and_in_order():
    whole = sources.from_arrays("x", RNG.integers(0, 256, (50, 2, 2, 3), dtype=np.uint8))
    part = sources.subset(whole, 10, seed=1)
    names = idents(part)
    positions = [int(name[2:-1]) for name in names]
    assert positions == sorted(set(positions))
    assert len(part) == 10
    np.testing.assert_array_equal(part.load(4)[0], whole.load(positions[4])[0])
    again, other = sources.subset(whole, 10, seed=1), sources.subset(whole, 10, seed=2)
    assert (idents(again), again.fingerprint) == (names, part.fingerprint)
    assert idents(other) != names
    assert len({whole.fingerprint, part.fingerprint, other.fingerprint}) == 3
    assert sources.subset(whole, None) is whole
    assert sources.subset(whole, 50) is whole
    with pytest.raises(ValueError, match=r"limit \(=0\)"):
        sources.subset(whole, 0)
    with pytest.raises(ValueError, match="between 0 and 49"):
        sources.take(whole, [3, 50])
