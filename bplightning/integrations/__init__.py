"""Pruning in other training loops: any LightningModule, and the transformers Trainer."""

from bplightning.integrations.attachment import Attachment
from bplightning.integrations.lightning_callback import PruningCallback
from bplightning.integrations.transformers_trainer import PruningTrainer, PruningTrainerCallback, PruningTrainerMixin

__all__ = ["Attachment", "PruningCallback", "PruningTrainer", "PruningTrainerCallback", "PruningTrainerMixin"]
