"""Learning from a teacher: its logits, hidden states and experts, and who may teach whom."""
