"""finetune: post-training for the LLaMA family."""

__version__ = "0.1.0"
