"""Makes the golden models, adapters and training runs beside this file: tiny random models and what HF says of them.

Every random number comes from a seed named after its case, so a case can be added without changing the others.
Expected values are computed from the files as they were saved, with eager attention in f32 on one thread.
"""

import copy
import json
import math
import os
import shutil
import zlib
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import peft
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config
from transformers import optimization

HERE = Path(__file__).resolve().parent
VERSIONS = {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__, "peft": peft.__version__}
PINNED = dict(line.split("==") for line in (HERE / "requirements.txt").read_text().split())
assert VERSIONS == PINNED, f"golden files need {PINNED}, found {VERSIONS}"

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)
transformers.utils.logging.disable_progress_bar()


def main():
    for part in ("models", "adapters", "training"):
        shutil.rmtree(HERE / part, ignore_errors=True)
    for name in MODELS:
        make_model(name)
    for name in ADAPTERS:
        make_adapter(name)
    for name in TRAINING:
        make_training(name)
    write_json(HERE / "schedules.json", schedules())
    write_json(HERE / "configs.json", configs())


# ---------------------------------------------------------------------------------------------------------- models

TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SHAPE = {
    "qwen2": dict(vocab_size=101, hidden_size=40, intermediate_size=53, num_hidden_layers=3, num_attention_heads=5, num_key_value_heads=1),
    "qwen2-old": dict(vocab_size=97, hidden_size=36, intermediate_size=47, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2),
    "qwen2-window": dict(vocab_size=89, hidden_size=28, intermediate_size=41, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1),
    "llama": dict(vocab_size=103, hidden_size=48, intermediate_size=59, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2),
    "llama3": dict(vocab_size=101, hidden_size=36, intermediate_size=51, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=1),
    "llama-linear": dict(vocab_size=95, hidden_size=40, intermediate_size=45, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4),
    "llama-bias": dict(vocab_size=91, hidden_size=30, intermediate_size=43, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=1, head_dim=14),
    "mistral": dict(vocab_size=99, hidden_size=32, intermediate_size=49, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=10),
    "mistral-full": dict(vocab_size=93, hidden_size=36, intermediate_size=37, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=3),
    "mistral-long": dict(vocab_size=61, hidden_size=24, intermediate_size=29, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8),
    "qwen3": dict(vocab_size=101, hidden_size=34, intermediate_size=55, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=10),
    "qwen3-eps": dict(vocab_size=67, hidden_size=26, intermediate_size=31, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=1, head_dim=8),
    "qwen3-untied": dict(vocab_size=87, hidden_size=40, intermediate_size=39, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=1, head_dim=6),
}

