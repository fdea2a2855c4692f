"""How a job folder is run: a protocol (launcher.py), and processes of this machine as its implementation (local.py)."""
