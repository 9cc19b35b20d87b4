"""SageMaker Neo's jobs: what is sent, held to Neo's published tables before it is; and what comes back."""
