"""From images and labels on disk to batches."""
