"""The page for whoever decides: what each way to run the cascade costs."""
