import random
from dataclasses import replace
from pathlib import Path

import pytest
from support.compose import composed
from support.packs import pack
from support.runs import PackedCorpora
from support.shards import tiny_tokenizer, write_caption_shard

from openqwen2vl.formats.errors import PackError, ShardError
from openqwen2vl.formats.manifest import Manifest
from openqwen2vl.packing.mixture import Mixture, MixtureSpec, SourceSpec, consumed, open_mixture
from openqwen2vl.packing.order import Order, Phase

GRIDS = (3, 6)
CONF = Path(__file__).parents[1] / "conf"


def spec(corpora: PackedCorpora, *names: str, mode: str = "proportional") -> MixtureSpec:
    sources = {n: SourceSpec(packs=[str(corpora.packs(n, g)) for g in GRIDS]) for n in names}
    return MixtureSpec(sources=sources, mode=mode)


@pytest.fixture
def mixture(corpora: PackedCorpora) -> Mixture:
    return open_mixture(spec(corpora, "red", "blue"), GRIDS)


def test_every_grid_has_the_folders_of_all_sources_in_their_order(mixture: Mixture) -> None:
    assert mixture.names == ["red", "blue"]
    for grid in GRIDS:
        assert [folder.manifest.source for folder in mixture.folders[grid]] == ["red", "blue"]
        assert {folder.manifest.spec.grid for folder in mixture.folders[grid]} == {grid}
        supply = mixture.supply(grid)
        counts = [folder.manifest.counts for folder in mixture.folders[grid]]
        assert supply.packs == sum(count.packs for count in counts)
        assert supply.tokens == sum(count.tokens for count in counts)
        documents = sum(count.documents for count in counts)
        assert mixture.documents_per_pack(grid) == documents / supply.packs


def test_one_folder_may_be_given_without_a_list(corpora: PackedCorpora) -> None:
    alone = MixtureSpec(sources={"red": SourceSpec(packs=str(corpora.packs("red", 3)))})
    assert len(open_mixture(alone, [3]).folders[3]) == 1


def test_a_source_without_packs_of_a_grid_is_refused_before_step_0(corpora: PackedCorpora) -> None:
    only_3 = {"red": SourceSpec(packs=str(corpora.packs("red", 3)))}
    with pytest.raises(PackError) as caught:
        open_mixture(MixtureSpec(sources=only_3), GRIDS)
    message = str(caught.value)
    assert "'red' has 0 pack folders of grid 6 (its folders have grids [3])" in message
    assert "pack it with grid=6 and list the folder in mixture.sources.red.packs" in message


def test_two_folders_of_one_grid_are_one_too_many(corpora: PackedCorpora) -> None:
    twice = SourceSpec(packs=[str(corpora.packs("red", 3)), str(corpora.packs("blue", 3))])
    with pytest.raises(PackError, match="has 2 pack folders of grid 3"):
        open_mixture(MixtureSpec(sources={"red": twice}), [3])


def test_no_source_at_all_says_where_to_name_one() -> None:
    with pytest.raises(PackError, match=r"name at least one under mixture\.sources"):
        open_mixture(MixtureSpec(sources={}), [3])


def test_a_folder_without_packs_is_named(tmp_path: Path) -> None:
    nowhere = MixtureSpec(sources={"red": SourceSpec(packs=str(tmp_path))})
    with pytest.raises(ShardError, match=r"no manifest\.json in "):
        open_mixture(nowhere, [3])


def test_sources_that_share_documents_are_refused_with_the_count(
    corpora: PackedCorpora, tmp_path: Path
) -> None:
    tokenizer = tiny_tokenizer(tmp_path / "tokenizer")
    for own, (name, shared) in enumerate({"one": 20, "two": 13}.items()):
        # Shards of one seed start with the same documents.
        write_caption_shard(tmp_path / name / "00000.tar", shared, seed=0)
        write_caption_shard(tmp_path / name / "00001.tar", 5, seed=100 + own)
        pack(tmp_path / name, tmp_path / f"{name}-packs", tokenizer, grid=3)
    sources = {n: SourceSpec(packs=str(tmp_path / f"{n}-packs")) for n in ("one", "two")}
    with pytest.raises(PackError, match=r"'one' and 'two' share 13 documents \(by uid\)"):
        open_mixture(MixtureSpec(sources=sources), [3])


@pytest.mark.parametrize(
    ("options", "key"),
    [({"context": 200}, "context 200"), ({"template": "open_qwen2vl_v1"}, "template_hash")],
)
def test_folders_that_were_packed_unlike_are_refused_with_both_values(
    corpora: PackedCorpora, tmp_path: Path, options: dict[str, object], key: str
) -> None:
    tokenizer = tiny_tokenizer(tmp_path / "tokenizer")
    write_caption_shard(tmp_path / "raw" / "00000.tar", 5, seed=50)
    pack(tmp_path / "raw", tmp_path / "packs", tokenizer, **{"grid": 3, **options})
    ours = SourceSpec(packs=str(corpora.packs("red", 3)))
    other = SourceSpec(packs=str(tmp_path / "packs"))
    with pytest.raises(PackError) as caught:
        open_mixture(MixtureSpec(sources={"red": ours, "other": other}), [3])
    message = str(caught.value)
    assert f"{tmp_path}/packs was packed with {key}" in message
    assert f"{corpora.packs('red', 3)} with " in message


