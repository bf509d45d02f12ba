"""Training on a graph: a torch view of it, fine-tuning, distillation, quantisation-aware training, gradients."""
