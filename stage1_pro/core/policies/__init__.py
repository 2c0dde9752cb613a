"""Exit policies: how each is certified, stored and applied. numpy only, so that any host can decide."""
