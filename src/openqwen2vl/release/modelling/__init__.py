"""Code that goes into a model folder, for models that transformers has no class of."""
