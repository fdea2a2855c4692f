"""Client of the service: the calls that Luthier's own commands make through boto3."""
