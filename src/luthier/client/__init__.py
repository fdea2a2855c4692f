"""Luthier's own client: the few calls that its commands make, over HTTP, with boto3 as anybody else would."""