# A config as transformers 5 writes it, or as older versions did: a dict with its `model_type`.
MODELS = {
    "qwen2": Qwen2Config(
        **SHAPE["qwen2"], **TOKENS, max_position_embeddings=64, tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 1e6}
    ),
    # The window must be ignored: `use_sliding_window` is false.
    "qwen2-old": dict(
        model_type="qwen2", architectures=["Qwen2ForCausalLM"], **SHAPE["qwen2-old"], bos_token_id=1, eos_token_id=2, attention_dropout=0.0,
        hidden_act="silu", initializer_range=0.02, max_position_embeddings=64, max_window_layers=1, rms_norm_eps=1e-5, rope_theta=20000.0,
        sliding_window=5, tie_word_embeddings=False, torch_dtype="float32", transformers_version="4.43.1", use_cache=True, use_sliding_window=False,
    ),
    # Layer 0 sees everything, layers 1 and 2 slide.
    "qwen2-window": Qwen2Config(
        **SHAPE["qwen2-window"], **TOKENS, max_position_embeddings=64, use_sliding_window=True, sliding_window=5, max_window_layers=1,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    ),
    "qwen2-bf16": Qwen2Config(
        **SHAPE["qwen2"], **TOKENS, max_position_embeddings=64, tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 1e6}
    ),
    "llama": LlamaConfig(
        **SHAPE["llama"], **TOKENS, max_position_embeddings=64, rms_norm_eps=1e-5, rope_parameters={"rope_type": "default", "rope_theta": 1e4}
    ),
    # The wavelengths 2π·500^(i/6) are 6.3, 17.7, 50, 140, …: one is kept, one smoothed, the rest stretched.
    "llama3": dict(
        model_type="llama", architectures=["LlamaForCausalLM"], **SHAPE["llama3"], bos_token_id=1, eos_token_id=[2, 7], attention_bias=False,
        attention_dropout=0.0, head_dim=12, hidden_act="silu", initializer_range=0.02, max_position_embeddings=256, mlp_bias=False, pretraining_tp=1,
        rms_norm_eps=1e-5, rope_scaling=dict(factor=8.0, high_freq_factor=4.0, low_freq_factor=1.0, original_max_position_embeddings=32, rope_type="llama3"),
        rope_theta=500.0, tie_word_embeddings=True, torch_dtype="float32", transformers_version="4.45.0", use_cache=True,
    ),
    "llama-linear": LlamaConfig(
        **SHAPE["llama-linear"], **TOKENS, max_position_embeddings=64, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    ),
    "llama-bias": LlamaConfig(
        **SHAPE["llama-bias"], **TOKENS, max_position_embeddings=64, attention_bias=True, mlp_bias=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    ),
    "llama-sharded": LlamaConfig(
        **SHAPE["llama"], **TOKENS, max_position_embeddings=64, rms_norm_eps=1e-5, rope_parameters={"rope_type": "default", "rope_theta": 1e4}
    ),
    "mistral": MistralConfig(
        **SHAPE["mistral"], **TOKENS, max_position_embeddings=64, sliding_window=6, rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    ),
    # Old files say `head_dim: null` and `sliding_window: null`.
    "mistral-full": dict(
        model_type="mistral", architectures=["MistralForCausalLM"], **SHAPE["mistral-full"], bos_token_id=1, eos_token_id=2, attention_dropout=0.0,
        head_dim=None, hidden_act="silu", initializer_range=0.02, max_position_embeddings=64, rms_norm_eps=1e-5, rope_theta=1000000.0, sliding_window=None,
        tie_word_embeddings=False, torch_dtype="float32", transformers_version="4.42.0", use_cache=True,
    ),
    # Longer than any tile of a kernel, and the window begins and ends inside one.
    "mistral-long": MistralConfig(
        **SHAPE["mistral-long"], **TOKENS, max_position_embeddings=256, sliding_window=71,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    ),
    "qwen3": Qwen3Config(
        **SHAPE["qwen3"], **TOKENS, max_position_embeddings=64, tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 1e6}
    ),
    # Large enough that every norm shows it.
    "qwen3-eps": Qwen3Config(
        **SHAPE["qwen3-eps"], **TOKENS, max_position_embeddings=64, rms_norm_eps=1e-2,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    ),
    "qwen3-untied": Qwen3Config(
        **SHAPE["qwen3-untied"], **TOKENS, max_position_embeddings=64, rope_parameters={"rope_type": "default", "rope_theta": 1e4}
    ),
}

# The seed's name where it is not the model's own: the same weights again, or weights whose greedy tokens vary.
SEED = {"llama-sharded": "llama", "qwen2-bf16": "qwen2-bf16 1", "llama-bias": "llama-bias 1", "qwen3-eps": "qwen3-eps 1"}

# Tokens per row of `input_ids` where they are not 23.
LENGTH = {"mistral-long": 149}

GENERATION = {
    "qwen2": GenerationConfig(bos_token_id=1, eos_token_id=[2, 7], pad_token_id=0, do_sample=True, temperature=0.7, top_k=20, top_p=0.8, repetition_penalty=1.05)
}


