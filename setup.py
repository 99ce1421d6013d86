"""What setup.cfg cannot say: the bundled checkpoints travel inside the package.

An editable install leaves them where they are. With all of the package in one folder, pip puts that
folder on the path, and `import si_jax` finds it even where a checkout called si_jax lies.
"""

import sys

from setuptools import find_packages, setup

packages = find_packages(include=["si_jax*"])
package_data = {"si_jax": ["py.typed"], "si_jax.reporting": ["templates/*"]}
if "editable_wheel" in sys.argv:
    setup(packages=packages, package_dir={"": "."}, package_data=package_data)
else:
    setup(
        packages=[*packages, "si_jax.checkpoints"],
        package_dir={"si_jax.checkpoints": "checkpoints"},
        package_data=package_data | {"si_jax.checkpoints": ["**/*"]},
    )
