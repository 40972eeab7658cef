"""Distillation: learning from a teacher's logits, hidden states and experts, and checking that the teacher fits."""
