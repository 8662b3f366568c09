"""What to pack, for what, and where to."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from transformers import PreTrainedTokenizerFast

from openqwen2vl.formats.errors import PackError
from openqwen2vl.formats.interleaved import DEFAULT_RULES, InterleavedRules
from openqwen2vl.formats.manifest import PackSpec
from openqwen2vl.formats.templates import template
from openqwen2vl.formats.tokens import special_tokens, tokenizer_hash
from openqwen2vl.packing.bins import Limits
from openqwen2vl.packing.packers import AUTO, check_packer
from openqwen2vl.packing.plan import WHOLE, Selection

Overlong = Literal["reject", "drop_last_turns"]
OVERLONG: tuple[Overlong, Overlong] = ("reject", "drop_last_turns")
"""What can become of a conversation that outgrows the context."""


@dataclass(frozen=True, kw_only=True)
class PackRequest:
    """What to pack, for what, and where to.

    Attributes:
        input: a folder of raw shards or of parquet files, one of those, or a LLaVA ``.json`` /
            ``.jsonl``.
        out: the folder to fill; ``out/validation`` takes the validation packs.
        source: name of the corpus in mixtures and ledgers.
        spec: what the packs are made for.
        selection: which documents to cover.
        image_root: folder of the images of a listing or of tables that name them by path.
        index: the folder that keeps length indexes; None means ``.lengths`` beside ``out``.
        rules: which interleaved documents are taken.
        overlong: what becomes of conversations that outgrow the context, one of ``OVERLONG``.
        window: documents planned together, at least.
        packs_per_shard: packs in a packed shard, at most.
        packer: one of ``packers.PACKERS``.
        max_images: images in a pack, at most; None means any number.
        overwrite: whether packs that ``out`` holds may go.

    Raises:
        PackError: a number or a word that is none of these, or packs that would go into the input.
        UserError: what the packer needs is not installed.
    """

    input: Path
    out: Path
    source: str
    spec: PackSpec
    selection: Selection = WHOLE
    image_root: Path | None = None
    index: Path | None = None
    rules: InterleavedRules = DEFAULT_RULES
    overlong: Overlong = "reject"
    window: int = 50_000
    packs_per_shard: int = 512
    packer: str = AUTO
    max_images: int | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.window < 1 or self.packs_per_shard < 1:
            raise PackError(
                f"window is {self.window} and packs_per_shard {self.packs_per_shard}; "
                "both start at 1"
            )
        if self.overlong not in OVERLONG:
            raise PackError(f"overlong is '{self.overlong}'; there are {', '.join(OVERLONG)}")
        check_packer(self.packer, self.max_images)
        if self.out.resolve() == self.input.resolve():
            raise PackError(f"input and out are both {self.out}; give the packs another folder")

    @property
    def index_root(self) -> Path:
        """The folder that keeps length indexes."""
        return self.index or self.out.absolute().parent / ".lengths"

    @property
    def limits(self) -> Limits:
        """What a pack holds."""
        return Limits(self.spec.context, self.max_images)


def make_spec(
    tokenizer: PreTrainedTokenizerFast, context: int, grid: int, template_name: str
) -> PackSpec:
    """Give the spec of packs that a tokenizer and a template make."""
    return PackSpec(
        context=context,
        grid=grid,
        tokenizer_hash=tokenizer_hash(tokenizer),
        vocab_size=len(tokenizer),
        template=template_name,
        template_hash=template(template_name).hash,
        special=special_tokens(tokenizer),
    )
