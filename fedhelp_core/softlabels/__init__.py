"""Soft labels: teachers asked once per public image, ever; their answers as one distillation set."""
