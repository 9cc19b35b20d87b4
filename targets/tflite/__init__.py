"""The target tflite."""
