"""ONNX models as kedge sees them: inputs, outputs, versions, and a reference run."""
