"""The certificate engine: a model's own exported graph, executed on bounds instead of tensors."""
