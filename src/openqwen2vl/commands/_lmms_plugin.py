"""Our models under lmms-eval: `python -m lmms_eval --model openqwen2vl --model_args pretrained=RUN`.

The entry point in the group `lmms_eval.models` names ``manifest``. lmms-eval calls it whichever
model it is about to run, so nothing heavy is imported here.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest

_CLASSES = "openqwen2vl.commands._lmms_eval"


def manifest() -> "ModelManifest":
    """Tell lmms-eval of both classes; it takes the one for chats unless `--force_simple` is given."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(
        model_id="openqwen2vl",
        simple_class_path=f"{_CLASSES}.OpenQwen2VL",
        chat_class_path=f"{_CLASSES}.OpenQwen2VLChat",
    )
