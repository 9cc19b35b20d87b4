"""The target onnx."""
