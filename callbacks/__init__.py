"""Lightning callbacks, installed as `openqwen2vl.callbacks` and named only by conf/."""
