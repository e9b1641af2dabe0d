"""What the tensors of a served model are called, and their types, wherever it is served."""

from __future__ import annotations

#: Inputs: preprocessed pixels, as the deploy graph takes them; and what image files hold.
IMAGES, IMAGE_FILE = "images", "image"
#: Outputs: (N, L) float32 and, of each class, (N, K) float32.
LOGITS, PROBABILITIES = "logits", "probabilities"
#: Of pixels, by NumPy's name; KServe's protocol has these, and Triton ``TYPE_`` before them.
DATATYPES = {"uint8": "UINT8", "float32": "FP32"}
