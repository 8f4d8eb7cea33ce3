"""Exports an encoder for ONNX Runtime, in f32: hidden states of token ids and a mask.

    python benches/compare/make_onnx.py MODEL_DIR OUTPUT.onnx

Attention is written out, as the exporter needs it; ONNX Runtime fuses it again when it loads the file.
"""
import sys

import torch
from transformers import AutoModel, AutoTokenizer

source, output = sys.argv[1:]
encoder = AutoModel.from_pretrained(source, attn_implementation="eager", dtype=torch.float32).eval()
example = AutoTokenizer.from_pretrained(source)(["two words", "one"], padding=True, return_tensors="pt")


class Hidden(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = encoder

    def forward(self, ids, mask):
        return self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state


axes = {name: {0: "batch", 1: "length"} for name in ("ids", "mask", "hidden")}
inputs = (example["input_ids"], example["attention_mask"])
torch.onnx.export(Hidden(), inputs, output, input_names=["ids", "mask"], output_names=["hidden"], dynamic_axes=axes,
                  opset_version=17, dynamo=False)
