"""Interleaved documents: web pages of texts and images in order, in the three layouts in use."""

from dataclasses import dataclass
from typing import Any, Literal

from openqwen2vl.formats.documents import IMAGE, ImageMark, Part, Turn
from openqwen2vl.formats.errors import ConfigError
from openqwen2vl.formats.rejects import Unusable

_TRAILING = ("keep", "drop", "reject")
_SIDES = ("before", "after")


@dataclass(frozen=True, kw_only=True)
class InterleavedRules:
    """Which interleaved documents are taken; one that breaks a rule is a ``Reject``.

    The counts are the paper's: its packer leaves out documents without images and those with ten
    and more. It also drops the images at a document's end and then miscounts what is left; here
    they stay, unless ``drop`` asks for the same without the miscount.

    Attributes:
        min_images: fewest images of a document.
        max_images: most images of a document.
        trailing_images: what happens to images that no text follows: ``keep`` them, ``drop`` them
            (nothing is learnt from them), or ``reject`` the document.
        mmc4_images: where an image of an MMC4 document stands: ``before`` or ``after`` the text
            that it was matched with.

    Raises:
        ConfigError: a range that is empty or a word that is not one of those.
    """

    min_images: int = 1
    max_images: int = 9
    trailing_images: Literal["keep", "drop", "reject"] = "keep"
    mmc4_images: Literal["before", "after"] = "before"

    def __post_init__(self) -> None:
        if not 0 <= self.min_images <= self.max_images:
            raise ConfigError(
                f"min_images is {self.min_images} and max_images {self.max_images}; "
                "expected 0 <= min_images <= max_images"
            )
        if self.trailing_images not in _TRAILING:
            raise ConfigError(
                f"trailing_images is '{self.trailing_images}'; there are {', '.join(_TRAILING)}"
            )
        if self.mmc4_images not in _SIDES:
            raise ConfigError(f"mmc4_images is '{self.mmc4_images}'; there are {', '.join(_SIDES)}")


DEFAULT_RULES = InterleavedRules()


@dataclass(frozen=True)
class Interleaved:
    """A document's one turn, and which of the sample's images stands at each of its marks."""

    turn: Turn
    images: tuple[int, ...]


def is_interleaved(fields: dict[str, Any]) -> bool:
    """Whether a sample's JSON holds an interleaved document in one of the three layouts."""
    return (
        "parts" in fields
        or isinstance(fields.get("content"), list)
        or "text_list" in fields
        or ("texts" in fields and ("images" in fields or "image_info" in fields))
    )


def parse_interleaved(
    fields: dict[str, Any], num_images: int, rules: InterleavedRules = DEFAULT_RULES
) -> Interleaved:
    """Read an interleaved document.

    A list of typed parts (``parts`` or ``content``) says it directly. OBELICS has parallel lists
    ``texts`` and ``images`` (or ``image_info``) with a null where the other has something. MMC4 has
    ``text_list`` and ``image_info`` with a ``matched_text_index`` each; sentences between images
    are joined by a space. Texts of white space alone count as none.

    Args:
        fields: a sample's JSON.
        num_images: how many images come with the sample; they are those that the JSON lists, in
            that order.
        rules: which documents are taken.

    Raises:
        Unusable: with the reason, when the JSON cannot be read, the images are not as many as it
            lists, nothing is said, or a rule is broken.
    """
    if "text_list" in fields:
        parts, order = _mmc4(fields, rules)
    elif "parts" in fields or "content" in fields:
        parts = _typed(fields.get("parts", fields.get("content")))
        order = list(range(_count(parts)))
    else:
        parts = _parallel(fields["texts"], fields.get("images", fields.get("image_info")))
        order = list(range(_count(parts)))
    if len(order) != num_images:
        raise Unusable("image_count", f"{len(order)} images in the JSON, {num_images} with it")
    if not any(isinstance(part, str) for part in parts):
        raise Unusable("missing_text", f"{num_images} images and no text")
    parts = _without_trailing(parts, rules)
    kept = _count(parts)
    if not rules.min_images <= kept <= rules.max_images:
        raise Unusable(
            "image_count",
            f"{kept} images, the rules ask for {rules.min_images} to {rules.max_images}",
        )
    return Interleaved(Turn("interleaved", tuple(parts)), tuple(order[:kept]))


def _count(parts: list[Part]) -> int:
    return sum(isinstance(part, ImageMark) for part in parts)


def _without_trailing(parts: list[Part], rules: InterleavedRules) -> list[Part]:
    """Apply the rule for images at the end; marks are in order, so those dropped are the last."""
    end = len(parts)
    while end and isinstance(parts[end - 1], ImageMark):
        end -= 1
    trailing = len(parts) - end
    if trailing and rules.trailing_images == "reject":
        raise Unusable("trailing_images", f"no text follows the last {trailing} images")
    return parts[:end] if rules.trailing_images == "drop" else parts


def _typed(raw: Any) -> list[Part]:
    """Read a list of parts that each name their type."""
    if not isinstance(raw, list):
        raise Unusable("bad_interleaved", f"the parts are {type(raw).__name__}, not a list")
    parts: list[Part] = []
    for item in raw:
        kind = item.get("type") if isinstance(item, dict) else None
        if kind in ("image", "image_url"):
            parts.append(IMAGE)
        elif kind == "text":
            parts += _said(item.get("text"))
        else:
            raise Unusable("bad_interleaved", f"a part is {kind!r}, not text or image")
    return parts


def _parallel(texts: Any, images: Any) -> list[Part]:
    """Read OBELICS' two lists, of which just one has something at each place."""
    if not isinstance(texts, list) or not isinstance(images, list) or len(texts) != len(images):
        raise Unusable("bad_interleaved", "texts and images are not two lists of one length")
    parts: list[Part] = []
    for place, (text, image) in enumerate(zip(texts, images, strict=True)):
        if (text is None) == (image is None):
            found = "neither a text nor" if text is None else "both a text and"
            raise Unusable("bad_interleaved", f"place {place} has {found} an image")
        parts += [IMAGE] if text is None else _said(text)
    return parts


def _mmc4(fields: dict[str, Any], rules: InterleavedRules) -> tuple[list[Part], list[int]]:
    """Put each image beside the sentence that it was matched with, in the order of the list."""
    texts, infos = fields["text_list"], fields.get("image_info")
    if not isinstance(texts, list) or not isinstance(infos, list):
        raise Unusable("bad_interleaved", "text_list and image_info are not both lists")
    beside: list[list[int]] = [[] for _ in texts]
    for number, info in enumerate(infos):
        index = info.get("matched_text_index") if isinstance(info, dict) else None
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < len(texts):
            raise Unusable(
                "bad_interleaved",
                f"image {number} is matched with text {index!r} of {len(texts)}",
            )
        beside[index].append(number)
    parts: list[Part] = []
    for text, numbers in zip(texts, beside, strict=True):
        marks: list[Part] = [IMAGE] * len(numbers)
        said = _said(text)
        for part in [*marks, *said] if rules.mmc4_images == "before" else [*said, *marks]:
            if isinstance(part, str) and parts and isinstance(parts[-1], str):
                parts[-1] = f"{parts[-1]} {part}"
            else:
                parts.append(part)
    return parts, [number for numbers in beside for number in numbers]


def _said(text: Any) -> list[Part]:
    if not isinstance(text, str):
        raise Unusable("bad_interleaved", f"a text is {type(text).__name__}")
    return [text] if text.strip() else []
