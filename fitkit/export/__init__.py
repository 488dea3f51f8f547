"""Weights and models for other programs: ONNX, safetensors, state dicts."""
