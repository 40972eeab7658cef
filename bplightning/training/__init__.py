"""The LightningModule and what surrounds a training: calibration, checkpoints, resuming, monitoring."""
