"""`deploykit build-trt`: TensorRT engines."""
