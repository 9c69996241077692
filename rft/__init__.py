"""Local reinforcement fine-tuning: sample, grade, update, keep the best."""

__version__ = "0.1.0"
