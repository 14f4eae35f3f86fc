"""Other projects' module names over thaw's engine. Opt in by putting DIRECTORY on the path."""

import pathlib

#: What belongs on the path: PYTHONPATH=$(python -m thaw_vllm.shims).
DIRECTORY = str(pathlib.Path(__file__).parent)
