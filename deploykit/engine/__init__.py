"""TensorRT engines: build them, say where they run, look into them. No onnx and no session here."""
