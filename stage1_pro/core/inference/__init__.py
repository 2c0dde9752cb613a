"""From images to scores and decisions: the code that scores a run and that an inference host runs."""
