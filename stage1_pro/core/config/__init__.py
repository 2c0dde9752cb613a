"""The training configuration: its settings, the rules between them, and how it is read."""
