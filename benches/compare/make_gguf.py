"""A BF16 GGUF of a model directory without its tokenizer, so that llama.cpp can run random weights of any shape.

    python benches/compare/make_gguf.py qwen05-rand qwen05-BF16.gguf

Norms and biases become f32, as in other BF16 files. Llama's q and k would need their rows in another order; this is for
Qwen2 alone.
"""
import json, pathlib, sys

import gguf
import torch
from safetensors.torch import load_file

folder, out = pathlib.Path(sys.argv[1]), sys.argv[2]
config = json.loads((folder / "config.json").read_text())
assert config["model_type"] == "qwen2", config["model_type"]
blocks = config["num_hidden_layers"]
writer = gguf.GGUFWriter(out, "qwen2")
writer.add_context_length(config["max_position_embeddings"])
writer.add_embedding_length(config["hidden_size"])
writer.add_block_count(blocks)
writer.add_feed_forward_length(config["intermediate_size"])
writer.add_head_count(config["num_attention_heads"])
writer.add_head_count_kv(config["num_key_value_heads"])
writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
writer.add_rope_freq_base(config.get("rope_theta") or config["rope_parameters"]["rope_theta"])
writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
writer.add_vocab_size(config["vocab_size"])
writer.add_tokenizer_model("none")

names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, blocks)
for name, tensor in load_file(folder / "model.safetensors").items():
    if name == "lm_head.weight" and config["tie_word_embeddings"]:
        continue
    name = names.get_name(name, try_suffixes=(".weight", ".bias"))
    if tensor.ndim == 1:
        writer.add_tensor(name, tensor.float().numpy())
    else:
        raw = tensor.bfloat16().contiguous().view(torch.uint8).numpy()
        writer.add_tensor(name, raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
