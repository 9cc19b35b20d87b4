"""neo: Apache TVM, the open compiler that SageMaker Neo is built on, here; and Neo's own jobs in the cloud."""
