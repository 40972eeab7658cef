"""Pruning in other training loops: any LightningModule, and the transformers Trainer."""
