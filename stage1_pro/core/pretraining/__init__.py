"""ExPLoRA: self-supervised adaptation of a backbone to unlabelled images (arXiv 2406.10973)."""
