"""The LightningModule and what it stands on: loss, optimiser, schedule, strategies, checkpoints."""
