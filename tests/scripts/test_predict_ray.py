"""Parts are finished by several workers, one of which is killed, as by one process."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from pictures import noise, write

import si_jax
from predict_ray import PartWorker, plan, predict_with_ray

parquet = pytest.importorskip("pyarrow.parquet")
COUNT = 50


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    for index, image in enumerate(noise(COUNT, seed=1)):
        write(root / f"{index:04}.png", image)
    (root / "0025.png").write_text("no image")
    return root


def test_parts_resume_and_refuse_another_plan(energy, folder, tmp_path):
    parts = plan([folder], energy, tmp_path, part_size=15)
    assert [len(part["files"]) for part in parts] == [15, 15, 15, 5]
    assert PartWorker(str(energy)).finish(parts[1]) == {"rows": 15, "unreadable": 1}
    rows = parquet.read_table(tmp_path / "part-000001.parquet").to_pandas()
    assert rows["is_ood"][10] and "0025.png" in rows["error"][10]
    rest = plan([folder], energy, tmp_path, part_size=15)
    assert [part["out"] for part in rest] == [parts[i]["out"] for i in (0, 2, 3)]
    with pytest.raises(ValueError, match="holds predictions of other images"):
        plan([folder], energy, tmp_path, part_size=16)


def test_parquet_with_image_bytes(energy, folder, tmp_path):
    import pyarrow as pa

    files = [folder / f"{i:04}.png" for i in range(20)]
    columns = {"id": list(range(20)), "png": [file.read_bytes() for file in files]}
    parquet.write_table(pa.table(columns), tmp_path / "in.parquet", row_group_size=12)
    parts = plan([tmp_path / "in.parquet"], energy, tmp_path / "out", column="png")
    assert [part["group"] for part in parts] == [0, 1]
    worker = PartWorker(str(energy), "png")
    for part in parts:
        worker({"part": np.array([json.dumps(part)])})
    rows = parquet.read_table(tmp_path / "out").to_pandas().sort_values("id")
    expected = si_jax.load_detector(energy).score(files)
    np.testing.assert_allclose(rows["score"], expected, rtol=1e-5)
    assert "png" not in rows
    with pytest.raises(ValueError, match="no column 'image'; it has id, png"):
        plan([tmp_path / "in.parquet"], energy, tmp_path / "other")
    with pytest.raises(ValueError, match="all Parquet files or none"):
        plan([tmp_path / "in.parquet", folder], energy, tmp_path / "other")


@pytest.mark.slow
def test_two_workers_one_of_which_is_killed_are_equal_to_one_process(energy, folder, tmp_path):
    ray = pytest.importorskip("ray")

    class Killed(PartWorker):
        """Dies once, in the middle of the third part."""

        def finish(self, part):
            mark = Path(part["out"]).parent / "_killed"
            if part["out"].endswith("2.parquet") and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().finish(part)

    root = Path(si_jax.__file__).parents[1]
    environment = {"PYTHONPATH": f"{root}:{root / 'scripts'}", "JAX_PLATFORMS": "cpu"}
    ray.init(
        num_cpus=3,
        object_store_memory=80 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": environment},
    )
    try:
        out = tmp_path / "out"
        options = {"workers": 2, "part_size": 10, "worker": Killed}
        first = predict_with_ray([folder], energy, out, **options)
        assert (out / "_killed").exists()
        assert first == {"rows": COUNT, "unreadable": 1, "parts": 5, "skipped": 0}
        again = predict_with_ray([folder], energy, out, **options)
        assert again == {"rows": 0, "unreadable": 0, "parts": 0, "skipped": 5}
        rows = parquet.read_table(out).to_pandas()
    finally:
        ray.shutdown()
    rows = rows.sort_values("file").reset_index(drop=True)
    assert len(rows) == rows["file"].nunique() == COUNT
    predictor = si_jax.Predictor(energy)
    expected = predictor({"image": [str(folder / f"{i:04}.png") for i in range(COUNT)]})
    np.testing.assert_allclose(rows["score"], expected["score"], rtol=1e-5)
    np.testing.assert_array_equal(rows["class"], expected["class"])
    np.testing.assert_array_equal(rows["is_ood"], expected["is_ood"])
