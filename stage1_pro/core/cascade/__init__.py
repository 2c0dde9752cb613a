"""What a cascade costs: prices, capacity, and the evidence for both."""
