"""Shared by all tests: import path of the helpers, and one thread less than a small machine has trouble with."""

import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parent))
