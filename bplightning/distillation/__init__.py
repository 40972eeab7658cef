"""Distillation: learning from a teacher's logits, hidden states and experts, and checking that the teacher fits."""

from bplightning.distillation.distillation import Distillation, Teacher
from bplightning.distillation.experts import ExpertDistillation
from bplightning.distillation.load_finetuned import load_fitting
from bplightning.distillation.teachers import load_teacher, require_same_labels, require_same_tokens

__all__ = [
    "Distillation",
    "ExpertDistillation",
    "Teacher",
    "load_fitting",
    "load_teacher",
    "require_same_labels",
    "require_same_tokens",
]