def make_model(name):
    directory = HERE / "models" / name
    old = MODELS[name] if isinstance(MODELS[name], dict) else None
    config = transformers.AutoConfig.for_model(**copy.deepcopy(old)) if old else MODELS[name]
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    draw_weights(model, seeded(SEED.get(name, name)))
    if name == "qwen2-bf16":
        model = model.to(torch.bfloat16)
    model.generation_config = GENERATION.get(name, GenerationConfig(**TOKENS))
    model.save_pretrained(directory, max_shard_size="72KB" if name == "llama-sharded" else "1GB")
    if old:
        write_json(directory / "config.json", old)

    model = load_model(name)
    rng = seeded(f"{name} inputs")
    vocab = model.config.vocab_size
    ids = tokens(rng, vocab, 2, LENGTH.get(name, 23))
    prompt = tokens(rng, vocab, 1, 7)
    padded, mask = tokens(rng, vocab, 3, 11), torch.ones(3, 11, dtype=torch.int64)
    for row, pads in enumerate((4, 0, 7)):
        mask[row, :pads] = 0
    with torch.no_grad():
        out = model(ids, labels=ids)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        padded_last = model(padded, attention_mask=mask, position_ids=positions).logits[:, -1]
        for row in range(3):
            alone = model(padded[row : row + 1, mask[row] == 1]).logits[0, -1]
            assert (alone - padded_last[row]).abs().max() < 1e-4, f"{name}: padding changes row {row}"
        greedy = greedy_tokens(name, model, prompt, 24)
    save(
        directory / "expected.safetensors",
        input_ids=as_u32(ids),
        logits=out.logits,
        loss=out.loss,
        prompt=as_u32(prompt[0]),
        greedy=as_u32(greedy),
        padded_ids=as_u32(padded),
        attention_mask=as_u32(mask),
        padded_last_logits=padded_last,
    )


def draw_weights(model, rng):
    """Every parameter random and of a size that makes it matter: logits are O(1), scores and biases too."""
    for name, p in sorted(model.named_parameters()):
        x = torch.randn(p.shape, generator=rng)
        if name.endswith("norm.weight"):
            x = 1 + 0.1 * x
        elif name.endswith("bias"):
            x = 0.3 * x
        elif "embed_tokens" in name or "lm_head" in name:
            x = x * 2 / math.sqrt(p.shape[1])
        elif "q_proj" in name or "k_proj" in name:
            x = x * 1.5 / math.sqrt(p.shape[1])
        else:
            x = x / math.sqrt(p.shape[1])
        p.data.copy_(x)


def load_model(name):
    return AutoModelForCausalLM.from_pretrained(HERE / "models" / name, dtype=torch.float32, attn_implementation="eager").eval()


def greedy_tokens(name, model, ids, count):
    """The most likely continuation, past any end-of-sequence token, from whole forward passes without a cache."""
    start = ids.shape[1]
    for _ in range(count):
        logits = model(ids).logits[0, -1]
        best, second = logits.topk(2).values
        assert best - second > 1e-3, f"{name}: the best two logits are {best - second} apart: change its seed"
        ids = torch.cat([ids, logits.argmax().view(1, 1)], dim=1)
    continuation = ids[0, start:]
    assert len(set(continuation.tolist())) >= 6, f"{name}: greedy tokens repeat: {continuation.tolist()}"
    return continuation


# -------------------------------------------------------------------------------------------------------- adapters

ALL = dict(target_modules="all-linear")
ADAPTERS = {
    "lora-qv": ("qwen2", dict(r=3, lora_alpha=7, target_modules=["q_proj", "v_proj"])),
    "lora-all": ("llama", dict(r=3, lora_alpha=6, **ALL)),
    "lora-mistral": ("mistral", dict(r=5, lora_alpha=5, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])),
    "lora-qwen3": ("qwen3", dict(r=2, lora_alpha=3, **ALL)),
    "rslora": ("llama3", dict(r=5, lora_alpha=4, use_rslora=True, target_modules=["q_proj", "o_proj", "up_proj"])),
    "dora": ("qwen2", dict(r=3, lora_alpha=5, use_dora=True, **ALL)),
    "dora-rslora": ("qwen2", dict(r=3, lora_alpha=4, use_dora=True, use_rslora=True, target_modules=["q_proj", "o_proj", "up_proj"])),
    "dora-llama": ("llama-bias", dict(r=2, lora_alpha=4, use_dora=True, **ALL)),
    # The first key that matches a module counts, so layer 0 has `q_proj` of rank 5 and layer 1 of rank 2.
    "patterns": (
        "llama",
        dict(
            r=3,
            lora_alpha=6,
            target_modules=["q_proj", "v_proj", "gate_proj", "up_proj", "down_proj"],
            rank_pattern={"model.layers.1.self_attn.q_proj": 2, "q_proj": 5, r"layers\.\d+\.mlp\.(gate|up)_proj": 4},
            alpha_pattern={"v_proj": 9, r".*\.1\.mlp\.\w+": 2},
        ),
    ),
    "regex": ("qwen2", dict(r=2, lora_alpha=4, target_modules=r".*\.layers\.[02]\.(self_attn\.(q|o)_proj|mlp\.down_proj)")),
    "layers": ("qwen2", dict(r=4, lora_alpha=8, target_modules=["k_proj", "down_proj"], layers_to_transform=[0, 2])),
}


