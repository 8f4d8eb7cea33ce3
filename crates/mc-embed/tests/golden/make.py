"""Makes the golden files beside this one: tiny random encoders, and what sentence-transformers says of them.

With names as arguments only those cases are made, with none all of them.
Every random number comes from a seed named after its case, so a case can be added without changing the others.
Expected values are computed from the files as they were saved, with eager attention in f32 on one thread.
"""

import json
import os
import shutil
import sys
import zlib
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import sentence_transformers
import torch
import transformers
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder, SentenceTransformer
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    CamembertConfig,
    DistilBertConfig,
    LlamaConfig,
    MistralConfig,
    ModernBertConfig,
    MPNetConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
    XLMRobertaConfig,
)

HERE = Path(__file__).resolve().parent
VERSIONS = {
    "torch": torch.__version__.split("+")[0],
    "transformers": transformers.__version__,
    "sentence-transformers": sentence_transformers.__version__,
}
PINNED = dict(line.split("==") for line in (HERE / "requirements.txt").read_text().split())
assert VERSIONS == PINNED, f"golden files need {PINNED}, found {VERSIONS}"

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)
transformers.utils.logging.disable_progress_bar()

# -------------------------------------------------------------------------------------------------------------- texts

WORDS = (
    "river mountain cloud stone bread window letter garden winter summer market engine silver copper violin candle metal "
    "forest bridge harbour paper mirror orange planet signal thunder whisper yellow zebra anchor basket circle"
).split()


def sentence(rng, n):
    return " ".join(WORDS[int(i)] for i in torch.randint(0, len(WORDS), (n,), generator=rng))


def seeded(name):
    return torch.Generator().manual_seed(zlib.crc32(name.encode()))


RNG = seeded("texts")
CORPUS = [sentence(RNG, 3 + i % 17) for i in range(400)]
TEXTS = [
    "metal candle",
    "The river flows below the bridge, and the mountain stands in a cloud.",
    "",
    "x",
    sentence(RNG, 9),
    "Ünïcödé: ça va? 北京 — naïve ÉCLAIR",
    sentence(RNG, 17),
    sentence(RNG, 140),
    "  two   spaces\tand a tab\nand a line  ",
    sentence(RNG, 31),
    "bread!",
    sentence(RNG, 60),
    sentence(RNG, 9),
    # Words of a tokenizer's own, padding among them.
    "river <pad> stone [PAD] <pad> bread",
]
PAIRS = [
    ("which metal is orange?", [TEXTS[1], "", "copper", sentence(RNG, 40), "Zebra window", sentence(RNG, 12)]),
    (sentence(RNG, 45), [sentence(RNG, 3), sentence(RNG, 70)]),
]

# --------------------------------------------------------------------------------------------------------- tokenizers


def wordpiece():
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=150, special_tokens=special, show_progress=False))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer, dict(pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]")


def cased_wordpiece():
    tokenizer, names = wordpiece()
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    return tokenizer, names


def left_wordpiece():
    tokenizer, names = wordpiece()
    return tokenizer, names | {"truncation_side": "left"}


