# Trains the embedded base model and its tokenizer, and writes model/ (a Hugging Face directory, bf16).
#
# Corpus: the prose and code of the documentation that ships with the Rust toolchain (`rustup component add rust-docs`),
# MIT OR Apache-2.0. The model never sees data/: what it knows about the dataset it learns in fine-tuning.
#
# Pinned: Python 3.12, torch 2.15.0, transformers 5.23.0, tokenizers 0.23, safetensors 0.8; rust-docs 1.95.0.
# Run with: python3 train_base.py   (two cores, see README.md for the time)

import argparse
import hashlib
import json
import math
import os
import random
import re
import subprocess
import time
from html.parser import HTMLParser
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: a busy machine slows spinning threads fivefold
import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import Qwen2Config, Qwen2ForCausalLM

SEED = 0
VOCAB = 2048
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CONTEXT = 128
BATCH = 32
BOOKS = ["book", "cargo", "clippy", "edition-guide", "embedded-book", "error_codes", "nomicon", "reference",
         "rust-by-example", "rustc", "rustdoc", "std", "style-guide", "unstable-book"]

# Translations, and editions that only point to another.
ELSEWHERE = {"es", "ja", "ko", "zh", "2018-edition", "second-edition", "first-edition"}

# The split of Qwen2: contractions, words, single digits, runs of punctuation, white space.
SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class Text(HTMLParser):
    """The text of a page: <main> of a book, the doc blocks of an API page. Blocks end in a newline."""

    BLOCKS = {"p", "li", "h1", "h2", "h3", "h4", "pre", "tr", "dt", "dd", "div", "blockquote"}
    VOID = {"br", "img", "input", "link", "meta", "hr", "wbr", "source", "col", "area"}
    SKIP = {"script", "style", "nav", "button", "svg"}

    def __init__(self, api):
        super().__init__(convert_charrefs=True)
        self.api, self.out, self.open = api, [], []
        self.inside = self.skipped = self.pre = 0

    def handle_starttag(self, tag, attributes):
        if tag == "br":
            self.out.append("\n")
        if tag in self.VOID:
            return
        names = (dict(attributes).get("class") or "").split()
        inside = "docblock" in names if self.api else tag == "main"
        skipped = tag in self.SKIP or "boring" in names or "tooltip" in names or "anchor" in names
        self.open.append((tag, inside, skipped))
        self.inside += inside
        self.skipped += skipped
        self.pre += tag == "pre"

    def handle_endtag(self, tag):
        if tag in self.VOID or not any(t == tag for t, _, _ in self.open):
            return
        ends = tag in self.BLOCKS and self.inside
        while True:
            name, inside, skipped = self.open.pop()
            self.inside -= inside
            self.skipped -= skipped
            self.pre -= name == "pre"
            if name == tag:
                break
        if ends:
            self.out.append("\n" if tag in ("li", "tr", "dt", "dd", "div") else "\n\n")

    def handle_data(self, data):
        if not self.inside or self.skipped:
            return
        if not self.pre:  # white space is one space, and none at the start of a line
            data = re.sub(r"\s+", " ", data)
            if not self.out or self.out[-1].endswith("\n"):
                data = data.lstrip(" ")
        if data:
            self.out.append(data)


def page_text(path, api):
    parser = Text(api)
    parser.feed(path.read_text(encoding="utf-8", errors="replace"))
    text = "".join(parser.out).replace("\u00a0", " ").replace("Read more", "")
    text = re.sub(r"[ \t]+\n", "\n", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def corpus():
    """The documentation's pages, each paragraph once."""
    root = Path(subprocess.check_output(["rustc", "--print", "sysroot"], text=True).strip()) / "share/doc/rust/html"
    seen, pages = set(), []
    for book in BOOKS:
        for path in sorted((root / book).rglob("*.html")):
            relative = path.relative_to(root / book)
            if path.name in ("print.html", "404.html", "toc.html") or relative.parts[0] in ELSEWHERE:
                continue
            kept = []
            for paragraph in page_text(path, api=book == "std").split("\n\n"):
                if paragraph not in seen:
                    seen.add(paragraph)
                    kept.append(paragraph)
            if sum(map(len, kept)) > 100:
                pages.append("\n\n".join(kept))
    return pages


def train_tokenizer(pages):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(pages, trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=SPECIAL, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False))
    return tokenizer


