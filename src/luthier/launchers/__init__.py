"""How an engine is started and ended: as processes of this machine (later: of a cluster)."""