def mpnet_wordpiece():
    """MPNet's special tokens and places: <s> 0, <pad> 1."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["<s>", "<pad>", "</s>", "[UNK]", "<mask>"]
    tokenizer.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=150, special_tokens=special, show_progress=False))
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer, dict(bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="[UNK]", cls_token="<s>", sep_token="</s>", mask_token="<mask>")


def unigram():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(" {2,}", " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.UnigramTrainer(vocab_size=140, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer, dict(bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>", cls_token="<s>", sep_token="</s>", mask_token="<mask>")


def unigram_spaces():
    """As a converted XLM-RoBERTa: runs of spaces collapse, and white space is split by nothing but Metaspace."""
    tokenizer, names = unigram()
    tokenizer.normalizer = normalizers.Replace(Regex(" {2,}"), " ")
    return tokenizer, names


def byte_level(special, **post):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(**post)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def modernbert_bpe():
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens = [("[CLS]", 2), ("[SEP]", 3)]
    tokenizer = byte_level(special, single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=tokens)
    return tokenizer, dict(pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]")


def qwen_bpe():
    special = ["<|endoftext|>", "<|im_end|>"]
    tokens = [("<|endoftext|>", 0)]
    tokenizer = byte_level(special, single="$A <|endoftext|>", pair="$A $B <|endoftext|>", special_tokens=tokens)
    return tokenizer, dict(pad_token="<|endoftext|>", eos_token="<|im_end|>", padding_side="left")


# ------------------------------------------------------------------------------------------------------------- models

BERT = dict(vocab_size=150, pad_token_id=0, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
OLD = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}


def bert(**changes):
    shape = dict(hidden_size=20, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64)
    return BertConfig(**{**BERT, **shape, **changes})


def roberta(kind=XLMRobertaConfig, **changes):
    shape = dict(vocab_size=140, hidden_size=24, intermediate_size=33, num_hidden_layers=2, num_attention_heads=3)
    places = dict(max_position_embeddings=82, type_vocab_size=1, pad_token_id=1, bos_token_id=0, eos_token_id=2, layer_norm_eps=1e-5)
    return kind(**{**shape, **places, **changes})


def modernbert(**changes):
    shape = dict(vocab_size=330, hidden_size=24, intermediate_size=27, num_hidden_layers=4, num_attention_heads=2, max_position_embeddings=300)
    tokens = dict(pad_token_id=0, cls_token_id=2, sep_token_id=3, bos_token_id=2, eos_token_id=3)
    return ModernBertConfig(**{**shape, **tokens, "local_attention": 11, **changes})


def distilbert(**changes):
    shape = dict(vocab_size=150, dim=20, hidden_dim=29, n_layers=2, n_heads=2, max_position_embeddings=90, pad_token_id=0)
    return DistilBertConfig(**{**shape, **changes})


# `drop` and `set` change fields of config.json as it was saved: files on the hub are older than the library, and leave out
# what was a default then. `named` changes those of tokenizer_config.json, and `truncation` that of tokenizer.json.
MODELS = {
    "bert-mean": dict(
        config=bert(), tokenizer=wordpiece, modules=["pooling", "normalize"], pooling=["mean"], old=True, length=48, no_folder=True,
    ),
    # Prompts, and a projection with bias and activation; the prompt named as default is used where none is asked for.
    "bert-cls-dense": dict(
        config=bert(hidden_size=28, num_attention_heads=2, layer_norm_eps=1e-3), tokenizer=wordpiece,
        modules=["pooling", "dense", "normalize"], pooling=["cls"], length=50, dense=[(28, 13, True, "torch.nn.modules.activation.Tanh")],
        prompts={"query": "which metal: ", "document": "paper ", "other": "silver "}, default="other",
    ),
    # Every mode at once, the approximate activation, one row of token types, names under a prefix, no maximum of its own.
    "bert-concat": dict(
        config=bert(hidden_act="gelu_new", type_vocab_size=1), tokenizer=cased_wordpiece, modules=["pooling"],
        pooling=["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"], old=True, prefix="bert.", lower=True,
    ),
    # Modes in an order of their own, of what follows the prompt.
    "bert-list": dict(
        config=bert(num_hidden_layers=1, hidden_size=12), tokenizer=wordpiece, modules=["pooling", "normalize"], include_prompt=False,
        pooling=["weightedmean", "max", "lasttoken", "cls", "mean_sqrt_len_tokens"], length=50,
        prompts={"query": "which metal: ", "document": "paper "},
    ),
    "bert-sqrt": dict(
        config=bert(num_hidden_layers=1), tokenizer=wordpiece, modules=["pooling", "dense", "dense"], pooling=["mean_sqrt_len_tokens"],
        length=30, dense=[(20, 20, False, "torch.nn.modules.linear.Identity"), (20, 19, True, "torch.nn.modules.activation.GELU")],
    ),
    "bert-bare": dict(config=bert(), tokenizer=wordpiece, modules=None),
    "mpnet-mean": dict(
        config=MPNetConfig(
            vocab_size=150, hidden_size=24, intermediate_size=31, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=182,
            pad_token_id=1, bos_token_id=0, eos_token_id=2, layer_norm_eps=1e-5,
        ),
        tokenizer=mpnet_wordpiece, modules=["pooling", "normalize"], pooling=["mean"], length=180, prefix="mpnet.",
        drop=["relative_attention_num_buckets", "pad_token_id"],
    ),
    # Prompts that are left out of the mean.
    "xlm-roberta-mean": dict(
        config=roberta(), tokenizer=unigram, modules=["pooling", "normalize"], pooling=["mean"], length=80, include_prompt=False,
        prompts={"query": "query: ", "passage": "passage: "},
    ),
    "roberta-cls": dict(config=roberta(RobertaConfig, type_vocab_size=2), tokenizer=unigram, modules=["pooling"], pooling=["cls"], old=True, length=70),
    "xlm-roberta-cls": dict(
        config=roberta(num_hidden_layers=1, hidden_size=18), tokenizer=unigram, modules=["pooling", "normalize"], pooling=["cls"], length=75,
    ),
    "distilbert-max": dict(config=distilbert(), tokenizer=wordpiece, modules=["pooling"], pooling=["max"], length=90),
    # All that is the transformer's in a folder of its own.
    "distilbert-folder": dict(
        config=distilbert(n_layers=1, dim=12), tokenizer=wordpiece, modules=["pooling", "normalize"], pooling=["mean"], length=40,
        prefix="distilbert.", folder="0_Transformer",
    ),
    # What a configuration of 2019 says, and arguments for the tokenizer, which go over its own file.
    "bert-old": dict(
        config=bert(num_hidden_layers=1, hidden_size=16), tokenizer=wordpiece, modules=["pooling"], pooling=["cls"], old=True,
        drop=["layer_norm_eps", "type_vocab_size", "hidden_act", "pad_token_id"],
        reading={"max_seq_length": 40, "tokenizer_args": {"model_max_length": 23, "truncation_side": "left"}},
    ),
    # The activation of a configuration that names none comes last.
    "bert-dense": dict(
        config=bert(num_hidden_layers=1, hidden_size=12), tokenizer=left_wordpiece, modules=["pooling", "dense", "dense", "dense"],
        pooling=["mean"], length=25,
        dense=[(12, 17, True, "torch.nn.modules.activation.ReLU"), (17, 11, True, "torch.nn.modules.activation.Sigmoid"), (11, 15, True, None)],
    ),
    "modernbert-weighted": dict(
        config=modernbert(), tokenizer=modernbert_bpe, modules=["pooling", "normalize"], pooling=["weightedmean"], length=250,
    ),
    "modernbert-bias": dict(
        config=modernbert(norm_bias=True, attention_bias=True, mlp_bias=True, num_hidden_layers=2, norm_eps=1e-3), tokenizer=modernbert_bpe,
        modules=["pooling"], pooling=["mean"], include_prompt=False, prompts={"query": "candle: ", "corpus": "paper: "}, length=120,
        prefix="model.",
    ),
    "modernbert-old": dict(
        config=modernbert(hidden_size=20, intermediate_size=19, local_attention=128), tokenizer=modernbert_bpe, modules=["pooling"], pooling=["cls"],
        drop=["rope_parameters", "layer_types", "local_attention", "global_attn_every_n_layers", "norm_eps", "norm_bias", "attention_bias", "mlp_bias"],
        set={"global_rope_theta": 800.0}, length=250,
    ),
    "qwen3-last": dict(
        config=Qwen3Config(
            vocab_size=330, hidden_size=24, intermediate_size=35, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
            max_position_embeddings=256, tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        ),
        tokenizer=qwen_bpe, modules=["pooling", "normalize"], pooling=["lasttoken"], length=100,
        prompts={"query": "Instruct: find the metal\nQuery:", "document": ""},
    ),
    "camembert-mean": dict(
        config=roberta(CamembertConfig, num_hidden_layers=1, hidden_size=12), tokenizer=unigram, modules=["pooling"], pooling=["mean"], length=60,
    ),
    "mistral-last": dict(
        config=MistralConfig(
            vocab_size=330, hidden_size=16, intermediate_size=21, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
            max_position_embeddings=256, sliding_window=None, tie_word_embeddings=True,
        ),
        tokenizer=qwen_bpe, modules=["pooling", "normalize"], pooling=["lasttoken"], length=90,
    ),
    "qwen2-mean": dict(
        config=Qwen2Config(
            vocab_size=330, hidden_size=16, intermediate_size=19, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
            max_position_embeddings=256, tie_word_embeddings=True,
        ),
        tokenizer=qwen_bpe, modules=["pooling", "normalize"], pooling=["mean"], length=90,
    ),
    # Padded on the left, and a prompt that is left out.
    "qwen2-list": dict(
        config=Qwen2Config(
            vocab_size=330, hidden_size=12, intermediate_size=17, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
            max_position_embeddings=256, tie_word_embeddings=True,
        ),
        tokenizer=qwen_bpe, modules=["pooling"], pooling=["weightedmean", "lasttoken", "cls"], include_prompt=False, length=70,
        prompts={"query": "candle: ", "document": "the paper "},
    ),
    # A tokenizer whose class says other things than tokenizer.json.
    "bert-class": dict(
        config=bert(num_hidden_layers=1, hidden_size=12), tokenizer=wordpiece, modules=["pooling"], pooling=["mean"], length=45,
        named={"tokenizer_class": "BertTokenizer", "do_lower_case": False, "tokenize_chinese_chars": False},
    ),
    # Runs of spaces collapse by a regular expression; it cuts at the start, as tokenizer.json alone says.
    "xlm-roberta-spaces": dict(
        config=roberta(num_hidden_layers=1, hidden_size=12), tokenizer=unigram_spaces, modules=["pooling"], pooling=["mean"], length=40,
        truncation={"direction": "Left", "max_length": 512, "strategy": "LongestFirst", "stride": 0},
    ),
    # What its tokenizer_config.json says of that goes before, and arguments for the tokenizer before both.
    "bert-sides": dict(
        config=bert(num_hidden_layers=1, hidden_size=12), tokenizer=left_wordpiece, modules=["pooling"], pooling=["mean"],
        truncation={"direction": "Right", "max_length": 512, "strategy": "LongestFirst", "stride": 0}, length=50,
        reading={"max_seq_length": 20, "processor_kwargs": {"model_max_length": 23}},
    ),
    "bert-sides-asked": dict(
        config=bert(num_hidden_layers=1, hidden_size=12), tokenizer=left_wordpiece, modules=["pooling"], pooling=["mean"], length=50,
        truncation={"direction": "Left", "max_length": 512, "strategy": "LongestFirst", "stride": 0},
        reading={"max_seq_length": 20, "tokenizer_args": {"truncation_side": "right"}},
    ),
    # What was saved to generate has no modules.
    "llama-bare": dict(
        config=LlamaConfig(
            vocab_size=330, hidden_size=16, intermediate_size=23, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
            max_position_embeddings=256, tie_word_embeddings=True,
        ),
        tokenizer=qwen_bpe, modules=None, auto=transformers.AutoModelForCausalLM, length=90,
    ),
}

CROSS = {
    "bert": dict(config=bert(num_labels=1, hidden_size=24), tokenizer=wordpiece, length=60),
    "xlm-roberta": dict(config=roberta(num_labels=1), tokenizer=unigram, length=80),
    "camembert": dict(config=roberta(CamembertConfig, num_labels=1, num_hidden_layers=1, hidden_size=12), tokenizer=unigram, length=70),
    # Says itself that its scores are as they come, and its tokenizer that it gives no token types.
    "bert-identity": dict(
        config=bert(num_labels=1, num_hidden_layers=1, sentence_transformers={"activation_fn": "torch.nn.modules.linear.Identity", "version": "4.0.0"}),
        tokenizer=wordpiece, length=64, types=False,
    ),
    # Classes that give token types where nothing is said of them, and one that does not.
    "bert-class": dict(
        config=bert(num_labels=1, num_hidden_layers=1, hidden_size=12), tokenizer=wordpiece, length=60, types=False,
        named={"tokenizer_class": "ElectraTokenizerFast", "do_lower_case": False},
    ),
    "bert-without": dict(
        config=bert(num_labels=1, num_hidden_layers=1, hidden_size=12), tokenizer=wordpiece, length=60, types=False,
        named={"tokenizer_class": "DistilBertTokenizer"},
    ),
    # As CrossEncoder writes it.
    "bert-saved": dict(config=bert(num_labels=1, num_hidden_layers=1, hidden_size=16), tokenizer=wordpiece, length=55, saved=dict(activation_fn=torch.nn.Identity())),
    # With a prompt, which stands before each query.
    "bert-prompt": dict(
        config=bert(num_labels=1, num_hidden_layers=1, hidden_size=12), tokenizer=wordpiece, length=60,
        saved=dict(prompts={"other": "silver ", "query": "which metal: "}, default_prompt_name="query"),
    ),
}


def main():
    names = sys.argv[1:]
    known = [f"models/{name}" for name in MODELS] + [f"cross/{name}" for name in CROSS]
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"no such case: {', '.join(unknown)}; there are {', '.join(known)}")
    write_json(HERE / "texts.json", {"texts": TEXTS, "pairs": PAIRS})
    for part, cases, make in (("models", MODELS, make_model), ("cross", CROSS, make_cross)):
        if not names:
            shutil.rmtree(HERE / part, ignore_errors=True)
        for name, case in cases.items():
            if not names or f"{part}/{name}" in names:
                shutil.rmtree(HERE / part / name, ignore_errors=True)
                make(HERE / part / name, name, case)


def make_transformer(directory, name, case, auto):
    tokenizer, names = case["tokenizer"]()
    model = auto.from_config(case["config"], dtype=torch.float32)
    draw_weights(model, seeded(name))
    model.save_pretrained(directory)
    length = {"model_max_length": case["length"]} if "length" in case else {}
    if case["config"].model_type == "bert" and case.get("types", True):
        names = names | {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names, **length).save_pretrained(directory)
    for file, changes in (("tokenizer_config.json", case.get("named")), ("tokenizer.json", {"truncation": case.get("truncation")})):
        if changes and any(changes.values()):
            write_json(directory / file, json.loads((directory / file).read_text()) | changes)
    if "prefix" in case:
        tensors = {case["prefix"] + k: v for k, v in load_file(directory / "model.safetensors").items()}
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    if "drop" in case:
        config = json.loads((directory / "config.json").read_text()) | case.get("set", {})
        write_json(directory / "config.json", {key: value for key, value in config.items() if key not in case["drop"]})


def make_model(directory, name, case):
    make_transformer(directory / case.get("folder", ""), name, case, case.get("auto", transformers.AutoModel))
    if case["modules"] is not None:
        write_modules(directory, name, case)
    model = SentenceTransformer(str(directory), device="cpu", local_files_only=True, model_kwargs={"attn_implementation": "eager"})
    model.eval()
    arguments = dict(convert_to_numpy=False, convert_to_tensor=True, batch_size=5, show_progress_bar=False)
    expected = {"encode": model.encode(TEXTS, **arguments)}
    normal = "normalize" in (case["modules"] or [])
    expected["dimensions"] = model.encode(TEXTS, truncate_dim=7, normalize_embeddings=normal, **arguments)
    if "prompts" in case:
        prompts = case["prompts"]
        expected["query"] = model.encode(TEXTS, prompt_name="query", **arguments)
        # Not `encode_document`: version 6.2.0 gives each model an empty prompt `document` and so never gets to the others.
        document = next((p for p in ("document", "passage", "corpus") if p in prompts), None)
        expected["document"] = model.encode(TEXTS, prompt=prompts.get(document, ""), **arguments)
        expected["other"] = model.encode(TEXTS, prompt="yellow ", **arguments)
    tokens = model.tokenizer(TEXTS, truncation=False)["input_ids"]
    expected["truncated"] = torch.tensor(sum(len(t) > model.max_seq_length for t in tokens))
    expected["max_seq_length"] = torch.tensor(model.max_seq_length)
    save_file({k: v.contiguous().clone() for k, v in expected.items()}, directory / "expected.safetensors")
    spread = torch.nn.functional.normalize(expected["encode"], dim=1)
    print(f"{name}: {tuple(expected['encode'].shape)}, cosines from {(spread @ spread.T).min():.3f}, truncated {expected['truncated']}")


def write_modules(directory, name, case):
    dim, modules = case["config"].hidden_size, [{"idx": 0, "name": "0", "path": case.get("folder", ""), "type": "sentence_transformers.models.Transformer"}]
    dense, rng = iter(case.get("dense", [])), seeded(f"{name} dense")
    for index, kind in enumerate(case["modules"], 1):
        title = kind.capitalize()
        path = f"{index}_{title}"
        modules.append({"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{title}"})
        folder = directory / path
        if kind == "pooling":
            folder.mkdir()
            if case.get("old"):
                config = {"word_embedding_dimension": dim} | {key: mode in case["pooling"] for mode, key in OLD.items()}
            else:
                modes = case["pooling"][0] if len(case["pooling"]) == 1 else case["pooling"]
                config = {"embedding_dimension": dim, "pooling_mode": modes, "include_prompt": case.get("include_prompt", True)}
            write_json(folder / "config.json", config)
        elif kind == "dense":
            folder.mkdir()
            inner, outer, bias, activation = next(dense)
            named = {} if activation is None else {"activation_function": activation}
            write_json(folder / "config.json", {"in_features": inner, "out_features": outer, "bias": bias} | named)
            tensors = {"linear.weight": torch.randn(outer, inner, generator=rng) * inner**-0.5}
            if bias:
                tensors["linear.bias"] = torch.randn(outer, generator=rng) * 0.3
            save_file(tensors, folder / "model.safetensors")
        elif not case.get("no_folder"):
            folder.mkdir()
            write_json(folder / "config.json", {})
    write_json(directory / "modules.json", modules)
    reading = directory / case.get("folder", "") / "sentence_bert_config.json"
    if "reading" in case:
        write_json(reading, case["reading"])
    elif "length" in case:
        write_json(reading, {"max_seq_length": case["length"], "do_lower_case": False})
    elif case.get("lower"):
        write_json(reading, {"max_seq_length": None, "do_lower_case": True})
    if "prompts" in case:
        settings = {"prompts": case["prompts"], "default_prompt_name": case.get("default"), "similarity_fn_name": "cosine"}
        write_json(directory / "config_sentence_transformers.json", settings)


def make_cross(directory, name, case):
    make_transformer(directory, f"cross {name}", case, transformers.AutoModelForSequenceClassification)
    options = dict(device="cpu", local_files_only=True, model_kwargs={"attn_implementation": "eager"})
    if "saved" in case:
        model = CrossEncoder(str(directory), **case["saved"], **options)
        shutil.rmtree(directory)
        model.save_pretrained(str(directory), create_model_card=False)
    model = CrossEncoder(str(directory), **options)
    expected = {}
    for index, (query, documents) in enumerate(PAIRS):
        pairs = [(query, document) for document in documents]
        arguments = dict(convert_to_tensor=True, show_progress_bar=False, batch_size=4)
        expected[f"scores.{index}"] = model.predict(pairs, **arguments)
        if model.default_prompt_name is not None:
            assert (model.predict(pairs, prompt="", **arguments) - expected[f"scores.{index}"]).abs().max() > 0.001
    save_file({k: v.contiguous().clone() for k, v in expected.items()}, directory / "expected.safetensors")
    print(f"cross {name}: {expected['scores.0'].tolist()}")


def draw_weights(model, rng):
    """Weights whose outputs depend on every part: norms off one, biases off zero, positions and types as large as words."""
    with torch.no_grad():
        for key, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=rng)
            if p.dim() == 1:
                is_norm = "norm" in key.lower() and key.endswith("weight")
                p.copy_(1 + 0.3 * noise if is_norm else 0.3 * noise)
            elif "embeddings" in key or "embed_tokens" in key or "relative" in key:
                p.copy_(noise * 0.8)
            else:
                p.copy_(noise * 1.5 * p.shape[1] ** -0.5)


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
