"""What cannot be converted, or must not be opened, is told in one message and leaves nothing."""

import io
import json
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.exports import write_run
from support.models import tiny_mllm
from support.released import TINY_PARTS, llava_model, prismatic_model, with_tokenizer
from support.runs import Run, assert_one_message
from support.shards import tiny_tokenizer

from openqwen2vl.formats.errors import CheckpointError
from openqwen2vl.release.opened import open_trained
from openqwen2vl.release.pickled import open_pickled
from openqwen2vl.release.trained import load_model

Told = tuple[int, str, str]


class Trap:
    """Creates a file when somebody unpickles it."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return Path.touch, (self.place,)


@pytest.fixture
def released(tmp_path: Path) -> dict[str, Any]:
    vocab = len(tiny_tokenizer(tmp_path / "tokenizer"))
    return {"model": prismatic_model(tiny_mllm(vocab_size=vocab))}


@pytest.fixture
def convert(tmp_path: Path, call: Run) -> Callable[[Path], Told]:
    def converted(source: Path, *more: str) -> Told:
        given = (f"tokenizer={tmp_path / 'tokenizer'}", "template=open_qwen2vl_v1", "grid=3")
        words = (f"source={source}", f"out={tmp_path / 'out' / 'y.ckpt'}", *TINY_PARTS)
        told = call("convert", *words, *given, *more)
        if told[0]:
            assert not (tmp_path / "out").exists()
        return told

    return converted


def test_a_pickle_that_runs_code_is_refused_and_runs_nothing(
    tmp_path: Path, convert: Any, released: dict[str, Any]
) -> None:
    source, trap = tmp_path / "x.pt", tmp_path / "trapped"
    released["model"]["projector"]["mlp_projector.0.bias"] = Trap(trap)
    torch.save(released, source)
    assert_one_message(convert(source), "which could run code")
    assert not trap.exists()
    bare = pickle.dumps({"model": Trap(trap)})
    (tmp_path / "bare.pt").write_bytes(bare)
    assert_one_message(convert(tmp_path / "bare.pt"), "cut off, or no file of PyTorch's")
    assert not trap.exists()
    pickle.loads(bare)  # the trap is one where a file is opened without care
    assert trap.exists()


@pytest.mark.parametrize("name", ["../outside", "/outside", "archive/../../outside"])
def test_an_archive_with_names_that_lead_out_is_refused(
    tmp_path: Path, convert: Any, released: dict[str, Any], name: str
) -> None:
    source = tmp_path / "inner" / "x.pt"
    source.parent.mkdir()
    torch.save(released, source)
    with zipfile.ZipFile(source, "a") as archive:
        archive.writestr(name, b"x")
    assert_one_message(convert(source), "leads out of the archive")
    assert not (tmp_path / "outside").exists()


def test_a_tar_is_refused(tmp_path: Path, convert: Any) -> None:
    with tarfile.open(tmp_path / "x.pt", "w") as archive:
        member = tarfile.TarInfo("../outside")
        member.size = 1
        archive.addfile(member, io.BytesIO(b"x"))
    assert_one_message(convert(tmp_path / "x.pt"), "is a tar archive")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_half_a_file_is_told_as_such(
    tmp_path: Path, convert: Any, released: dict[str, Any], share: float
) -> None:
    torch.save(released, tmp_path / "x.pt")
    whole = (tmp_path / "x.pt").read_bytes()
    (tmp_path / "x.pt").write_bytes(whole[: int(len(whole) * share)])
    assert_one_message(convert(tmp_path / "x.pt"), "cut off")


def test_a_damaged_file_is_no_crash(tmp_path: Path, released: dict[str, Any]) -> None:
    torch.save(released, tmp_path / "x.pt")
    whole = bytearray((tmp_path / "x.pt").read_bytes())
    at = whole.index(b"data.pkl") + 40
    whole[at : at + 30] = bytes(30)
    (tmp_path / "x.pt").write_bytes(whole)
    with pytest.raises(CheckpointError):
        open_pickled(tmp_path / "x.pt")


def test_whatever_exists_is_left_alone(tmp_path: Path, call: Run, released: dict[str, Any]) -> None:
    torch.save(released, tmp_path / "x.pt")
    for place in (tmp_path / "file", tmp_path / "folder"):
        place.mkdir() if place.name == "folder" else place.write_text("mine")
        told = call("convert", f"source={tmp_path / 'x.pt'}", f"out={place}")
        assert_one_message(told, "exists; choose another out=")
    assert (tmp_path / "file").read_text() == "mine"


def test_unknown_names_are_counted_and_the_first_told(
    tmp_path: Path, convert: Any, released: dict[str, Any]
) -> None:
    held = released["model"]["projector"]
    held |= {f"more.{number}.weight": torch.ones(1) for number in range(5)}
    torch.save(released, tmp_path / "x.pt")
    told = "more.0.weight, projector.more.1.weight, projector.more.2.weight and 2 more"
    assert_one_message(convert(tmp_path / "x.pt"), "holds 5 weights that", told)
    for number in range(5):
        del held[f"more.{number}.weight"]
    released["model"]["llm_backbone"]["llm.model.extra"] = torch.ones(1)
    torch.save(released, tmp_path / "x.pt")
    assert_one_message(convert(tmp_path / "x.pt"), "1 weights are unknown here (llm.model.extra)")


def test_shapes_and_kinds_that_do_not_fit_are_told(
    tmp_path: Path, convert: Any, released: dict[str, Any]
) -> None:
    held = released["model"]["projector"]
    held["mlp_projector.0.bias"] = torch.ones(7)
    held["mlp_projector.2.bias"] = torch.ones(64, dtype=torch.int8)
    del held["mlp_projector.2.weight"]
    torch.save(released, tmp_path / "x.pt")
    assert_one_message(
        convert(tmp_path / "x.pt"),
        "projector.layers.0.bias (7,) for (64,)",
        "1 weights hold no plain numbers (projector.layers.2.bias)",
        "1 weights are missing there (projector.layers.2.weight)",
    )


def test_parts_that_are_no_tables_of_tensors_are_told(
    tmp_path: Path, convert: Any, released: dict[str, Any]
) -> None:
    for part, value in (
        ("projector", [torch.ones(2)]),
        ("llm_backbone", {3: torch.ones(2)}),
        ("vision_backbone", {"featurizer.x": "no tensor"}),
        ("more", 3),
    ):
        torch.save({"model": {**released["model"], part: value}}, tmp_path / "x.pt")
        told = f"something else than named tensors as its {part}"
        assert_one_message(convert(tmp_path / "x.pt"), told)


@pytest.mark.parametrize("value", [{}, {"model": 3}, {"state_dict": {}}, torch.ones(2)])
def test_another_file_is_told_by_what_it_holds(tmp_path: Path, convert: Any, value: Any) -> None:
    torch.save(value, tmp_path / "x.pt")
    assert_one_message(convert(tmp_path / "x.pt"), "holds", "expected")


def test_nothing_there_and_our_own_are_told(tmp_path: Path, convert: Any) -> None:
    assert_one_message(convert(tmp_path / "none.pt"), "nothing at")
    made = write_run(tmp_path / "run")
    assert_one_message(convert(made.checkpoint), "it needs no conversion")
    assert_one_message(convert(made.run), "holds a run")
    assert_one_message(convert(tmp_path / "tokenizer"), "holds no config.json")


@pytest.fixture
def llava(tmp_path: Path) -> Path:
    folder = tmp_path / "llava"
    llava_model("siglip", with_tokenizer(folder)).save_pretrained(folder, max_shard_size="50KB")
    return folder


def test_an_index_that_leads_out_of_its_folder_is_refused(
    tmp_path: Path, convert: Any, llava: Path
) -> None:
    index = json.loads((llava / "model.safetensors.index.json").read_text())
    name, file = next(iter(index["weight_map"].items()))
    (llava / file).rename(tmp_path / "outside.safetensors")
    for place in ("../outside.safetensors", str(tmp_path / "outside.safetensors")):
        index["weight_map"][name] = place
        (llava / "model.safetensors.index.json").write_text(json.dumps(index))
        assert_one_message(convert(llava), "outside of its folder")


def test_folders_that_are_not_whole_are_told(convert: Any, llava: Path) -> None:
    files = sorted(llava.glob("*.safetensors"))
    assert len(files) > 2
    whole = files[0].read_bytes()
    files[0].write_bytes(whole[: len(whole) // 2])
    assert_one_message(convert(llava), f"{files[0].name} cannot be read as safetensors")
    files[0].unlink()
    assert_one_message(convert(llava), f"names {files[0].name}, which is not there")
    (llava / "config.json").write_text("{")
    assert_one_message(convert(llava), "config.json cannot be read")


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("config.json", {"vision_config": 3}),
        ("config.json", {"text_config": None}),
        ("config.json", {"vision_config": {"model_type": "siglip_vision_model", "patch_size": 0}}),
        ("config.json", {"text_config": {"model_type": "qwen2", "vocab_size": "x"}}),
        ("preprocessor_config.json", {"image_mean": [0.5]}),
        ("preprocessor_config.json", {"image_mean": "abc"}),
    ],
)
def test_values_that_no_model_has_are_told(llava: Path, file: str, change: dict[str, Any]) -> None:
    place = llava / file
    known = json.loads(place.read_text()) if place.is_file() else {}
    place.write_text(json.dumps(known | change))
    with pytest.raises(CheckpointError, match=r"holds what no such model has|cannot be built"):
        open_trained(llava)


def test_pickled_weights_of_a_folder_are_not_opened(
    tmp_path: Path, convert: Any, llava: Path
) -> None:
    for file in llava.glob("*.safetensors*"):
        file.unlink()
    torch.save({"x": Trap(tmp_path / "trapped")}, llava / "pytorch_model.bin")
    assert_one_message(convert(llava), "pickled ones, such as .bin, are not opened")
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize(
    "target", ["os.system", "pathlib.Path", "openqwen2vl.model.vision.Path", "nowhere.at_all"]
)
def test_facts_that_name_anything_but_a_part_of_a_model_call_nothing(
    tmp_path: Path, target: str
) -> None:
    made = write_run(tmp_path / "run")
    checkpoint = torch.load(made.checkpoint, weights_only=True)
    for part in ("vision", "projector"):
        facts = json.loads(json.dumps(made.facts))
        facts["model"][part] = {"_target_": target, "command": f"touch {tmp_path / 'trapped'}"}
        torch.save(checkpoint | {"openqwen2vl": facts}, made.checkpoint)
        with pytest.raises(CheckpointError, match=r"names .* as a part of its model"):
            load_model(made.checkpoint)
    assert not (tmp_path / "trapped").exists()


def test_a_grid_finer_than_the_patches_is_told(tmp_path: Path) -> None:
    made = write_run(tmp_path / "run")
    checkpoint = torch.load(made.checkpoint, weights_only=True)
    torch.save(
        checkpoint | {"openqwen2vl": made.facts | {"phases": [{"grid": 7}]}}, made.checkpoint
    )
    assert open_trained(made.checkpoint).facts["phases"] == [{"grid": 7}]
    with pytest.raises(CheckpointError, match="says grid 7, but its vision tower has 6 x 6"):
        load_model(made.checkpoint)


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"vision": None}},
        {"llm_config": {"num_hidden_layers": -1, "layer_types": []}},
        {"llm_config": {"hidden_size": 0}},
    ],
)
def test_facts_that_no_model_has_are_told(tmp_path: Path, change: dict[str, Any]) -> None:
    made = write_run(tmp_path / "run")
    checkpoint = torch.load(made.checkpoint, weights_only=True)
    facts = made.facts | {name: made.facts[name] | inner for name, inner in change.items()}
    torch.save(checkpoint | {"openqwen2vl": facts}, made.checkpoint)
    with pytest.raises(CheckpointError, match="describes cannot be built"):
        load_model(made.checkpoint)
