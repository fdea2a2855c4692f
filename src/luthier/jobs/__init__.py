"""What the service keeps: resources and their states in SQL, settings, logs. Knows no operation and no process."""
