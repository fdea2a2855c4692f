"""The endpoint's HTTP server: loads a model, reads requests, generates in batches, writes responses."""
