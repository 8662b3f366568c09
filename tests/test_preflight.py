from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.packs import pack
from support.runs import Run, assert_one_message
from support.shards import tiny_tokenizer, write_caption_shard, write_conversation_shard, write_tar

from openqwen2vl.formats.errors import PackError
from openqwen2vl.formats.manifest import Manifest
from openqwen2vl.packing.preflight import Expected, preflight, require_sound
from openqwen2vl.packing.reader import Pack, PackFolder

INTERLEAVED = b'{"texts": ["one picture", null, "and what it shows"], "images": [null, "0", null]}'


def make(root: Path, template: str = "qwen2_5") -> PackFolder:
    write_caption_shard(root / "raw" / "00000.tar", 12)
    write_conversation_shard(root / "raw" / "00001.tar", 12, max_images=2)
    tokenizer = tiny_tokenizer(root / "tokenizer")
    pack(root / "raw", root / "packs", tokenizer, template=template)
    return PackFolder(root / "packs")


@pytest.fixture
def folder(tmp_path: Path) -> PackFolder:
    return make(tmp_path)


def tamper(folder: PackFolder, change: Callable[[Pack], Pack]) -> PackFolder:
    """Let pack 0 be read as something else."""
    read = folder.read
    folder.read = lambda n: change(read(n)) if n == 0 else read(n)  # type: ignore[method-assign]
    return folder


@pytest.mark.parametrize("template", ["qwen2_5", "open_qwen2vl_v1"])
def test_packs_of_captions_and_conversations_are_sound(tmp_path: Path, template: str) -> None:
    made = make(tmp_path, template)
    spec = made.manifest.spec
    expected = Expected(tokenizer_hash=spec.tokenizer_hash, template_hash=spec.template_hash)
    assert preflight(made, expected) == []
    require_sound([made, made])


def test_packs_of_web_pages_are_sound(tmp_path: Path) -> None:
    write_caption_shard(tmp_path / "raw" / "00000.tar", 2)
    page = {"a.json": INTERLEAVED, "a.0.jpg": b"picture"}
    write_tar(tmp_path / "raw" / "00001.tar", page)
    pack(tmp_path / "raw", tmp_path / "packs", tiny_tokenizer(tmp_path / "tokenizer"))
    assert preflight(PackFolder(tmp_path / "packs")) == []


@pytest.mark.parametrize("name", ["tokenizer_hash", "template_hash"])
def test_packs_for_another_model_are_told(folder: PackFolder, name: str) -> None:
    (fault,) = preflight(folder, Expected(**{name: "0123"}))
    assert fault.startswith(f"{name} is {getattr(folder.manifest.spec, name)}")
    assert "the model's is 0123" in fault


def test_a_template_that_has_changed_since_is_told(folder: PackFolder) -> None:
    manifest = folder.manifest
    spec = replace(manifest.spec, template_hash="0123")
    replace(manifest, spec=spec).save(folder.path)
    (fault,) = preflight(PackFolder(folder.path))
    assert "template qwen2_5 has the hash 0123" in fault
    replace(manifest, spec=replace(spec, template="lost")).save(folder.path)
    (fault,) = preflight(PackFolder(folder.path))
    assert "here it is unknown" in fault


def test_a_low_share_of_targets_is_told_with_both_numbers(folder: PackFolder) -> None:
    counts = Manifest.load(folder.path).counts
    (fault,) = preflight(folder, Expected(target_share=0.9))
    assert fault.startswith(f"{counts.targets / counts.tokens:.3%} of the tokens are targets")
    assert "at least 90.000%" in fault


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("targets", 0, "packs ask for nothing, pack 1 first"),
        ("tokens", 257, "packs hold more than the context of 256 tokens, pack 1 first"),
        ("images", 99, "packs hold more visual tokens than tokens, pack 1 first"),
        ("targets", 999, "packs ask for more tokens than they hold, pack 1 first"),
    ],
)
def test_the_whole_index_is_looked_at(
    folder: PackFolder, column: str, value: int, message: str
) -> None:
    forged = np.array(getattr(folder, column))
    forged[1] = value
    setattr(folder, column, forged)
    (fault,) = preflight(folder, Expected(sample=1))
    assert fault == f"1 of {len(folder)} {message}"


def _id(pack: Pack, place: int, value: int) -> Pack:
    ids = pack.ids.copy()
    ids[place] = value
    return replace(pack, ids=ids)


def _end(pack: Pack, eos: int, value: int) -> Pack:
    first = pack.documents[0]
    ends = np.flatnonzero(pack.ids[: first["length"]] == eos)
    return _id(pack, int(ends[-1]), value)


def _mark(pack: Pack, image: int) -> Pack:
    return _id(pack, int(np.flatnonzero(pack.ids == image)[0]), 300)


CHANGES: dict[str, tuple[Callable[[PackFolder, Pack], Pack], list[str]]] = {
    "no targets": (
        lambda f, p: replace(p, targets=p.targets[p.targets[:, 0] >= p.documents[1]["start"]]),
        ["ask for nothing"],
    ),
    "no end is asked for": (
        lambda f, p: replace(p, targets=p.targets - [[0, 1]]),
        ["never ask for <|im_end|>"],
    ),
    "no end": (
        lambda f, p: _end(p, f.manifest.spec.special.eos, 300),
        ["hold <|im_end|> more or less often than the qwen2_5 template"],
    ),
    "two openings": (
        lambda f, p: _id(p, 3, f.manifest.spec.special.bos),
        ["hold <s> more or less often than the qwen2_5 template"],
    ),
    "a mark fewer": (
        lambda f, p: _mark(p, f.manifest.spec.special.image),
        ["have more or fewer images than marks"],
    ),
    "an image fewer": (
        lambda f, p: replace(p, images=p.images[:-1]),
        ["say of images what their pack does not hold"],
    ),
    "a pad": (lambda f, p: _id(p, 3, f.manifest.spec.special.pad), ["fills packs up"]),
    "an id too high": (lambda f, p: _id(p, 3, 10**6), ["ids that a vocabulary of"]),
    "an image asked for": (
        lambda f, p: replace(p, targets=np.array([[0, len(p.ids)]])),
        ["ask for an image"],
    ),
}


@pytest.mark.parametrize("name", list(CHANGES))
def test_a_fault_in_a_pack_is_told_with_its_document(folder: PackFolder, name: str) -> None:
    change, wanted = CHANGES[name]
    told = "\n".join(preflight(tamper(folder, lambda pack: change(folder, pack))))
    for message in wanted:
        assert message in told
    assert "in pack 0 first" in told


def test_only_a_sample_is_read(folder: PackFolder) -> None:
    read: list[int] = []
    whole = folder.read

    def counting(number: int) -> Pack:
        read.append(number)
        return whole(number)

    folder.read = counting  # type: ignore[method-assign]
    preflight(folder, Expected(sample=2))
    assert read == [0, len(folder) - 1]


def test_all_faults_of_all_folders_come_in_one_error(folder: PackFolder) -> None:
    with pytest.raises(PackError) as caught:
        require_sound([folder, folder], Expected(template_hash="0"))
    assert str(caught.value).count("the model's is 0") == 2
    assert "data.preflight=false" in str(caught.value)


def test_a_run_on_unfit_packs_stops_before_it_starts(
    call_train: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openqwen2vl.packing.preflight.preflight", lambda *_: ["no good"])
    assert_one_message(call_train(), "not fit to train on", "data.preflight=false")
    assert call_train("data.preflight=false")[0] == 0
