"""What the scripts are made of; imports here point downward only."""
