"""The Hydra config tree, found as `pkg://openqwen2vl.conf`."""
