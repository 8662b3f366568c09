"""Token ids: the six special tokens, text that can never turn into one, and small trained tokenizers."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakKeyDictionary

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from openqwen2vl.formats.errors import UserError

IGNORE_INDEX = -100
"""A label that asks for nothing; torch's cross-entropy leaves it out."""

_BOS, _EOS, _PAD = "<s>", "<|im_end|>", "<|endoftext|>"
_IMAGE, _IM_START = "<|image_pad|>", "<|im_start|>"
_SPECIAL = (_PAD, _IM_START, _EOS, _IMAGE, _BOS)
# The released weights were trained with this token in front of <s>: it must stand there for <s>
# to get the row (151666 in Qwen2.5) that those weights learnt. Only their layout of interleaved
# documents holds it.
_END_OF_CHUNK = "<|endofchunk|>"
_NUM_BYTES = 256

_text_encoders: WeakKeyDictionary[PreTrainedTokenizerFast, Tokenizer] = WeakKeyDictionary()


@dataclass(frozen=True)
class SpecialTokens:
    """The ids that shape a document; text never holds one of them.

    Attributes:
        bos: ``<s>``, opens a caption.
        eos: ``<|im_end|>``, ends a caption or a turn.
        pad: ``<|endoftext|>``, fills a pack's tail.
        image: ``<|image_pad|>``, the mark of one image, and of each of its visual tokens.
        im_start: ``<|im_start|>``, opens a turn.
        im_end: the same id as ``eos``.
    """

    bos: int
    eos: int
    pad: int
    image: int
    im_start: int
    im_end: int


def load_tokenizer(path: str) -> PreTrainedTokenizerFast:
    """Load a fast tokenizer and give it those of our special tokens that it lacks.

    Qwen2.5 lacks only ``<s>``, which gets the id it has in the released Open-Qwen2VL weights.

    Args:
        path: a folder that holds ``tokenizer.json``, or a name on the Hugging Face hub.

    Raises:
        UserError: there is no such folder and the hub does not have it or cannot be reached.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        if path.startswith((".", "/", "~")) or path.count("/") > 1:
            raise UserError(f"no tokenizer folder {path}; check the path")
        folder = _from_hub(path)
    if not (folder / "tokenizer.json").is_file():
        raise UserError(f"no tokenizer.json in {folder}; name a tokenizer's folder")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder))
    _add_missing(tokenizer)
    return tokenizer


def _from_hub(name: str) -> Path:
    """Give the folder that the hub's files lie in, from the cache when they are there.

    transformers would ask for ten files in turn, which takes minutes where there is no network.
    """
    try:
        return Path(hf_hub_download(name, "tokenizer.json", local_files_only=True)).parent
    except LocalEntryNotFoundError:
        pass
    except ValueError as error:
        raise UserError(f"'{name}' is neither a folder nor a name on the hub ({error})") from error
    try:
        # Asks once: hf_hub_download asks six times, for 30 s, where there is no network. The
        # second file holds the chat template; ours do not come from it.
        found = snapshot_download(name, allow_patterns=["tokenizer.json", "tokenizer_config.json"])
    except (OSError, ValueError) as error:
        raise UserError(
            f"no tokenizer '{name}': there is no such folder, and the Hugging Face hub does not "
            "have it or cannot be reached; download it elsewhere and give its folder"
        ) from error
    return Path(found)


def _add_missing(tokenizer: PreTrainedTokenizerFast) -> None:
    known = tokenizer.get_vocab()
    missing = [token for token in _SPECIAL if token not in known]
    if _BOS in missing and _END_OF_CHUNK not in known:
        missing.insert(missing.index(_BOS), _END_OF_CHUNK)
    tokenizer.add_tokens([AddedToken(t, normalized=False, special=True) for t in missing])
    tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token = _BOS, _EOS, _PAD


def special_tokens(tokenizer: PreTrainedTokenizerFast) -> SpecialTokens:
    """Look up the ids of the special tokens.

    Raises:
        UserError: the tokenizer was not loaded by ``load_tokenizer`` and lacks some.
    """
    # Not get_vocab: copying Qwen2.5's takes 0.1 s, and every prompt asks for these ids.
    look_up = tokenizer.backend_tokenizer.token_to_id
    ids = {token: look_up(token) for token in _SPECIAL}
    missing = [token for token, found in ids.items() if found is None]
    if missing:
        raise UserError(f"the tokenizer lacks {', '.join(missing)}; load it with load_tokenizer")
    end = ids[_EOS]
    return SpecialTokens(
        bos=ids[_BOS],
        eos=end,
        pad=ids[_PAD],
        image=ids[_IMAGE],
        im_start=ids[_IM_START],
        im_end=end,
    )


def end_of_chunk(tokenizer: PreTrainedTokenizerFast) -> int:
    """Look up ``<|endofchunk|>``, which the released weights saw after each text of a web page.

    Raises:
        UserError: the tokenizer lacks it, as those trained here do.
    """
    found: int | None = tokenizer.backend_tokenizer.token_to_id(_END_OF_CHUNK)
    if found is None:
        raise UserError(
            f"the tokenizer lacks {_END_OF_CHUNK}, which template=open_qwen2vl_v1 puts into "
            "interleaved documents; take template=qwen2_5, or Qwen2.5's tokenizer"
        )
    return int(found)


def tokenizer_hash(tokenizer: PreTrainedTokenizerFast) -> str:
    """Give 16 hex digits that two tokenizers share when their vocabulary, merges and marks agree.

    Neither the folder nor the way a library version writes ``tokenizer.json`` goes in.
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    merges = [
        pair.split(" ") if isinstance(pair, str) else pair
        for pair in backend["model"].get("merges", [])
    ]
    marks = sorted((t["id"], t["content"], t["special"]) for t in backend["added_tokens"])
    content = {"vocab": backend["model"]["vocab"], "merges": merges, "added": marks}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def encode_text(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Encode text as nothing but text: a literal ``<|im_end|>`` in it gives ordinary tokens."""
    return text_encoder(tokenizer).encode(text, add_special_tokens=False).ids


def encode_texts(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[list[int]]:
    """Encode many texts at once, each as ``encode_text`` would."""
    encoder = text_encoder(tokenizer)
    return [e.ids for e in encoder.encode_batch_fast(list(texts), add_special_tokens=False)]


def text_encoder(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """Give the copy of the tokenizer's backend that knows no special token in a text.

    A copy, because the switch would otherwise change what the caller's own calls give.
    """
    encoder = _text_encoders.get(tokenizer)
    if encoder is None:
        encoder = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        encoder.encode_special_tokens = True
        encoder.no_padding()
        encoder.no_truncation()
        _text_encoders[tokenizer] = encoder
    return encoder


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a small byte-level BPE that holds every byte, so that decoding loses nothing.

    Args:
        texts: what to train on; the same texts give the same tokenizer.
        vocab_size: all ids, special tokens and bytes included.

    Raises:
        UserError: ``vocab_size`` leaves no room for the bytes and the special tokens.
    """
    fewest = _NUM_BYTES + len(_SPECIAL)
    if vocab_size < fewest:
        raise UserError(f"vocab_size is {vocab_size}; bytes and special tokens alone need {fewest}")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(_SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=_BOS, eos_token=_EOS, pad_token=_PAD
    )
