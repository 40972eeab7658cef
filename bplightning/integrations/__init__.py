"""Pruning in training loops of other people: any LightningModule, and the transformers Trainer."""
