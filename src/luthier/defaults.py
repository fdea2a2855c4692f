"""Where the service listens by default, and what its clients use when the user has set no region and no access key."""

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8777
DEFAULT_REGION = "us-west-2"
DUMMY_KEY = "luthier"
