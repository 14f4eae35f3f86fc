"""thaw beside SGLang."""
