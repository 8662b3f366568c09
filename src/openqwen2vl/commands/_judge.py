"""The old place of what opens a trained model; it lies in `release.trained` now."""

from openqwen2vl.release.trained import load_trained, trained_judge

__all__ = ["load_trained", "trained_judge"]