def test_packs_of_another_tokenizer_are_refused(corpora: PackedCorpora, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path / "tokenizer", vocab_size=300)
    write_caption_shard(tmp_path / "raw" / "00000.tar", 5, seed=50)
    pack(tmp_path / "raw", tmp_path / "packs", tokenizer, grid=3)
    sources = {
        "red": SourceSpec(packs=str(corpora.packs("red", 3))),
        "other": SourceSpec(packs=str(tmp_path / "packs")),
    }
    with pytest.raises(PackError, match="was packed with tokenizer_hash"):
        open_mixture(MixtureSpec(sources=sources), [3])


def test_held_out_packs_are_found_beside_the_training_packs(mixture: Mixture) -> None:
    held_out = mixture.validation()
    assert held_out is not None
    assert held_out.names == ["red", "blue"]
    for grid in GRIDS:
        for train, rest in zip(mixture.folders[grid], held_out.folders[grid], strict=True):
            assert rest.path == train.path / "validation"
            assert rest.manifest.split == "validation"


def test_a_mixture_without_held_out_packs_has_no_validation(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path / "tokenizer")
    write_caption_shard(tmp_path / "raw" / "00000.tar", 5)
    pack(tmp_path / "raw", tmp_path / "packs", tokenizer, grid=3)
    alone = MixtureSpec(sources={"a": SourceSpec(packs=str(tmp_path / "packs"))})
    assert open_mixture(alone, [3]).validation() is None


def test_weights_reach_the_stream(corpora: PackedCorpora) -> None:
    asked = spec(corpora, "red", "blue", mode="weights")
    heavy = replace(asked.sources["red"], weight=9.0)
    weighted = replace(asked, sources={**asked.sources, "red": heavy})
    stream = open_mixture(weighted, GRIDS).stream(seed=1, grid=3)
    tokens = [0, 0]
    for position in range(200):
        key = stream.at(position)
        tokens[key.source] += int(stream.sources[key.source].tokens[key.pack])
    assert tokens[0] / sum(tokens) == pytest.approx(0.9, abs=0.02)


def order(mixture: Mixture, phases: list[tuple[int, int]], global_batch: int = 3) -> Order:
    """Give an order of phases (stop, grid)."""
    starts = [0, *(stop for stop, _ in phases)]
    made = tuple(
        Phase(start=start, stop=stop, grid=grid)
        for start, (stop, grid) in zip(starts, phases, strict=False)
    )
    return Order(made, {g: mixture.stream(7, g) for g in GRIDS}, global_batch)


@pytest.mark.parametrize("phases", [[(9, 3)], [(4, 3), (9, 6)], [(2, 3), (5, 6), (9, 3)]])
def test_what_was_consumed_is_what_the_order_served(
    mixture: Mixture, phases: list[tuple[int, int]]
) -> None:
    served = order(mixture, phases)
    for steps in range(served.steps + 1):
        found = consumed(mixture, served, steps)
        for source, name in enumerate(mixture.names):
            keys = [k for s in range(steps) for k in served.packs(s) if k.source == source]
            folders = {grid: mixture.folders[grid][source] for grid in GRIDS}
            assert found[name]["packs"] == len(keys)
            for column in ("tokens", "targets", "images", "documents"):
                values = [int(getattr(folders[k.grid], column)[k.pack]) for k in keys]
                assert found[name][column] == sum(values)


def test_passes_count_how_often_the_packs_there_are_were_served(mixture: Mixture) -> None:
    # With a global batch of all the packs there are, every step is one pass over both sources.
    served = order(mixture, [(5, 3)], global_batch=mixture.supply(3).packs)
    assert [s["passes"] for s in consumed(mixture, served, 3).values()] == [3.0, 3.0]
    assert [s["passes"] for s in consumed(mixture, served, 0).values()] == [0.0, 0.0]


def test_the_order_of_asking_does_not_change_the_stream(corpora: PackedCorpora) -> None:
    asked = spec(corpora, "red", "blue", "text", mode="weights")
    one, other = (open_mixture(asked, GRIDS).stream(seed=3, grid=6) for _ in range(2))
    places = list(range(60))
    random.Random(0).shuffle(places)
    shuffled = {place: other.at(place) for place in places}
    assert [one.at(place) for place in range(60)] == [shuffled[place] for place in range(60)]


def test_a_manifest_is_what_tells_folders_apart(mixture: Mixture) -> None:
    hashes = [folder.manifest.hash() for column in mixture.folders.values() for folder in column]
    assert len(set(hashes)) == 4
    folder = mixture.folders[3][0]
    assert Manifest.load(folder.path).hash() == folder.manifest.hash()


@pytest.mark.parametrize("path", sorted(CONF.glob("mixture/*.yaml")), ids=lambda p: p.stem)
def test_every_source_of_the_papers_mixtures_says_its_licence(path: Path) -> None:
    if path.stem.startswith(("demo_", "empty")):
        return
    config = composed(f"mixture={path.stem}", "stage=pretrain")
    for name, source in config.mixture.sources.items():
        assert source.licence == config.licences[name]
