"""What setup.cfg cannot say: the bundled checkpoints travel inside the package."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["si_jax*"]), "si_jax.checkpoints"],
    package_dir={"si_jax.checkpoints": "checkpoints"},
    package_data={
        "si_jax": ["py.typed"],
        "si_jax.reporting": ["templates/*"],
        "si_jax.checkpoints": ["**/*"],
    },
)
