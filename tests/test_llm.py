import huggingface_hub.constants
import pytest
import torch
from support.models import tiny_llm
from transformers import Qwen2Config, Qwen2ForCausalLM

from openqwen2vl.formats.errors import CheckpointError, ConfigError
from openqwen2vl.model.llm import load_llm

SIZES = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    Qwen2ForCausalLM(Qwen2Config(**SIZES)).to(torch.bfloat16).save_pretrained(tmp_path)
    return tmp_path


def test_a_bfloat16_file_gives_float32_masters(folder):
    llm = load_llm(str(folder))
    reference = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).state_dict()
    assert {p.dtype for p in llm.parameters()} == {torch.float32}
    for key, value in llm.state_dict().items():
        assert torch.equal(value, reference[key].float())


def test_logits_are_transformers_own(folder):
    ids = torch.randint(0, 300, (2, 17), generator=torch.Generator().manual_seed(0))
    reference = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(load_llm(str(folder))(ids).logits, reference(ids).logits)


def test_the_cache_is_off(folder):
    assert load_llm(str(folder)).config.use_cache is False
    assert tiny_llm().config.use_cache is False


def test_random_weights_depend_on_the_seed_and_leave_the_random_state_alone():
    state = torch.get_rng_state()
    first, again, other = (tiny_llm(seed=seed) for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first.lm_head.weight, again.lm_head.weight)
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


def test_a_larger_tokenizer_gets_embedding_rows_and_the_rest_stays(folder):
    before, after = load_llm(str(folder)), load_llm(str(folder), min_vocab=310)
    again = load_llm(str(folder), min_vocab=310)
    rows = after.get_input_embeddings().weight
    assert rows.shape == (310, 64)
    assert torch.equal(rows[:300], before.get_input_embeddings().weight)
    assert torch.equal(rows, again.get_input_embeddings().weight)
    assert after.lm_head.weight is rows
    assert after.config.vocab_size == 310


def test_a_smaller_tokenizer_changes_nothing(folder):
    assert load_llm(str(folder), min_vocab=200).get_input_embeddings().num_embeddings == 300


def test_a_random_model_is_built_at_the_tokenizers_size():
    llm = load_llm(config={"model_type": "qwen2", **SIZES}, pretrained=False, min_vocab=333)
    assert llm.get_output_embeddings().weight.shape == (333, 64)


def test_adding_rows_leaves_the_random_state_alone(folder):
    state = torch.get_rng_state()
    load_llm(str(folder), min_vocab=310)
    assert torch.equal(state, torch.get_rng_state())


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"cannot load a language model from .*llm\.path"):
        load_llm(str(tmp_path))
    with pytest.raises(CheckpointError, match=r"no folder .*gone, which llm\.path names"):
        load_llm(str(tmp_path / "gone"))


def test_weights_that_can_run_code_are_not_opened(folder):
    weights = folder / "model.safetensors"
    torch.save({}, folder / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(CheckpointError, match="safetensors"):
        load_llm(str(folder))


def test_an_unreachable_hub_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=r'"Nobody/no-such-model".*a hub name that'):
        load_llm("Nobody/no-such-model")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"llm\.path is empty"),
        ({"pretrained": False}, "no model_type"),
        ({"pretrained": False, "config": {"model_type": "qwen22"}}, "cannot be built.*qwen22"),
    ],
)
def test_configs_that_name_no_model_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        load_llm(**arguments)
