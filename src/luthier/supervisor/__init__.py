"""The supervisor: the process that runs what the store has queued, and keeps it running."""
