"""The multimodal LLM: image features take their places among the text embeddings.

Shapes: B rows, T tokens, D width, K images, S image side, G grid, N rows of hidden states,
V vocabulary. "Flat" positions count over B*T.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn
from transformers import PreTrainedModel

from openqwen2vl.formats.errors import ConfigError
from openqwen2vl.model import attention as packed
from openqwen2vl.model import generation
from openqwen2vl.model.checkpointing import checkpoint_layers
from openqwen2vl.model.compiled import compile_blocks, leave_open
from openqwen2vl.model.decoding import Decoding, Sampling
from openqwen2vl.model.last_layer import KEYWORD, ReadRows
from openqwen2vl.model.llm import check_head
from openqwen2vl.model.projector import PooledProjector, ProjectorFactory
from openqwen2vl.model.vision import VisionTower


class PartSize(NamedTuple):
    """Parameters of one part: how many train, and how many there are."""

    trainable: int
    total: int


class MLLM(nn.Module):
    """Vision tower, projector and language model as one [paper 2.1].

    A frozen tower is reachable as ``vision`` but is not a registered submodule: ``parameters()``,
    ``state_dict()`` and ``modules()`` do not see it, so that FSDP does not shard it, DDP does not
    compare it, the optimizer does not list it, no checkpoint stores its 0.8 GB, and ``train()``
    leaves it in eval mode. A trainable tower is registered under the same name.

    Attributes:
        vision: the tower.
        projector: its ``grid`` decides the visual tokens of an image.
        llm: a transformers causal language model.
        attention: ``auto``, ``varlen``, ``flex`` or ``sdpa``; see ``attention.choose_backend``.
    """

    vision: VisionTower
    projector: PooledProjector
    llm: Any

    def __init__(
        self,
        vision: VisionTower,
        projector: ProjectorFactory,
        llm: PreTrainedModel,
        attention: str = "auto",
    ) -> None:
        """Join the parts.

        Args:
            vision: frozen or trainable by its own ``trainable``.
            projector: called with ``vision_width`` and ``llm_width``.
            llm: as ``load_llm`` gives it.
            attention: which attention kernel runs.

        Raises:
            ConfigError: an unknown ``attention``, or a language model whose logits are not the
                plain product of hidden states and output embedding.
        """
        super().__init__()
        check_head(llm)
        if attention not in packed.BACKENDS:
            raise ConfigError(f'attention is "{attention}"; choose one of {packed.BACKENDS}')
        if vision.trainable:
            self.vision = vision
        else:
            # Past nn.Module's own __setattr__, which would register it.
            object.__setattr__(self, "vision", vision)
        self.projector = projector(
            vision_width=vision.width, llm_width=llm.get_input_embeddings().embedding_dim
        )
        self.llm = llm
        self.attention = attention
        packed.register()
        llm.set_attn_implementation(packed.NAME)
        ReadRows(self.decoder_layers[-1])

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        images: Tensor,
        image_positions: Tensor,
        cu_seqlens: Tensor,
        max_length: int,
        grid: int,
        read_positions: Tensor | None = None,
    ) -> Tensor:
        """Hidden states of a batch of packs; every document by itself.

        Args:
            input_ids: int64 (B, T); the ids at image positions are not read.
            position_ids: int64 (B, T), from 0 in each document.
            images: uint8 (K, S, S, 3). With K = 0 the projector still takes part in backward.
            image_positions: int64 (K*G*G,), flat, in the images' order.
            cu_seqlens: int32 (segments+1,), boundaries over B*T; trailing repeats are empty.
            max_length: at least the longest segment; a constant keeps compiled code.
            grid: G the batch was made for.
            read_positions: int64 (N,), flat, each once: the only ones whose states are wanted.

        Returns:
            (B, T, D) after the decoder's final norm, or (N, D) of ``read_positions``.

        Raises:
            ValueError: the batch was made for another grid, or images and positions do not match.
        """
        self._check_batch(images, image_positions, grid)
        embeddings = self.embed(input_ids, self.image_rows(images), image_positions)
        return self.decode(embeddings, position_ids, cu_seqlens, max_length, read_positions)

    def image_rows(self, images: Tensor) -> Tensor:
        """Visual tokens of all images in order.

        Args:
            images: uint8 (K, S, S, 3).

        Returns:
            (K*G*G, D) in the dtype of the projector's weights.
        """
        rows: Tensor = self.projector(self.vision(images))
        return rows.flatten(0, 1)

    def embed(self, input_ids: Tensor, image_rows: Tensor, image_positions: Tensor) -> Tensor:
        """Text embeddings with visual tokens at their places.

        Args:
            input_ids: int64 (B, T).
            image_rows: (M, D).
            image_positions: int64 (M,), flat.

        Returns:
            (B, T, D) in the embeddings' dtype.
        """
        text: Tensor = self.llm.get_input_embeddings()(input_ids)
        flat = text.flatten(0, 1)
        return flat.index_copy(0, image_positions, image_rows.to(text.dtype)).view_as(text)

    def decode(
        self,
        embeddings: Tensor,
        position_ids: Tensor,
        cu_seqlens: Tensor,
        max_length: int,
        read_positions: Tensor | None = None,
    ) -> Tensor:
        """Hidden states of embedded packs; arguments and result as of ``forward``."""
        given = packed.layer_arguments(self.attention, embeddings, cu_seqlens, max_length)
        if read_positions is not None:
            leave_open(read_positions)
        # use_cache, whatever the config: with a cache, transformers takes a pack for one document.
        hidden: Tensor = self.llm.base_model(
            inputs_embeds=embeddings,
            position_ids=position_ids,
            use_cache=False,
            **given,
            **{KEYWORD: read_positions},
        ).last_hidden_state
        if read_positions is None:
            return hidden
        return hidden.flatten(0, 1).index_select(0, read_positions)

    def head(self, rows: Tensor) -> Tensor:
        """Logits of hidden states: (N, D) to (N, V)."""
        logits: Tensor = self.llm.get_output_embeddings()(rows)
        return logits

    @property
    def head_weight(self) -> Tensor:
        """The output embedding, (V, D); tied to the input embedding in Qwen2.5-1.5B."""
        weight: Tensor = self.llm.get_output_embeddings().weight
        return weight

    @property
    def decoder_layers(self) -> Sequence[Any]:
        """The language model's layers: the units to shard and to checkpoint."""
        layers: Sequence[Any] = self.llm.base_model.layers
        return layers

    def set_checkpointing(self, mode: str) -> None:
        """Choose what backward works out again instead of keeping it.

        Args:
            mode: as of `checkpointing.checkpoint_layers`.
        """
        checkpoint_layers(self.decoder_layers, mode)

    def compile(self, backend: str = "inductor") -> None:
        """Compile decoder layers and tower blocks in place; see `compiled.compile_blocks`.

        Args:
            backend: of ``torch.compile``.
        """
        compile_blocks(self.decoder_layers, backend)
        self.vision.compile_blocks(backend)

    def freeze(self, projector: bool, llm: bool) -> None:
        """Say which parts stand still; whether the tower does is its own constructor's word.

        Args:
            projector: true stops its training, false (re)starts it.
            llm: likewise.
        """
        self.projector.requires_grad_(not projector)
        self.llm.requires_grad_(not llm)

    def trainable_summary(self) -> dict[str, PartSize]:
        """Parameters of ``vision``, ``projector`` and ``llm``; tied weights count once."""
        parts = {"vision": self.vision, "projector": self.projector, "llm": self.llm}
        return {name: _size(part) for name, part in parts.items()}

    def weights(self) -> dict[str, Tensor]:
        """Every weight, a frozen tower's too: what a model folder holds.

        Returns:
            ``state_dict()`` and the tower's weights under ``vision.``; the tensors are not copies.
        """
        tower = {f"vision.{key}": value for key, value in self.vision.state_dict().items()}
        return tower | self.state_dict()

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        images: Tensor,
        image_id: int,
        pad_id: int,
        eos_ids: Sequence[int],
        max_new_tokens: int,
        sampling: Sampling | None = None,
    ) -> list[list[int]]:
        """Continue each prompt; see ``generation.generate`` and `Decoding`.

        Args:
            prompts: token ids with one ``image_id`` for each image.
            images: uint8 (K, S, S, 3), those of all prompts in order.
            image_id: the image mark.
            pad_id: fills short prompts.
            eos_ids: any of them ends an answer.
            max_new_tokens: of each answer.
            sampling: ``None`` is greedy.

        Returns:
            The new ids of each prompt, without the one that ended it.
        """
        decoding = Decoding(
            pad_id=pad_id,
            eos_ids=eos_ids,
            max_new_tokens=max_new_tokens,
            sampling=sampling or Sampling(),
        )
        return generation.generate(self, prompts, images, image_id, decoding)

    def option_logprobs(
        self,
        prompts: Sequence[Sequence[int]],
        options: Sequence[Sequence[Sequence[int]]],
        images: Tensor,
        image_id: int,
    ) -> list[list[float]]:
        """How likely each option is; arguments and result as of ``generation.option_logprobs``."""
        return generation.option_logprobs(self, prompts, options, images, image_id)

    def _check_batch(self, images: Tensor, image_positions: Tensor, grid: int) -> None:
        if grid != self.projector.grid:
            raise ValueError(
                f"the batch was made for grid {grid}, the projector stands at grid "
                f"{self.projector.grid}; feed packs of the projector's grid or switch it"
            )
        expected = images.shape[0] * grid * grid
        if image_positions.shape[0] != expected:
            raise ValueError(
                f"{images.shape[0]} images at grid {grid} make {expected} visual tokens, but the "
                f"batch names {image_positions.shape[0]} positions for them; it wants one for each"
            )


def _size(part: nn.Module) -> PartSize:
    counts = [(p.numel(), p.requires_grad) for p in part.parameters()]
    return PartSize(sum(n for n, trains in counts if trains), sum(n for n, _ in counts))
