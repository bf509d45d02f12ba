"""The one adapter to TensorRT, shared by the host, which compiles engines, and the agent, which runs them."""
