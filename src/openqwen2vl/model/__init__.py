"""The multimodal LLM: vision tower, projector, language model, packed attention."""
