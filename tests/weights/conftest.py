"""The tests here share modules that lie beside them, and networks with those of the frameworks."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.with_name("networks"))]
