"""Tests beside lmms-eval, which has an environment of its own: `make test-lmms`.

Where lmms-eval is not installed none of them is collected; pytest asked for this folder alone then
ends with code 5, so that the make target fails and nothing is skipped in silence.
"""

import importlib.util
import os
import tempfile

if importlib.util.find_spec("lmms_eval") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    # Read when its modules are imported. MathVista's judge wants a key, though nobody asks it.
    os.environ["OPENAI_API_KEY"] = "unused"
    os.environ["HF_DATASETS_OFFLINE"] = os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="lmms-hf-")
    os.environ["LOGURU_LEVEL"] = "ERROR"