def make_adapter(name):
    directory = HERE / "adapters" / name
    base, options = ADAPTERS[name]
    save_adapter(directory, base, options, seeded(f"adapter {name}"))
    write_json(directory / "expected.json", {"base": base})

    model = load_adapter(directory, base)
    rng = seeded(f"adapter {name} inputs")
    ids = tokens(rng, model.config.vocab_size, 2, 23)
    labels = ids.clone()
    labels[0, :6] = -100
    labels[1, 9:12] = -100
    labels[1, -2:] = -100
    out = model(ids, labels=labels)
    out.loss.backward()
    expected = {f"grad.{key}": p.grad for key, p in adapter_parameters(model).items()}
    assert all(g.abs().max() > 1e-4 for g in expected.values()), f"{name}: a gradient is nearly zero"
    with torch.no_grad():
        plain = load_model(base)(ids).logits
        assert (plain - out.logits).abs().max() > 0.1, f"{name}: the adapter changes nothing"
        merged = model.merge_and_unload()(ids).logits
        assert (merged - out.logits).abs().max() < 1e-4, f"{name}: merging changes the logits"
    save(directory / "expected.safetensors", input_ids=as_u32(ids), labels=labels, logits=out.logits, loss=out.loss, **expected)


def save_adapter(directory, base, options, rng):
    """Saves an adapter as PEFT does, with random A, B and magnitudes."""
    config = LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.0, bias="none", **options)
    model = get_peft_model(load_model(base), config)
    for key, p in sorted(adapter_parameters(model).items()):
        x = torch.randn(p.shape, generator=rng)
        if "magnitude" in key:
            p.data *= 1 + 0.1 * x
        else:
            p.data.copy_(x / math.sqrt(p.shape[1]) if "lora_A" in key else 0.1 * x)
    model.save_pretrained(directory)
    (directory / "README.md").unlink()
    path = directory / "adapter_config.json"
    saved = json.loads(path.read_text())
    # PEFT writes the base's path, and a set in no fixed order.
    saved["base_model_name_or_path"] = base
    if isinstance(saved["target_modules"], list):
        saved["target_modules"].sort()
    write_json(path, saved)

    files = load_file(directory / "adapter_model.safetensors")
    parameters = adapter_parameters(model)
    assert files.keys() == parameters.keys() and all(files[k].equal(parameters[k]) for k in files)


def load_adapter(directory, base):
    return PeftModel.from_pretrained(load_model(base), directory, is_trainable=True)


def adapter_parameters(model):
    """The trainable parameters by their key in adapter_model.safetensors."""
    key = lambda name: name.replace("magnitude_vector.default.weight", "magnitude_vector").replace(".default.", ".")
    return {key(name): p for name, p in model.named_parameters() if p.requires_grad}


# -------------------------------------------------------------------------------------------------------- training

STEPS = 10
DEFAULTS = dict(lr=3e-3, betas=[0.9, 0.999], eps=1e-8, weight_decay=0.01, max_grad_norm=None, micro_batches=1, warmup=None)
TRAINING = {
    "lora-qv": ("lora-qv", {}),
    "lora-all": ("lora-all", {}),
    "rslora": ("rslora", {}),
    "dora": ("dora", {}),
    "clip": ("lora-qv", dict(max_grad_norm=0.5)),
    "accum": ("lora-qv", dict(micro_batches=2)),
    "schedule": ("lora-qv", dict(warmup=3)),
}


