"""The LightningModule and its callbacks: calibration, checkpoints, resuming, monitoring."""
