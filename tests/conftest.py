"""Run-time checks of the annotated shapes, two fake devices, and small networks to test with."""

import dataclasses
import functools
import gc
import os

from jaxlib.version import __version_info__ as jaxlib_version

# Two devices; and programs that compile faster, as most tests run theirs once. XLA stops at a flag
# that it does not know, and the older emitters may go.
os.environ["XLA_FLAGS"] = " ".join(
    [
        "--xla_force_host_platform_device_count=2",
        "--xla_backend_optimization_level=0",
        "--xla_cpu_parallel_codegen_split_count=1",
        "--xla_cpu_use_fusion_emitters=false" if jaxlib_version < (0, 11) else "",
        os.environ.get("XLA_FLAGS", ""),
    ]
).strip()

os.environ["KERAS_BACKEND"] = "jax"

import sys
import tempfile
from pathlib import Path

if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # programs are shared by all processes of a run
    COMPILED = tempfile.TemporaryDirectory(prefix="si_jax_compiled_", ignore_cleanup_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILED.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

import jax
import jaxtyping
import pytest
from jaxtyping import install_import_hook

ROOT = Path(__file__).parents[1]
os.environ["SI_JAX_DATA"] = os.path.join(tempfile.gettempdir(), "si_jax_has_no_data_here")
os.environ["SI_JAX_CACHE"] = tempfile.mkdtemp(prefix="si_jax_cache_")

# not what is called for each equation of a network: the tests would take a third longer
SHAPED = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "si_jax").rglob("[!_]*.py")
    if ("jaxtyping" in path.read_text() or path.parent.name == "models")
    and path.stem not in ("activation", "support")
]
hook = install_import_hook([*SHAPED, "si_jax.detectors.si_c"], "beartype.beartype")

import si_jax  # noqa: E402
from si_jax.data.benchmarks import BENCHMARKS  # noqa: E402
from si_jax.data.datasets import DATASETS  # noqa: E402
from si_jax.detectors import DETECTORS  # noqa: E402
from si_jax.evaluation.metrics import METRICS  # noqa: E402
from si_jax.models import ARCHITECTURES  # noqa: E402
from si_jax.networks.framework import REGISTERED  # noqa: E402
from si_jax.testing import small_model  # noqa: E402

for made in DATASETS.values():  # the digits and what is drawn beside them, once for all tests
    if made.make is not None:
        object.__setattr__(made, "make", functools.cache(made.make))

gc.freeze()  # what is imported is no garbage, and is not searched for any

TABLES = (ARCHITECTURES, BENCHMARKS, DETECTORS, METRICS, REGISTERED)
TESTS = ROOT / "tests"
sys.path[:0] = [str(TESTS / name) for name in ("", "golden", "networks", "weights")]
sys.path.append(str(ROOT / "scripts"))

from pictures import noise  # noqa: E402


def pytest_configure(config):
    config.option.loadscopereorder = False  # files start in the order of their tests


def pytest_collection_modifyitems(items):
    """What takes long begins first, so that no process ends long after the others."""
    items.sort(key=lambda item: "slow" not in item.keywords)


@pytest.fixture
def unchecked():
    """Without the shape checks, which come before a function's own and are not there for users."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def quick_to_compile():
    """Compile with little optimisation, which most of the time of many programs would go into."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def debug_nans():
    """What computes NaN is an error, in every program."""
    with jax.debug_nans(True):
        yield


@pytest.fixture
def strict_promotion():
    """Arrays of different ranks or dtypes may not meet."""
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def one_device(monkeypatch):
    """Batches go to one device and are not split."""
    devices = jax.local_devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)


@pytest.fixture
def no_pictures(monkeypatch):
    """Evaluations without intervals and without a page, which take most of a small one's time."""
    monkeypatch.setattr("si_jax.evaluation.results.intervals", lambda job, arrays: {})
    page = "si_jax.reporting.html.write"
    monkeypatch.setattr(page, lambda run, directory: directory / "report.html")


@pytest.fixture(autouse=True)
def tables_as_they_were():
    """What a test or an example adds to a table is gone after it."""
    kept = [dict(table) for table in TABLES]
    yield
    for table, content in zip(TABLES, kept, strict=True):
        table.clear()
        table.update(content)


@pytest.fixture(scope="session")
def with_variables():
    """(model, variables) -> a copy of the model with weights that no model would take."""

    def copy(model, variables):
        copied = dataclasses.replace(model)
        object.__setattr__(copied, "variables", variables)
        return copied

    return copy


@pytest.fixture(scope="session")
def digits_model():
    return si_jax.load_model("digits")


@pytest.fixture(scope="session")
def small():
    """A network of four classes on 8x8 images that is quick to trace and to compile."""
    return small_model()


@pytest.fixture(scope="session")
def tiny():
    """A small ResNet on 8x8 images."""
    return si_jax.build_model(
        "resnet8", 5, seed=3, input_size=(8, 8), widths=(4, 6, 8), blocks=(1, 2, 1)
    )


@pytest.fixture(scope="session")
def tiny_images():
    """Thirteen uint8 images for `tiny`."""
    return noise(13)


@pytest.fixture(scope="session")
def energy(tiny, tmp_path_factory):
    """Folder of a saved detector for `tiny`, calibrated on sixty images of noise."""
    detector = si_jax.make_detector("energy", tiny, batch_size=8)
    detector.calibrate(noise(60, seed=3), keep_images=5)
    return detector.save(tmp_path_factory.mktemp("saved") / "energy")
