"""Open-Qwen2VL as one program: curate, pack, train, evaluate and export a 2B multimodal LLM."""

__version__ = "0.1.0"
