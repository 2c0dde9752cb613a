"""The bundle that is shipped: what it holds, how it is verified, how it is exported."""
