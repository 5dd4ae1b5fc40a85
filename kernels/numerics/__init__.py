"""The reference: every op of `quartet` in plain PyTorch, one operand after the other."""