def make_training(name):
    directory = HERE / "training" / name
    adapter, options = TRAINING[name]
    base, lora = ADAPTERS[adapter]
    plan = {"base": base, "steps": STEPS, **DEFAULTS, **options}
    # Linear from 0 to lr, then linear to 0 after the last step.
    plan["lr_per_step"] = schedule_values("linear", plan["lr"], plan["warmup"], STEPS, STEPS) if plan["warmup"] else [plan["lr"]] * STEPS
    save_adapter(directory / "start", base, lora, seeded(f"training {name}"))
    write_json(directory / "training.json", plan)

    rng = seeded(f"training {name} batches")
    batches = []
    for i in range(STEPS * plan["micro_batches"]):
        rows, length = 2 + i % 2, 5 + 2 * int(torch.randint(0, 5, (), generator=rng))
        ids = tokens(rng, SHAPE[base]["vocab_size"], rows, length)
        labels = ids.clone()
        labels[0, : 1 + i % 3] = -100
        labels[-1, length - 2 :] = -100
        batches.append((ids, labels))
    save(
        directory / "batches.safetensors",
        **{f"batch.{i}.input_ids": as_u32(ids) for i, (ids, _) in enumerate(batches)},
        **{f"batch.{i}.labels": labels for i, (_, labels) in enumerate(batches)},
    )
    losses, norms, final = train(directory / "start", plan, batches, torch.float32)
    if plan["max_grad_norm"]:
        assert sum(n > plan["max_grad_norm"] for n in norms) >= STEPS // 2, f"{name}: hardly anything is clipped: {norms}"
    save(directory / "expected.safetensors", losses=torch.tensor(losses), grad_norms=torch.tensor(norms), **{f"final.{k}": p for k, p in final.items()})

    # How far rounding carries a run: the tolerance of its test must lie well above.
    losses64, norms64, final64 = train(directory / "start", plan, batches, torch.float64)
    relative = lambda a, b: max(abs(x - y) / abs(y) for x, y in zip(a, b))
    moved = max((final[k] - final64[k]).abs().max().item() for k in final)
    print(f"training/{name}: f32 and f64 differ in losses by {relative(losses, losses64):.1e}, norms {relative(norms, norms64):.1e}, parameters {moved:.1e}")


def train(start, plan, batches, dtype):
    model = load_adapter(start, plan["base"]).to(dtype)
    parameters = adapter_parameters(model)
    optimizer = torch.optim.AdamW(parameters.values(), lr=plan["lr"], betas=plan["betas"], eps=plan["eps"], weight_decay=plan["weight_decay"])
    losses, norms = [], []
    for step, lr in enumerate(plan["lr_per_step"]):
        micro = batches[step * plan["micro_batches"] : (step + 1) * plan["micro_batches"]]
        # The mean over the supervised tokens of all micro-batches together.
        count = sum(int((labels[:, 1:] != -100).sum()) for _, labels in micro)
        optimizer.zero_grad()
        total = 0.0
        for ids, labels in micro:
            loss = model(ids, labels=labels, num_items_in_batch=count).loss
            loss.backward()
            total += loss.item()
        norms.append(torch.nn.utils.clip_grad_norm_(parameters.values(), plan["max_grad_norm"] or math.inf).item())
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        losses.append(total)
    return losses, norms, {key: p.detach().clone() for key, p in parameters.items()}


# ------------------------------------------------------------------------------------------------------- schedules


def schedules():
    """Learning rates by 0-based step, two steps past the end."""
    cases = []
    for kind in ("constant", "linear", "cosine", "cosine_with_min_lr"):
        for warmup, total, lr in ((0, 7, 1.0), (3, 10, 3e-3), (5, 23, 1e-4), (4, 4, 2e-4)):
            min_lr = lr / 10 if kind == "cosine_with_min_lr" else None
            values = schedule_values(kind, lr, warmup, total, total + 2, min_lr)
            cases.append({"kind": kind, "warmup": warmup, "total": total, "lr": lr, "min_lr": min_lr, "values": values})
    return cases


def schedule_values(kind, lr, warmup, total, count, min_lr=None):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = {
        "constant": lambda: optimization.get_constant_schedule_with_warmup(optimizer, warmup),
        "linear": lambda: optimization.get_linear_schedule_with_warmup(optimizer, warmup, total),
        "cosine": lambda: optimization.get_cosine_schedule_with_warmup(optimizer, warmup, total),
        "cosine_with_min_lr": lambda: optimization.get_cosine_with_min_lr_schedule_with_warmup(optimizer, warmup, total, min_lr=min_lr),
    }[kind]()
    values = []
    for _ in range(count):
        values.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return values


