"""The fast pieces of the engine, each a function beside its plain twin in the tests."""
