"""Jobs, endpoints and objects behind the wire: what SageMaker's operations do here, and what does the work."""