# --------------------------------------------------------------------------------------------------------- configs

REQUIRED = dict(vocab_size=11, hidden_size=256, intermediate_size=8, num_hidden_layers=2, num_attention_heads=32)
LLAMA31 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)
SLIDING = dict(use_sliding_window=True, num_hidden_layers=30)

# Beside the architecture and REQUIRED: what a file may say or leave out.
CONFIGS = [
    *(
        (kind, fields)
        for kind in ("llama", "mistral", "qwen2", "qwen3")
        for fields in (
            {},
            dict(num_key_value_heads=4, rms_norm_eps=3e-5, rope_theta=70000.0, max_position_embeddings=4096),
            dict(rope_parameters=dict(rope_type="default", rope_theta=900.0), head_dim=6),
            dict(rope_scaling=dict(type="linear", factor=3.0), rope_theta=500.0),
        )
    ),
    *((kind, dict(num_key_value_heads=None)) for kind in ("llama", "qwen2", "qwen3")),
    ("llama", dict(attention_bias=True)),
    ("llama", dict(mlp_bias=True)),
    ("llama", dict(head_dim=64, rope_theta=500000.0, rope_scaling=LLAMA31)),
    ("llama", dict(head_dim=128, rope_theta=500000.0, rope_scaling=LLAMA31)),
    ("llama", dict(head_dim=128, rope_theta=500000.0, rope_scaling={**LLAMA31, "factor": 32.0, "low_freq_factor": 1.7, "high_freq_factor": 9.0})),
    ("mistral", dict(sliding_window=None)),
    ("mistral", dict(sliding_window=9, head_dim=None)),
    ("qwen3", dict(attention_bias=True)),
    *(
        (kind, fields)
        for kind in ("qwen2", "qwen3")
        for fields in (
            SLIDING,
            dict(use_sliding_window=False, sliding_window=9, max_window_layers=0),
            dict(use_sliding_window=True, sliding_window=9, max_window_layers=1),
            dict(use_sliding_window=True, sliding_window=9, max_window_layers=0),
            dict(use_sliding_window=True, sliding_window=None, max_window_layers=0),
            dict(use_sliding_window=True, sliding_window=9, max_window_layers=2, layer_types=["sliding_attention", "full_attention"]),
        )
    ),
]


def configs():
    """Files, and what a model made from each has: asked of its modules, not of its config."""
    cases = []
    for kind, fields in CONFIGS:
        file = {"model_type": kind, **REQUIRED, **fields}
        config = transformers.AutoConfig.for_model(**copy.deepcopy(file))
        model = AutoModelForCausalLM.from_config(config).model
        attention, mlp = model.layers[0].self_attn, model.layers[0].mlp
        # Mistral's layers take the window from the config, those of Qwen have their own.
        window = lambda layer: layer.self_attn.sliding_window if kind.startswith("qwen") else getattr(config, "sliding_window", None)
        expected = {
            "num_key_value_heads": attention.k_proj.out_features // attention.head_dim,
            "head_dim": attention.head_dim,
            "rms_norm_eps": model.norm.variance_epsilon,
            "max_position_embeddings": config.max_position_embeddings,
            "qkv_bias": attention.k_proj.bias is not None,
            "o_bias": attention.o_proj.bias is not None,
            "mlp_bias": mlp.down_proj.bias is not None,
            "qk_norm": hasattr(attention, "q_norm"),
            "sliding_windows": [window(layer) for layer in model.layers],
            "inverse_frequencies": model.rotary_emb.inv_freq.tolist(),
        }
        cases.append({"config": file, "expected": expected})
    return cases


# --------------------------------------------------------------------------------------------------- files and seeds


def seeded(name):
    return torch.Generator().manual_seed(zlib.crc32(name.encode()))


def tokens(rng, vocab, rows, length):
    return torch.randint(0, vocab, (rows, length), generator=rng)


def as_u32(ids):
    return ids.to(torch.uint32)


def save(path, **tensors):
    save_file({name: t.detach().clone().contiguous() for name, t in tensors.items()}, path)


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
