"""Lightning callbacks of our own; everything else is Lightning's."""
