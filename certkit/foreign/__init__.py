"""Networks that others wrote: folders of Hugging Face and ONNX files, as modules that certkit exports like any other."""
