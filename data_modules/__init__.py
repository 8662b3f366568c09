"""LightningDataModules, installed as `openqwen2vl.data_modules` and named only by conf/."""
