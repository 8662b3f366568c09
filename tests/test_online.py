import pickle
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support.runs import PackedCorpora, command, environment, rows, train
from support.shards import tiny_tokenizer, write_caption_shard, write_conversation_shard

from openqwen2vl.data_modules.online import OnlineDataModule
from openqwen2vl.data_modules.packed import PackedDataModule
from openqwen2vl.formats.errors import ConfigError, PackError, ShardError
from openqwen2vl.packing.online import open_online
from openqwen2vl.packing.plan import Selection
from openqwen2vl.packing.reader import PackFolder, Packs
from openqwen2vl.packing.request import PackRequest, make_spec
from openqwen2vl.packing.writer import pack_folder

PARTS = {3: (0.0, 0.6), 6: (0.6, 1.0)}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("online")
    write_caption_shard(root / "raw/red/00000.tar", 50, seed=0)
    write_caption_shard(root / "raw/red/00001.tar", 40, seed=3)
    write_conversation_shard(root / "raw/blue/00000.tar", 60, seed=1, max_images=2)
    tiny_tokenizer(root / "tokenizer")
    return root


def requests(root: Path, source: str, raw: Path | None = None, **also: object) -> list[PackRequest]:
    tokenizer = tiny_tokenizer(root / "tokenizer")
    return [
        PackRequest(
            input=raw or root / "raw" / source,
            out=root / "packs" / f"{source}-g{grid}",
            source=source,
            spec=make_spec(tokenizer, 256, grid, "qwen2_5"),
            selection=Selection(part, 0.1),
            **{
                "index": root / "index",
                "window": 30,
                "packs_per_shard": 3,
                "overwrite": True,
                **also,
            },
        )
        for grid, part in PARTS.items()
    ]


def assert_same_packs(one: Packs, other: Packs) -> None:
    assert len(one) == len(other) > 0
    for name in ("tokens", "targets", "images", "documents"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    np.testing.assert_array_equal(one.uid_hashes(), other.uid_hashes())
    for number in range(len(one)):
        first, second = one.read(number), other.read(number)
        np.testing.assert_array_equal(first.ids, second.ids)
        np.testing.assert_array_equal(first.targets, second.targets)
        assert first.documents == second.documents
        assert first.images == second.images


@pytest.mark.parametrize("source", ["red", "blue"])
def test_packs_in_memory_are_those_that_are_written(root: Path, source: str) -> None:
    tokenizer = tiny_tokenizer(root / "tokenizer")
    asked = requests(root, source)
    for request, online in zip(asked, open_online(asked, tokenizer), strict=True):
        pack_folder(request, tokenizer)
        folder = PackFolder(request.out)
        assert_same_packs(online, folder)
        held_out, written = online.validation(), folder.validation()
        assert held_out is not None
        assert written is not None
        assert_same_packs(held_out, written)
        for name in ("counts", "fill", "lower_bound", "rejects", "outside_part", "packers"):
            assert getattr(online.manifest, name) == getattr(folder.manifest, name)
        for name in ("max_documents", "max_images", "spec", "part", "validation"):
            assert getattr(online.manifest, name) == getattr(folder.manifest, name)


def test_they_survive_the_way_into_a_worker(root: Path) -> None:
    tokenizer = tiny_tokenizer(root / "tokenizer")
    (online, _) = open_online(requests(root, "red"), tokenizer)
    online.read(0)
    again = pickle.loads(pickle.dumps(online))
    assert_same_packs(again, online)


def test_nothing_is_written_beside_the_raw_shards(root: Path, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(root / "tokenizer")
    before = sorted((root / "raw").rglob("*"))
    open_online(requests(root, "red", index=tmp_path / "index"), tokenizer)
    assert sorted((root / "raw").rglob("*")) == before
    assert [path.suffix for path in tmp_path.rglob("*") if path.is_file()] == [".parquet"] * 2


def test_a_raw_shard_that_changes_is_told(root: Path, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(root / "tokenizer")
    write_caption_shard(tmp_path / "raw/00000.tar", 30, seed=5)
    (request, _) = requests(root, "red", raw=tmp_path / "raw", index=tmp_path / "index")
    (online,) = open_online([request], tokenizer)
    write_caption_shard(tmp_path / "raw/00000.tar", 31, seed=6)
    with pytest.raises(ShardError, match="changed"):
        online.read(0)


def test_what_would_have_to_be_written_is_refused(root: Path) -> None:
    tokenizer = tiny_tokenizer(root / "tokenizer")
    with pytest.raises(PackError, match="overlong=reject"):
        open_online(requests(root, "blue", overlong="drop_last_turns"), tokenizer)


def modules(root: Path) -> tuple[PackedDataModule, OnlineDataModule]:
    """One data module over written packs, one over raw shards."""
    tokenizer = tiny_tokenizer(root / "tokenizer")
    written: dict[str, list[str]] = {}
    for source in ("red", "blue"):
        for request in requests(root, source):
            pack_folder(request, tokenizer)
            written.setdefault(source, []).append(str(request.out))
    settings = {
        "resolution": {"plan": [{"grid": 3, "until": 0.6}, {"grid": 6, "until": 1.0}]},
        "budget": {"steps": 6},
        "image_side": 84,
        "global_batch": 4,
        "micro_batch": 2,
        "num_workers": 0,
    }
    packed = {"sources": {name: {"packs": folders} for name, folders in written.items()}}
    raw = {"sources": {name: {"packs": str(root / "raw" / name)} for name in written}}
    return PackedDataModule(packed, **settings), OnlineDataModule(
        str(root / "tokenizer"),
        str(root / "index"),
        context=256,
        validation=0.1,
        window=30,
        packs_per_shard=3,
        workers=1,
        mixture=raw,
        **settings,
    )


def test_a_run_sees_the_same_batches_from_raw_shards_and_from_packs(root: Path) -> None:
    packed, online = modules(root)
    for module in (packed, online):
        module.trainer = SimpleNamespace(global_rank=0, world_size=1, global_step=0)
    batches = list(zip(packed.train_dataloader(), online.train_dataloader(), strict=True))
    assert len(batches) == 12
    for one, other in batches:
        assert one.keys() == other.keys()
        for name, value in one.items():
            if hasattr(value, "shape"):
                np.testing.assert_array_equal(value, other[name], name)
            else:
                assert value == other[name], name


def test_a_source_of_several_corpora_is_refused(root: Path) -> None:
    with pytest.raises(ConfigError, match=r"mixture\.sources\.red\.packs names 2 folders"):
        OnlineDataModule(
            str(root / "tokenizer"),
            str(root / "index"),
            mixture={"sources": {"red": {"packs": ["a", "b"]}}},
            resolution={"plan": [{"grid": 3, "until": 1.0}]},
            budget={"steps": 1},
            global_batch=1,
        )


@pytest.mark.slow
def test_training_from_raw_shards_gives_the_curve_of_packs(
    corpora: PackedCorpora, tmp_path: Path
) -> None:
    packed = train(corpora, tmp_path / "packed")
    assert packed.returncode == 0, packed.stderr
    words = command(
        corpora,
        tmp_path / "online",
        {"data": "online", "data.context": 256, "data.validation": 0.1},
    )
    words = [word for word in words if not word.startswith("+mixture")]
    words += [
        f"+mixture.sources.{name}.packs={corpora.root / 'raw' / name}" for name in ("red", "blue")
    ]
    online = subprocess.run(
        [*words, f"packs_root={tmp_path}"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert online.returncode == 0, online.stderr
    assert rows(tmp_path / "online") == rows(tmp_path / "packed")