def config():
    return Qwen2Config(
        vocab_size=VOCAB, hidden_size=192, intermediate_size=384, num_hidden_layers=4, num_attention_heads=6,
        num_key_value_heads=2, max_position_embeddings=1024, rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        rms_norm_eps=1e-6, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0, pad_token_id=0, dtype="float32")


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--steps", type=int, default=1500)
    arguments.add_argument("--lr", type=float, default=4e-3)
    arguments.add_argument("--output", type=Path, default=Path(__file__).parent / "model")
    arguments = arguments.parse_args()
    torch.manual_seed(SEED)
    torch.set_num_threads(2)

    pages = corpus()
    random.Random(SEED).shuffle(pages)
    digest = hashlib.sha256("\0".join(pages).encode()).hexdigest()
    print(f"corpus: {len(pages)} pages, {sum(len(p.encode()) for p in pages)} bytes, sha256 {digest}", flush=True)
    tokenizer = train_tokenizer(pages)
    ids = []
    for encoding in tokenizer.encode_batch(pages):
        ids += encoding.ids + [0]
    held_out = torch.tensor(ids[: 64 * CONTEXT]).view(-1, CONTEXT)
    ids = torch.tensor(ids[64 * CONTEXT:])
    print(f"tokens: {len(ids)}", flush=True)

    model = Qwen2ForCausalLM(config()).train()
    print(f"parameters: {sum(p.numel() for p in model.parameters())}", flush=True)
    matrices = [p for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.dim() == 1 or "embed" in n]
    optimizers = [
        torch.optim.Muon(matrices, lr=arguments.lr, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=arguments.lr, weight_decay=0.0, betas=(0.9, 0.95), fused=True),
    ]

    def loss_of(batch):
        with torch.autocast("cpu", torch.bfloat16, enabled=model.training):
            logits = model(input_ids=batch).logits
        return torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, VOCAB).float(), batch[:, 1:].reshape(-1))

    # Windows start anywhere; each pass over the corpus shifts them.
    draw = random.Random(SEED)
    queue, started, mean = [], time.time(), None
    for step in range(arguments.steps):
        while len(queue) < BATCH:
            starts = list(range(draw.randrange(CONTEXT), len(ids) - CONTEXT, CONTEXT))
            draw.shuffle(starts)
            queue += starts
        batch = torch.stack([ids[s: s + CONTEXT] for s in (queue.pop() for _ in range(BATCH))])
        warm = min(1.0, (step + 1) / 60)
        rate = arguments.lr * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / arguments.steps)))
        loss = loss_of(batch)
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
        mean = loss.item() if mean is None else 0.98 * mean + 0.02 * loss.item()
        if (step + 1) % 50 == 0 or step == 0:
            print(f"step {step + 1}: loss {mean:.3f}, {time.time() - started:.0f} s", flush=True)

    model = model.to(torch.bfloat16).float().eval()
    with torch.no_grad():
        final = torch.stack([loss_of(b) for b in held_out.split(BATCH)]).mean().item()
    print(f"done: {arguments.steps} steps, training loss {mean:.3f}, held-out loss {final:.3f}, "
          f"{time.time() - started:.0f} s", flush=True)

    write(arguments.output, model, tokenizer)


def write(folder, model, tokenizer):
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {n: t.to(torch.bfloat16).contiguous() for n, t in model.state_dict().items() if n != "lm_head.weight"}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer = json.loads(tokenizer.to_str())
    files = {
        "config.json": {**model.config.to_diff_dict(), "architectures": ["Qwen2ForCausalLM"], "dtype": "bfloat16"},
        "generation_config.json": {"bos_token_id": 0, "eos_token_id": [0, 2], "pad_token_id": 0},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": False, "add_prefix_space": False,
            "bos_token": None, "eos_token": SPECIAL[0], "pad_token": SPECIAL[0],
            "additional_special_tokens": SPECIAL[1:], "clean_up_tokenization_spaces": False,
            "model_max_length": model.config.max_position_embeddings, "chat_template": CHAT_TEMPLATE},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (folder / "tokenizer.json").write_text(
        json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
    for path in sorted(folder.iterdir()):
        path.chmod(0o644)
        print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
